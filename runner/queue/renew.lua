-- Keep leases: only their owner can.
-- KEYS[1] leases  KEYS[2] claimed
-- ARGV[1] owner  ARGV[2] lease in milliseconds  ARGV[3…] lease ids
-- Returns the ids that are no longer the owner's.
local time = redis.call('TIME')
local due = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2]
local lost = {}
for index = 3, #ARGV do
    local id = ARGV[index]
    if redis.call('HGET', KEYS[2], id .. ':owner') == ARGV[1] then
        redis.call('ZADD', KEYS[1], due, id)
    else
        lost[#lost + 1] = id
    end
end
return lost
