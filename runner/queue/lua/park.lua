-- Park an announced job: it leaves the leases until `wake` makes it due, and its next claim is not counted. Only for
-- its holder. Idempotent per request id.
-- KEYS[1] leases  KEYS[2] claimed  KEYS[3] last  KEYS[4] parked  KEYS[5] totals
-- ARGV[1] request id  ARGV[2] lease id  ARGV[3] holder  ARGV[4] reason  ARGV[5] state  ARGV[6] counts
-- Returns 1, 0 if the lease belongs to another claim, or -1 if the job was woken since it was announced: then nothing
-- has changed.
local id = ARGV[2]
local answer = answered(KEYS[3], ARGV[1], KEYS[2], id, ARGV[3])
if answer then
    return answer
end
if not call('ZSCORE', KEYS[4], id) then
    return -1
end
check_leases(KEYS[1])
check_last(KEYS[3])
count_text(KEYS[5], ARGV[6])
call('HSET', KEYS[2], id .. ':holder', '', id .. ':reason', ARGV[4], id .. ':uncounted', 1, id .. ':state', ARGV[5])
call('ZREM', KEYS[1], id)
remember(KEYS[3], ARGV[1], {1})
return 1
