-- Dead-letter a job that has waited for too long, without its payload: the head of the list, or an expired lease.
-- Idempotent per request id.
-- KEYS[1] list  KEYS[2] leases  KEYS[3] claimed  KEYS[4] last  KEYS[5] dead  KEYS[6] dead index
-- KEYS[7] totals
-- ARGV[1] request id  ARGV[2] lease id, empty for the head of the list  ARGV[3] sha1 of the payload
-- ARGV[4] id of the dead letter  ARGV[5] when its wait began (ms), a space, and the dead letter as JSON
-- ARGV[6] counts
-- Returns 1, or 0 if it was claimed in the meantime.
if recall(KEYS[4], ARGV[1]) then
    return 1
end
local moment = now()
local payload
if ARGV[2] == '' then
    payload = call('LINDEX', KEYS[1], 0)
else
    local due = call('ZSCORE', KEYS[2], ARGV[2])
    payload = due and tonumber(due) <= moment and call('HGET', KEYS[3], ARGV[2] .. ':payload')
end
if not payload or redis.sha1hex(payload) ~= ARGV[3] then
    return 0
end
check_leases(KEYS[2])
check_claimed(KEYS[3])
check_last(KEYS[4])
check_dead(KEYS[5], KEYS[6])
call('LPOP', KEYS[1], 0)
local counts = {taken = ARGV[2] == '' and 1 or nil}
add_counts(counts, ARGV[6])
count(KEYS[7], counts)
call('HSET', KEYS[5], ARGV[4], ARGV[5])
call('ZADD', KEYS[6], moment, ARGV[4])
if ARGV[2] == '' then
    call('LPOP', KEYS[1])
else
    remove_lease(KEYS[2], KEYS[3], ARGV[2])
end
remember(KEYS[4], ARGV[1], {1})
return 1
