-- Look at a list without changing anything.
-- KEYS[1] list  KEYS[2] leases  KEYS[3] dead index
-- ARGV[1] milliseconds to keep letters
-- Returns waiting, in flight, due now, dead, milliseconds until the next lease falls due (-1: there is none).
local moment = now()
local next_due = call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
return {
    call('LLEN', KEYS[1]),
    call('ZCARD', KEYS[2]),
    call('ZCOUNT', KEYS[2], '-inf', moment),
    call('ZCOUNT', KEYS[3], moment - ARGV[1], '+inf'),
    next_due[2] and math.max(0, next_due[2] - moment) or -1,
}
