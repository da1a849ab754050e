-- Count the jobs of a list. Read-only.
-- KEYS[1] list  KEYS[2] leases  KEYS[3] dead index  KEYS[4] parked
-- ARGV[1] milliseconds to keep dead letters
-- Returns waiting, in flight, due now, dead, milliseconds until the next lease expires (-1 without leases), parked.
local moment = now()
local next_due = call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
return {
    call('LLEN', KEYS[1]),
    call('ZCARD', KEYS[2]),
    call('ZCOUNT', KEYS[2], '-inf', moment),
    call('ZCOUNT', KEYS[3], moment - ARGV[1], '+inf'),
    next_due[2] and math.max(0, next_due[2] - moment) or -1,
    call('ZCARD', KEYS[4]),
}
