-- Let the leases of earlier processes of the same Job fall due at once: its pod replaces a dead one.
-- KEYS[1] leases  KEYS[2] claimed
-- ARGV[1] what our own holders begin with  ARGV[2] what those of the Job begin with
-- Returns how many leases were brought forward.
check_leases(KEYS[1])
local moment = now()
local entries = call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
local count = 0

local function begins(text, prefix)
    return string.sub(text, 1, #prefix) == prefix
end

for index = 1, #entries, 2 do
    local id, score = entries[index], tonumber(entries[index + 1])
    local holder = call('HGET', KEYS[2], id .. ':holder')
    if holder and begins(holder, ARGV[2]) and not begins(holder, ARGV[1]) and moment < score then
        fall_due(KEYS[1], moment, id)
        count = count + 1
    end
end
return count
