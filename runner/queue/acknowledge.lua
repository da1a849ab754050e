-- End leases whose jobs are done: only their owner can.
-- KEYS[1] leases  KEYS[2] claimed
-- ARGV[1] owner  ARGV[2…] lease ids
-- Returns the ids that are no longer the owner's.
local lost = {}
for index = 2, #ARGV do
    local id = ARGV[index]
    if redis.call('HGET', KEYS[2], id .. ':owner') == ARGV[1] then
        redis.call('ZREM', KEYS[1], id)
        redis.call('HDEL', KEYS[2], id .. ':payload', id .. ':attempts', id .. ':owner', id .. ':since', id .. ':reason')
    else
        lost[#lost + 1] = id
    end
end
return lost
