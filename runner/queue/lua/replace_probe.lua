-- Make a parked job of a failing image server its probe, if its probe is not leased, or is about to end without a
-- request to the server. Idempotent.
-- KEYS[1] leases  KEYS[2] parked  KEYS[3] hosts  KEYS[4] host  KEYS[5] parked jobs of the host
-- ARGV[1] host  ARGV[2] id of the probe that is about to end, or empty
-- Returns 1 if there is a new probe, else 0.
local probe = call('HGET', KEYS[4], 'probe')
if ARGV[2] ~= '' and probe ~= ARGV[2] or ARGV[2] == '' and probe and call('ZSCORE', KEYS[1], probe) then
    return 0
end
check_leases(KEYS[1])
check_parking(KEYS[2], KEYS[5])
call('EXPIRE', KEYS[4], PENDING_SECONDS)
local successor = next_of_host(KEYS[2], KEYS[5])
if not successor then
    return 0
end
set_due(KEYS[1], math.max(now(), tonumber(call('ZSCORE', KEYS[3], ARGV[1]) or 0)), successor)
call('HSET', KEYS[4], 'probe', successor)
call('EXPIRE', KEYS[4], PENDING_SECONDS)
return 1
