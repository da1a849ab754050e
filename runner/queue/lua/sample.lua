-- Sample a queue, and record what later samples need: how many jobs had arrived by when, and a history.
-- Jobs leave the list at its head and arrive at its tail, so the age of the oldest follows from numbers alone: the jobs
-- that have left (in the totals) and those that wait are together the jobs that have arrived.
-- KEYS[1] list  KEYS[2] leases  KEYS[3] claimed  KEYS[4] dead index  KEYS[5] parked  KEYS[6] totals
-- KEYS[7] arrivals: when (ms) → how many jobs had arrived by then  KEYS[8] history  KEYS[9] orphans
-- ARGV[1] milliseconds to keep dead letters  ARGV[2] milliseconds between entries of the history
-- ARGV[3] milliseconds to keep them  ARGV[4] most leases to read  ARGV[5] fields of the totals, separated by spaces
-- Returns {waiting, leased, due, leased without an owner, parked, dead, oldest dead letter, newest dead letter,
-- milliseconds that the oldest job has waited since it was first seen, orphans or ''}, and the values of the fields,
-- separated by spaces: 250 separate replies would take the reader longer than everything else.
local moment = now()
local fields = {}
for field in string.gmatch(ARGV[5], '%S+') do
    fields[#fields + 1] = field
end
local waiting, leased = call('LLEN', KEYS[1]), call('ZCARD', KEYS[2])
local parked = call('ZCARD', KEYS[5])

local function held_by_nobody()
    local names = {}
    for _, id in ipairs(call('ZRANGE', KEYS[2], 0, ARGV[4] - 1)) do
        names[#names + 1] = id .. ':holder'
    end
    local free = 0
    for _, holder in ipairs(#names > 0 and call('HMGET', KEYS[3], unpack(names)) or {}) do
        free = free + (holder == '' and 1 or 0)
    end
    return free
end

-- Jobs that left the list uncounted (a runner of an earlier version, an operator) are taken from its head.
local function left_by_now(newest)
    local taken, skipped = unpack(call('HMGET', KEYS[6], 'taken', 'skipped'))
    local left = (tonumber(taken) or 0) + (tonumber(skipped) or 0)
    local missing = (tonumber(newest) or 0) - left - waiting
    if missing > 0 then
        count(KEYS[6], {skipped = missing})
        return left + missing
    end
    return left
end

local function milliseconds_waited()
    call('ZREMRANGEBYSCORE', KEYS[7], '-inf', '-inf') -- a write that needs no memory: a full Redis refuses none that follows
    local newest = call('ZRANGE', KEYS[7], -1, -1, 'WITHSCORES')
    local left = left_by_now(newest[2])
    call('ZREMRANGEBYSCORE', KEYS[7], '-inf', string.format('%.0f', left))
    if waiting == 0 then
        return 0
    end
    local first = call('ZRANGE', KEYS[7], 0, 0)[1]
    local age = math.max(0, moment - (first or moment))
    local arrived = left + waiting
    -- The older a backlog is, the fewer entries it has: its age is off by half a percent, a day has about 1,500 entries.
    if not first or arrived > tonumber(newest[2]) and moment - newest[1] >= age / 200 then
        call('ZADD', KEYS[7], string.format('%.0f', arrived), string.format('%.0f', moment))
    end
    return age
end

local function record_history(values, age)
    local newest = call('ZRANGE', KEYS[8], -1, -1, 'WITHSCORES')
    if newest[2] and moment >= tonumber(newest[2]) and moment - newest[2] < tonumber(ARGV[2]) then
        return
    end
    local ended, failed = 0, 0
    for index, field in ipairs(fields) do
        local number = tonumber(values[index]) or 0
        ended = ended + (string.sub(field, 1, 5) == 'jobs:' and number or 0)
        failed = failed + (string.sub(field, 1, 10) == 'jobs:dead_' and number or 0)
    end
    local entry = string.format('%.0f %d %d %d %.0f %.0f %.0f', moment, waiting, leased, parked, age, ended, failed)
    call('ZADD', KEYS[8], string.format('%.0f', moment), entry)
    call('ZREMRANGEBYSCORE', KEYS[8], '-inf', string.format('%.0f', moment - ARGV[3]))
    -- The clock was set back: entries in the future would prevent new ones from being recorded.
    call('ZREMRANGEBYSCORE', KEYS[8], string.format('(%.0f', moment), '+inf')
end

local age = milliseconds_waited()
local values = call('HMGET', KEYS[6], unpack(fields))
for index, value in ipairs(values) do
    values[index] = value and not string.find(value, '%D') and value or '0'
end
record_history(values, age)
for _, key in ipairs({KEYS[7], KEYS[8]}) do
    call('EXPIRE', key, math.floor(ARGV[3] / 1000))
end
local kept = string.format('%.0f', moment - ARGV[1])
local oldest = call('ZRANGEBYSCORE', KEYS[4], kept, '+inf', 'LIMIT', 0, 1)[1] or ''
return {
    {
        waiting, leased, call('ZCOUNT', KEYS[2], '-inf', moment), held_by_nobody(), parked,
        call('ZCOUNT', KEYS[4], kept, '+inf'), oldest, call('ZRANGE', KEYS[4], -1, -1)[1] or '', age,
        call('GET', KEYS[9]) or '',
    },
    table.concat(values, ' '),
}
