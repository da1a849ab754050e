-- Make a dead letter of a leased job: only its owner can. Drops the letters that are older than the retention.
-- KEYS[1] leases  KEYS[2] claimed  KEYS[3] dead  KEYS[4] dead index  KEYS[5] payload of the letter
-- ARGV[1] owner  ARGV[2] lease id  ARGV[3] letter (JSON)  ARGV[4] seconds to keep the payload, 0 as long as the letter
-- ARGV[5] milliseconds to keep letters
-- Returns 1, or 0 where the lease is no longer the owner's.
local id = ARGV[2]
if redis.call('HGET', KEYS[2], id .. ':owner') ~= ARGV[1] then
    return 0
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local letter = cjson.decode(ARGV[3])
letter.since = tonumber(redis.call('HGET', KEYS[2], id .. ':since'))
letter.buried = now
redis.call('HSET', KEYS[3], id, cjson.encode(letter))
redis.call('ZADD', KEYS[4], now, id)
local seconds = ARGV[4] == '0' and math.floor(ARGV[5] / 1000) or ARGV[4]
redis.call('SET', KEYS[5], redis.call('HGET', KEYS[2], id .. ':payload'), 'EX', seconds)
redis.call('ZREM', KEYS[1], id)
redis.call('HDEL', KEYS[2], id .. ':payload', id .. ':attempts', id .. ':owner', id .. ':since', id .. ':reason')
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now - ARGV[5], 'LIMIT', 0, 100)) do
    redis.call('ZREM', KEYS[4], old)
    redis.call('HDEL', KEYS[3], old)
end
return 1
