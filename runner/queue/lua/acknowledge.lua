-- Acknowledge jobs: end their leases and delete their payloads. Only for their holder. Idempotent per request id.
-- KEYS[1] leases  KEYS[2] claimed  KEYS[3] last  KEYS[4] parked  KEYS[5…] pending of each lease
-- ARGV[1] request id  ARGV[2…] lease id and holder of each
-- Returns the ids whose leases belong to another claim.
local earlier = recall(KEYS[3], ARGV[1])
if earlier then
    return earlier
end
check_leases(KEYS[1])
check_claimed(KEYS[2])
check_last(KEYS[3])
check_parking(KEYS[4], KEYS[5])
local lost, count = {}, 0
for index = 2, #ARGV, 2 do
    local id = ARGV[index]
    if call('HGET', KEYS[2], id .. ':holder') == ARGV[index + 1] then
        remove_lease(KEYS[1], KEYS[2], id)
        leave_parking(KEYS[4], KEYS[4 + index / 2], id)
        count = count + 1
    else
        lost[#lost + 1] = id
    end
end
if count > 0 then
    remember(KEYS[3], ARGV[1], lost)
end
return lost
