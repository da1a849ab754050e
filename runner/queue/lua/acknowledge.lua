-- Acknowledge jobs: end their leases and delete their payloads. Only for their holder. Idempotent per request id.
-- KEYS[1] leases  KEYS[2] claimed  KEYS[3] last  KEYS[4] parked  KEYS[5] totals  KEYS[6…] pending of each lease
-- ARGV[1] request id  ARGV[2] other counts of the caller  ARGV[3…] lease id, holder and counts of each
-- Returns the ids whose leases belong to another claim.
local earlier = recall(KEYS[3], ARGV[1])
if earlier then
    return earlier
end
check_leases(KEYS[1])
check_claimed(KEYS[2])
check_last(KEYS[3])
check_parking(KEYS[4], KEYS[6])
local lost, ours, counts = {}, {}, {}
add_counts(counts, ARGV[2])
for index = 3, #ARGV, 3 do
    local id = ARGV[index]
    if call('HGET', KEYS[2], id .. ':holder') == ARGV[index + 1] then
        ours[id] = KEYS[5 + index / 3]
        add_counts(counts, ARGV[index + 2])
    else
        lost[#lost + 1] = id
    end
end
count(KEYS[5], counts)
for id, pending in pairs(ours) do
    remove_lease(KEYS[1], KEYS[2], id)
    leave_parking(KEYS[4], pending, id)
end
if next(ours) or next(counts) then
    remember(KEYS[3], ARGV[1], lost)
end
return lost
