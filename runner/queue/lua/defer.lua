-- Let a lease fall due at another moment, with no holder until then: a retry or a release. Only its holder can.
-- The same call again returns the same.
-- KEYS[1] leases  KEYS[2] claimed  KEYS[3] last
-- ARGV[1] word of this call  ARGV[2] lease id  ARGV[3] holder  ARGV[4] milliseconds from now
-- ARGV[5] 1: the next claim is not counted (a release), else 0  ARGV[6] reason
-- Returns 1, or 0 where the lease is no longer the holder's.
local id = ARGV[2]
if recall(KEYS[3], ARGV[1]) then
    return 1
end
if call('HGET', KEYS[2], id .. ':holder') ~= ARGV[3] then
    return 0
end
local due = now() + ARGV[4]
check_leases(KEYS[1])
check_claimed(KEYS[2])
check_last(KEYS[3])
call('HSET', KEYS[2], id .. ':holder', '', id .. ':reason', ARGV[6]) -- first: it could not be checked
fall_due(KEYS[1], due, id)
if ARGV[5] == '1' then
    call('HSET', KEYS[2], id .. ':spared', 1)
end
remember(KEYS[3], ARGV[1], {1})
return 1
