-- Make a dead letter, without its payload, of a job that has waited for too long: the head of the list, or a lease that
-- nobody holds. The same call again returns the same.
-- KEYS[1] list  KEYS[2] leases  KEYS[3] claimed  KEYS[4] last  KEYS[5] dead  KEYS[6] dead index
-- ARGV[1] word of this call  ARGV[2] lease id, empty for the head of the list  ARGV[3] sha1 of the payload
-- ARGV[4] id of the letter  ARGV[5] milliseconds of the moment from which it has waited, a space, and the letter
-- Returns 1, or 0 where the job is no longer there: somebody has claimed it.
if recall(KEYS[4], ARGV[1]) then
    return 1
end
local moment = now()
-- Before anything is taken: these fail where a key has the wrong type.
redis.call('HGET', KEYS[5], ARGV[4])
redis.call('ZSCORE', KEYS[6], ARGV[4])
local payload
if ARGV[2] == '' then
    payload = redis.call('LINDEX', KEYS[1], 0)
else
    local due = redis.call('ZSCORE', KEYS[2], ARGV[2])
    payload = due and tonumber(due) <= moment and redis.call('HGET', KEYS[3], ARGV[2] .. ':payload')
end
if not payload or redis.sha1hex(payload) ~= ARGV[3] then
    return 0
end
if ARGV[2] == '' then
    redis.call('LPOP', KEYS[1])
else
    forget(KEYS[2], KEYS[3], ARGV[2])
end
redis.call('HSET', KEYS[5], ARGV[4], ARGV[5])
redis.call('ZADD', KEYS[6], moment, ARGV[4])
remember(KEYS[4], ARGV[1], {1})
return 1
