-- Remove a lease or a parked job with its payload, whichever run owns it: from then on its holder can neither
-- renew nor settle it.
-- KEYS[1] leases  KEYS[2] claimed  KEYS[3] parked  KEYS[4] pending  KEYS[5] totals
-- ARGV[1] lease id  ARGV[2] counts
-- Returns 2 if a runner owned it, 1 if no runner did, 0 if there is no such lease.
local due, holder = call('ZSCORE', KEYS[1], ARGV[1]), call('HGET', KEYS[2], ARGV[1] .. ':holder')
if not due and not holder then
    return 0
end
check_leases(KEYS[1])
check_claimed(KEYS[2])
check_parking(KEYS[3], KEYS[4])
count_text(KEYS[5], ARGV[2])
remove_lease(KEYS[1], KEYS[2], ARGV[1])
leave_parking(KEYS[3], KEYS[4], ARGV[1])
return holder and holder ~= '' and 2 or 1
