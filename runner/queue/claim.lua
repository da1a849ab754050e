-- Lease jobs: first those whose lease has expired, then the head of the list. Counts the attempt.
-- KEYS[1] list  KEYS[2] leases  KEYS[3] claimed
-- ARGV[1] owner  ARGV[2] lease in milliseconds  ARGV[3] how many at most  ARGV[4] a unique word for new lease ids
-- Returns {id, payload, attempts} for each lease.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = now + ARGV[2]
local limit = tonumber(ARGV[3])
local taken = {}

local function take(id, payload, attempts)
    redis.call('HSET', KEYS[3], id .. ':owner', ARGV[1])
    redis.call('ZADD', KEYS[2], due, id)
    taken[#taken + 1] = {id, payload, attempts}
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, limit)) do
    local payload = redis.call('HGET', KEYS[3], id .. ':payload')
    if payload then
        take(id, payload, redis.call('HINCRBY', KEYS[3], id .. ':attempts', 1))
    else
        redis.call('ZREM', KEYS[2], id)
    end
end
while #taken < limit do
    local payload = redis.call('LPOP', KEYS[1])
    if not payload then
        break
    end
    local id = ARGV[4] .. '-' .. #taken
    redis.call('HSET', KEYS[3], id .. ':payload', payload, id .. ':attempts', 1, id .. ':since', now)
    take(id, payload, 1)
end
return taken
