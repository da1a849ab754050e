-- Retry or release a job: it has no holder, and becomes due after a delay. Only for its holder. Idempotent per request
-- id.
-- KEYS[1] leases  KEYS[2] claimed  KEYS[3] last  KEYS[4] totals
-- ARGV[1] request id  ARGV[2] lease id  ARGV[3] holder  ARGV[4] milliseconds from now
-- ARGV[5] 1 for a release: the next claim is not counted; 0 for a retry  ARGV[6] reason
-- ARGV[7] state for the next holder; if empty, that of the last holder is kept  ARGV[8] counts
-- Returns 1, or 0 if the lease belongs to another claim.
local id = ARGV[2]
local answer = answered(KEYS[3], ARGV[1], KEYS[2], id, ARGV[3])
if answer then
    return answer
end
local due = now() + ARGV[4]
check_leases(KEYS[1])
check_claimed(KEYS[2])
check_last(KEYS[3])
count_text(KEYS[4], ARGV[8])
call('HSET', KEYS[2], id .. ':holder', '', id .. ':reason', ARGV[6])
set_due(KEYS[1], due, id)
if ARGV[5] == '1' then
    call('HSET', KEYS[2], id .. ':uncounted', 1)
end
if ARGV[7] ~= '' then
    call('HSET', KEYS[2], id .. ':state', ARGV[7])
end
remember(KEYS[3], ARGV[1], {1})
return 1
