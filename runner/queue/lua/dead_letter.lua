-- Dead-letter a leased job. Only for its holder. Idempotent per request id. The payload is moved byte for byte,
-- inside Redis. Also removes dead letters that are older than the retention.
-- KEYS[1] leases  KEYS[2] claimed  KEYS[3] last  KEYS[4] dead  KEYS[5] dead index  KEYS[6] payload of the dead letter
-- KEYS[7] parked  KEYS[8] pending  KEYS[9] totals
-- ARGV[1] request id  ARGV[2] lease id  ARGV[3] holder  ARGV[4] dead letter, JSON
-- ARGV[5] milliseconds to keep the payload, 0 to delete it  ARGV[6] milliseconds to keep dead letters  ARGV[7] counts
-- ARGV[8] seconds after which a private queue expires, 0 for others
-- Returns 1, or 0 if the lease belongs to another claim.
local id = ARGV[2]
local answer = answered(KEYS[3], ARGV[1], KEYS[2], id, ARGV[3])
if answer then
    return answer
end
check_leases(KEYS[1])
check_claimed(KEYS[2])
check_last(KEYS[3])
check_dead(KEYS[4], KEYS[5])
check_parking(KEYS[7], KEYS[8])
keep_for({KEYS[4], KEYS[5], KEYS[9]}, ARGV[8]) -- here it is a check
local moment = now()
count_text(KEYS[9], ARGV[7])
local payload, since = unpack(call('HMGET', KEYS[2], id .. ':payload', id .. ':since'))
call('HSET', KEYS[4], id, string.format('%.0f ', since or moment) .. ARGV[4])
if ARGV[5] ~= '0' then
    call('SET', KEYS[6], payload or '', 'PX', ARGV[5])
end
call('ZADD', KEYS[5], moment, id)
remove_lease(KEYS[1], KEYS[2], id)
leave_parking(KEYS[7], KEYS[8], id)
remove_old_dead_letters(KEYS[4], KEYS[5], moment - ARGV[6])
keep_for({KEYS[4], KEYS[5], KEYS[9]}, ARGV[8])
remember(KEYS[3], ARGV[1], {1})
return 1
