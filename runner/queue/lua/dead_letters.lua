-- List dead letters, oldest first. Read-only.
-- KEYS[1] dead  KEYS[2] dead index
-- ARGV[1] earliest time (ms)  ARGV[2], ARGV[3] greatest and least age in milliseconds  ARGV[4] limit
-- Returns for each {id, dead letter, when it was dead-lettered (ms)}, as strings.
local moment = now()
local first, last = math.max(tonumber(ARGV[1]), moment - ARGV[2]), moment - ARGV[3]
local entries = call('ZRANGEBYSCORE', KEYS[2], first, last, 'WITHSCORES', 'LIMIT', 0, ARGV[4])
local found = {}
for index = 1, #entries, 2 do
    local id = entries[index]
    local letter = call('HGET', KEYS[1], id)
    if letter then
        found[#found + 1] = {id, letter, entries[index + 1]}
    end
end
return found
