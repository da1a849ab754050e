-- Keep leases: only their holder can. The same call again changes nothing but the moment.
-- KEYS[1] leases  KEYS[2] claimed
-- ARGV[1] lease in milliseconds  ARGV[2…] lease id and holder of each
-- Returns which of them (0 is the first) are no longer the holder's.
check_leases(KEYS[1])
local due = now() + ARGV[1]
local lost = {}
for index = 2, #ARGV, 2 do
    local id = ARGV[index]
    if call('HGET', KEYS[2], id .. ':holder') == ARGV[index + 1] then
        fall_due(KEYS[1], due, id)
    else
        lost[#lost + 1] = (index - 2) / 2
    end
end
return lost
