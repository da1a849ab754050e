-- Let a lease fall due at another moment, with no owner until then: a retry, or (with 0 and -1) a release.
-- KEYS[1] leases  KEYS[2] claimed
-- ARGV[1] owner  ARGV[2] lease id  ARGV[3] milliseconds from now  ARGV[4] added to the attempts  ARGV[5] reason
-- Returns 1, or 0 where the lease is no longer the owner's.
local id = ARGV[2]
if redis.call('HGET', KEYS[2], id .. ':owner') ~= ARGV[1] then
    return 0
end
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[3], id)
redis.call('HSET', KEYS[2], id .. ':owner', '', id .. ':reason', ARGV[5])
redis.call('HINCRBY', KEYS[2], id .. ':attempts', ARGV[4])
return 1
