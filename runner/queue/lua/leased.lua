-- Look at the leases, those that fall due first, without changing anything.
-- KEYS[1] leases  KEYS[2] claimed
-- ARGV[1] how many at most
-- Returns {id, milliseconds until it falls due, milliseconds since it left the list, holder, attempts, reason,
-- bytes of payload} for each.
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
