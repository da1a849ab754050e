-- Bring the leases of earlier processes of the same owner forward: a Job's pod replaces a dead one.
-- Those of the same place fall due at once. Those of another place, which may still live, fall due when half a
-- lease has passed since they were last renewed: a living holder renews after a third of it, and keeps them.
-- KEYS[1] leases  KEYS[2] claimed
-- ARGV[1] what our own holders begin with  ARGV[2] what those of this place begin with
-- ARGV[3] what those of the Job begin with  ARGV[4] lease in milliseconds
-- Returns how many leases were brought forward.
local moment = now()
local entries = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
local count = 0

local function begins(text, prefix)
    return string.sub(text, 1, #prefix) == prefix
end

for index = 1, #entries, 2 do
    local id, score = entries[index], tonumber(entries[index + 1])
    local holder, hastened = unpack(redis.call('HMGET', KEYS[2], id .. ':holder', id .. ':hastened'))
    local due = nil
    if holder and not begins(holder, ARGV[1]) then
        if begins(holder, ARGV[2]) then
            due = moment
        elseif begins(holder, ARGV[3]) and hastened ~= string.format('%.0f', score) then
            due = math.max(moment, math.floor(score - ARGV[4] / 2))
        end
    end
    if due and due < score then
        fall_due(KEYS[1], due, id)
        redis.call('HSET', KEYS[2], id .. ':hastened', string.format('%.0f', due))
        count = count + 1
    end
end
return count
