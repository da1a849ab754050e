-- Prepended to every script in this folder (see `scripts.py`).
--
-- A lease is a member of the sorted set `leases` (score: when it expires) and these fields of the hash `claimed`:
--   ID:payload   what the API pushed, byte for byte
--   ID:attempts  how often it was claimed, not counting claims that were released
--   ID:holder    OWNER#CLAIM, the fencing token; empty after a retry or a release
--   ID:since     when it left the list
--   ID:reason    of the last retry or release
--   ID:uncounted set by a release: the next claim is not counted
--   ID:alone     set by a claim with which no other job may be in flight
--   ID:state     saved by the last holder when it parked or released the job
--
-- A parked job has these fields and is a member of the sorted set `parked` (score: until when it may wait) instead of
-- `leases`. Its holder announces that first: then it is a member of both, and parking fails if it has left `parked`
-- since. The set `pending` of each such job contains the photos that it waits for. A job that waits for its image
-- server is parked as well, without `pending`: it is a member of the sorted set `host:HOST:parked` (score: since when).
--
-- Redis does not roll scripts back: a refused command (a missing right, a key of another type) ends the script, and
-- its earlier writes stay. A script that writes therefore calls the `check_` functions for its keys first. They send
-- each command of the script in a form that changes nothing, so that every refusal comes before the first write. HSET,
-- SADD and RPUSH have no such form: one of them is the first real write. Key patterns need no check: EVAL itself is
-- refused unless the user may read and write all of KEYS.
--
-- A full Redis (maxmemory) refuses a script's first write if it needs memory, but no write after another write command,
-- even one that changed nothing. The ZREM of a check needs no memory and comes first, so leases can be
-- renewed and settled on a full Redis too.

-- Totals are counters in a hash, changed by the script that does what they count: nothing is counted twice or missed,
-- whatever is killed or repeated. `runner/queue/totals.py` has the fields.

local REMEMBERED_SECONDS = 3600
-- Longer than any job can be parked: `LONGEST_SECONDS` of `hosts.py` is a day.
local PENDING_SECONDS = 90000

-- Like redis.call, with an error that names command and key: not every server's message does.
local function call(command, ...)
    local reply = redis.pcall(command, ...)
    if type(reply) == 'table' and reply.err then
        error(command .. ' on ' .. (... or 'the server') .. ': ' .. reply.err, 0)
    end
    return reply
end

-- The checks use the empty id, which no lease and no dead letter has.

local function check_leases(leases)
    call('ZREM', leases, '')
    call('ZADD', leases, 'XX', 0, '')
end

local function check_claimed(claimed)
    call('HDEL', claimed, '')
    call('HGET', claimed, '')
    call('HMGET', claimed, '')
end

local function check_dead(dead, index)
    call('ZREM', index, '')
    call('ZADD', index, 'XX', 0, '')
    call('HDEL', dead, '')
    call('ZRANGEBYSCORE', index, '-inf', '-inf', 'LIMIT', 0, 0)
end

local function check_parking(parked, pending)
    call('ZREM', parked, '')
    call('ZADD', parked, 'XX', 0, '')
    call('EXPIRE', pending, PENDING_SECONDS)
end

local function check_last(last)
    call('SET', last, '', call('GET', last) and 'NX' or 'XX')
end

local function check_totals(totals)
    call('HMGET', totals, '')
end

-- Let the keys of a private queue expire. Before they exist, this is a check.
local function keep_for(names, seconds)
    for _, key in ipairs(seconds ~= '0' and names or {}) do
        call('EXPIRE', key, seconds)
    end
end

local function now()
    local time = call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- A fingerprint of a payload, without reading all of a selfie.
local function fingerprint(payload)
    return #payload .. ':' .. redis.sha1hex(string.sub(payload, 1, 256) .. string.sub(payload, -64))
end

local function set_due(leases, moment, id)
    call('ZADD', leases, moment, id)
end

local function remove_lease(leases, claimed, id)
    call('ZREM', leases, id)
    call('HDEL', claimed, id .. ':payload', id .. ':attempts', id .. ':holder', id .. ':since', id .. ':reason',
        id .. ':uncounted', id .. ':alone', id .. ':state')
end

local function leave_parking(parked, pending, id)
    call('ZREM', parked, id)
    call('EXPIRE', pending, 0) -- deletes it; DEL has no form that changes nothing
end

-- Take the job that has waited longest for a host, if there is one, out of `parked`.
local function next_of_host(parked, of_host)
    while true do
        local id = call('ZRANGE', of_host, 0, 0)[1]
        if not id then
            return nil
        end
        call('ZREM', of_host, id)
        if call('ZREM', parked, id) == 1 then -- else it was woken or removed
            return id
        end
    end
end

local function remove_dead_letter(dead, index, id)
    call('ZREM', index, id)
    call('HDEL', dead, id)
end

local function remove_old_dead_letters(dead, index, moment)
    for _, id in ipairs(call('ZRANGEBYSCORE', index, '-inf', moment, 'LIMIT', 0, 100)) do
        remove_dead_letter(dead, index, id)
    end
end

-- Add the counts of a caller: pairs of a field and a whole number, separated by spaces.
local function add_counts(counts, text)
    for field, number in string.gmatch(text, '(%S+) (%d+)') do
        counts[field] = (counts[field] or 0) + number
    end
end

local function add_one(counts, field)
    counts[field] = (counts[field] or 0) + 1
end

-- Always two commands. Called before a script's other writes: HSET has no check, so it must be the first write.
local function count(totals, counts)
    local fields, values = {}, {}
    for field in pairs(counts) do
        fields[#fields + 1] = field
    end
    if #fields == 0 then
        return
    end
    local earlier = call('HMGET', totals, unpack(fields))
    for index, field in ipairs(fields) do
        values[2 * index - 1] = field
        values[2 * index] = string.format('%.0f', (tonumber(earlier[index]) or 0) + counts[field])
    end
    call('HSET', totals, unpack(values))
end

-- Add only the counts of a caller.
local function count_text(totals, text)
    local counts = {}
    add_counts(counts, text)
    count(totals, counts)
end

-- A command whose reply was lost is repeated. `last` has the request id of the caller's latest call and its reply (ids
-- or a number), so that the repetition gets the same reply and changes nothing.

local function remember(last, request, answer)
    call('SET', last, request .. ' ' .. table.concat(answer, ' '), 'EX', REMEMBERED_SECONDS)
end

local function recall(last, request)
    local text = call('GET', last)
    if not text or string.sub(text, 1, #request + 1) ~= request .. ' ' then
        return nil
    end
    local answer = {}
    for item in string.gmatch(string.sub(text, #request + 2), '%S+') do
        answer[#answer + 1] = item
    end
    return answer
end

-- The early reply of a call about one lease: 1 if it is a repetition, 0 if another claim owns the lease, else nil.
local function answered(last, request, claimed, id, holder)
    if recall(last, request) then
        return 1
    end
    if call('HGET', claimed, id .. ':holder') ~= holder then
        return 0
    end
    return nil
end
