-- Renew leases. Only for their holder. Idempotent.
-- KEYS[1] leases  KEYS[2] claimed
-- ARGV[1] lease in milliseconds  ARGV[2…] lease id and holder of each
-- Returns the indexes (from 0) of those that belong to another claim.
check_leases(KEYS[1])
local due = now() + ARGV[1]
local lost = {}
for index = 2, #ARGV, 2 do
    local id = ARGV[index]
    if call('HGET', KEYS[2], id .. ':holder') == ARGV[index + 1] then
        set_due(KEYS[1], due, id)
    else
        lost[#lost + 1] = (index - 2) / 2
    end
end
return lost
