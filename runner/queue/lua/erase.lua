-- Remove every copy of a waiting job, and when it was first seen. Idempotent.
-- KEYS[1] list  KEYS[2] seen  KEYS[3] totals
-- ARGV[1] the index at which it was, negative  ARGV[2] its fingerprint  ARGV[3] seconds to keep `seen`
-- ARGV[4] field to count the copies in
-- Returns how many copies were removed, 0 if the job has left the list.
local payload
for index = tonumber(ARGV[1]), -call('LLEN', KEYS[1]), -1 do -- pushes move it away from the end
    local one = call('LINDEX', KEYS[1], index)
    if fingerprint(one) == ARGV[2] then
        payload = one
        break
    end
end
if not payload then
    return 0
end
local seen = call('GET', KEYS[2])
call('LPOP', KEYS[1], 0) -- a write that needs no memory, so that a full Redis refuses none of those that follow
call('SET', KEYS[2], '', seen and 'NX' or 'XX') -- checks SET
count(KEYS[3], {taken = 0}) -- checks HSET
local removed = call('LREM', KEYS[1], 0, payload)
count(KEYS[3], {taken = removed, [ARGV[4]] = removed})
if seen then
    local kept = {}
    for entry, mark in string.gmatch(seen, '(%d+ (%S+)\n)') do
        if mark ~= ARGV[2] then
            kept[#kept + 1] = entry
        end
    end
    call('SET', KEYS[2], table.concat(kept), 'EX', ARGV[3])
end
return removed
