-- Append jobs to a list while few are waiting, for the one process that has the lock. Idempotent per
-- request id. Without payloads it only renews the lock.
-- KEYS[1] list  KEYS[2] lock  KEYS[3] last
-- ARGV[1] request id  ARGV[2] token of the process  ARGV[3] milliseconds to keep the lock, 0 to release it
-- ARGV[4] 1: take the lock if it is free, else 0  ARGV[5] how many jobs may wait  ARGV[6…] payloads
-- Returns how many were appended, the first ones, or -1 if the process does not have the lock.
local earlier = recall(KEYS[3], ARGV[1])
if earlier then
    return tonumber(earlier[1])
end
local owner = call('GET', KEYS[2])
if owner ~= ARGV[2] and (owner or ARGV[4] ~= '1') then
    return -1
end
if ARGV[3] == '0' then
    call('DEL', KEYS[2])
    return 0
end
check_last(KEYS[3])
call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3]) -- before RPUSH, which could not be checked
local count = math.max(0, math.min(#ARGV - 5, ARGV[5] - call('LLEN', KEYS[1])))
for index = 6, 5 + count do
    call('RPUSH', KEYS[1], ARGV[index])
end
if count > 0 then
    remember(KEYS[3], ARGV[1], {count})
end
return count
