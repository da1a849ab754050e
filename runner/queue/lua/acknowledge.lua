-- End leases whose jobs are done: only their holder can. The same call again returns the same.
-- KEYS[1] leases  KEYS[2] claimed  KEYS[3] last
-- ARGV[1] word of this call  ARGV[2…] lease id and holder of each
-- Returns the ids that are no longer the holder's.
local earlier = recall(KEYS[3], ARGV[1])
if earlier then
    return earlier
end
check_leases(KEYS[1])
check_claimed(KEYS[2])
check_last(KEYS[3])
local lost, count = {}, 0
for index = 2, #ARGV, 2 do
    local id = ARGV[index]
    if call('HGET', KEYS[2], id .. ':holder') == ARGV[index + 1] then
        forget(KEYS[1], KEYS[2], id)
        count = count + 1
    else
        lost[#lost + 1] = id
    end
end
if count > 0 then
    remember(KEYS[3], ARGV[1], lost)
end
return lost
