-- Let the leases of earlier processes of the same owner fall due at once: a Job's pod replaces a dead one.
-- KEYS[1] leases  KEYS[2] claimed
-- ARGV[1] owner  ARGV[2] what the owners to replace begin with
-- Returns how many fell due.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local count = 0
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    local owner = redis.call('HGET', KEYS[2], id .. ':owner')
    if owner and owner ~= ARGV[1] and string.sub(owner, 1, #ARGV[2]) == ARGV[2] then
        redis.call('ZADD', KEYS[1], now, id)
        count = count + 1
    end
end
return count
