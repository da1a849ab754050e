-- Expire the leases of earlier processes of the same Job: its pod replaces a dead one.
-- KEYS[1] leases  KEYS[2] claimed
-- ARGV[1] prefix of this process's holders  ARGV[2] prefix of the Job's holders
-- Returns how many leases were expired.
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
        set_due(KEYS[1], moment, id)
        count = count + 1
    end
end
return count
