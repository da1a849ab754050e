-- Look at a list without changing anything.
-- KEYS[1] list  KEYS[2] leases  KEYS[3] dead index
-- Returns waiting, in flight, due now, dead, milliseconds until the next lease falls due (-1: there is none).
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local next_due = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
return {
    redis.call('LLEN', KEYS[1]),
    redis.call('ZCARD', KEYS[2]),
    redis.call('ZCOUNT', KEYS[2], '-inf', now),
    redis.call('ZCARD', KEYS[3]),
    next_due[2] and math.max(0, next_due[2] - now) or -1,
}
