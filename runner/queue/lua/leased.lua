-- List leases in the order in which they expire. Read-only.
-- KEYS[1] leases  KEYS[2] claimed
-- ARGV[1] limit
-- Returns for each {id, milliseconds until it expires, milliseconds since it left the list, holder, attempts, reason,
-- bytes of payload}.
local moment = now()
local entries = call('ZRANGE', KEYS[1], 0, ARGV[1] - 1, 'WITHSCORES')
local found = {}
for index = 1, #entries, 2 do
    local id = entries[index]
    local holder, since, attempts, reason = unpack(call('HMGET', KEYS[2],
        id .. ':holder', id .. ':since', id .. ':attempts', id .. ':reason'))
    found[#found + 1] = {
        id, entries[index + 1] - moment, moment - (since or moment), holder or '', tonumber(attempts or 0),
        reason or '', call('HSTRLEN', KEYS[2], id .. ':payload'),
    }
end
return found
