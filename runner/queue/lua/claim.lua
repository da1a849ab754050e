-- Claim jobs: first those whose lease has expired, then the head of the list. Counts the attempt, unless the last
-- one was released. A repeated request id returns the same leases.
-- A job whose runner died may have killed it. If the caller says how many jobs it has in flight, the last attempt at
-- such a job is made alone, and repeated if it was not: a job that kills every runner is dead-lettered, and none that
-- was only in flight with it.
-- While such a job is due, nothing behind it is claimed: busy runners finish their jobs, and one of them claims it.
-- KEYS[1] list  KEYS[2] leases  KEYS[3] claimed  KEYS[4] last  KEYS[5] dead  KEYS[6] dead index
-- KEYS[7] totals
-- ARGV[1] owner  ARGV[2] request id  ARGV[3] lease in milliseconds  ARGV[4] limit
-- ARGV[5] bytes of payload after which no further job is claimed  ARGV[6] largest payload that is returned whole
-- ARGV[7] bytes returned of a larger payload, or of a job without attempts left, whose payload may kill runners
-- ARGV[8] longest possible lease in milliseconds  ARGV[9] milliseconds to keep dead letters
-- ARGV[10] attempts allowed  ARGV[11] jobs in flight, -1 if not given
-- ARGV[12] other counts of the caller  ARGV[13] seconds to keep the keys of a private list, 0 for any other
-- With a limit of 0 it only checks that Redis would not refuse a claim, and changes nothing.
-- Returns for each lease {id, payload, attempts, bytes of the whole payload, 1 if it must be processed alone,
-- milliseconds since it left the list, state saved by an earlier holder}.
local moment = now()
local due = moment + ARGV[3]
local limit, room = tonumber(ARGV[4]), tonumber(ARGV[5])
local holder = ARGV[1] .. '#' .. ARGV[2]
local taken, ids = {}, {}
local ALONE = '!' -- follows the id of such a job in the remembered answer

local function add(id, payload, attempts, alone)
    local shown = payload
    if #payload > tonumber(ARGV[6]) or attempts > tonumber(ARGV[10]) then
        shown = string.sub(payload, 1, ARGV[7])
    end
    set_due(KEYS[2], due, id)
    local since, state = unpack(call('HMGET', KEYS[3], id .. ':since', id .. ':state'))
    room = room - #shown - #(state or '')
    ids[#ids + 1] = id
    taken[#taken + 1] = {id, shown, attempts, #payload, alone, moment - (since or moment), state or ''}
end

-- A retry or a release clears the holder; a death leaves it.
local function may_have_killed(attempts, earlier_holder, was_alone)
    local allowed = tonumber(ARGV[10])
    local last = attempts + 1 >= allowed and attempts <= allowed
    return ARGV[11] ~= '-1' and last and earlier_holder and earlier_holder ~= '' and not was_alone
end

local function keep_private_keys()
    keep_for({KEYS[1], KEYS[2], KEYS[3], KEYS[7]}, ARGV[13])
end

local earlier = recall(KEYS[4], ARGV[2])
if earlier then
    local alone = earlier[#earlier] == ALONE and 1 or 0
    for _, id in ipairs(earlier) do
        if call('HGET', KEYS[3], id .. ':holder') == holder then
            local payload, attempts = unpack(call('HMGET', KEYS[3], id .. ':payload', id .. ':attempts'))
            check_leases(KEYS[2])
            add(id, payload, tonumber(attempts), alone)
        end
    end
    return taken
end

check_leases(KEYS[2])
check_claimed(KEYS[3])
check_last(KEYS[4])
check_dead(KEYS[5], KEYS[6])
check_totals(KEYS[7])
local waiting = call('LLEN', KEYS[1])
call('LPOP', KEYS[1], 0)
keep_private_keys() -- here it is a check
if limit == 0 then
    return taken
end

local counts = {}
add_counts(counts, ARGV[12])

-- The clock was set back: otherwise a dead runner's leases would not expire until it has caught up.
local horizon = string.format('(%.0f', moment + ARGV[8])
for _, id in ipairs(call('ZRANGEBYSCORE', KEYS[2], horizon, '+inf', 'LIMIT', 0, 1000)) do
    set_due(KEYS[2], due, id)
end

for _, id in ipairs(call('ZRANGEBYSCORE', KEYS[2], '-inf', moment, 'LIMIT', 0, limit)) do
    if room <= 0 then
        break
    end
    local names = {id .. ':payload', id .. ':attempts', id .. ':holder', id .. ':uncounted', id .. ':alone'}
    local payload, attempts, earlier_holder, uncounted, was_alone = unpack(call('HMGET', KEYS[3], unpack(names)))
    attempts = tonumber(attempts or 0)
    local alone = payload and may_have_killed(attempts, earlier_holder, was_alone)
    if alone and (#taken > 0 or ARGV[11] ~= '0') then
        limit = 0
        break
    end
    if payload then
        local count = attempts + (uncounted and 0 or 1)
        if alone then
            count = math.min(count, ARGV[10])
        end
        call('HSET', KEYS[3], id .. ':attempts', count, id .. ':holder', holder) -- the first write: HSET has no check
        call('HDEL', KEYS[3], id .. ':uncounted', id .. ':alone')
        if earlier_holder and earlier_holder ~= '' then
            add_one(counts, 'leases_expired')
        end
        if not uncounted then
            add_one(counts, 'attempts')
        end
        add(id, payload, count, alone and 1 or 0)
    else
        remove_lease(KEYS[2], KEYS[3], id)
    end
    if alone then
        call('HSET', KEYS[3], id .. ':alone', 1)
        ids[#ids + 1] = ALONE
        limit = 0
        break
    end
end
while #taken < limit and room > 0 and waiting > 0 do
    local id = ARGV[2] .. '-' .. #taken
    -- The job leaves the list only after this HSET, which has no check, has succeeded.
    call('HSET', KEYS[3], id .. ':attempts', 1, id .. ':since', moment, id .. ':holder', holder)
    local payload = call('LPOP', KEYS[1])
    call('HSET', KEYS[3], id .. ':payload', payload)
    add(id, payload, 1, 0)
    add_one(counts, 'taken')
    add_one(counts, 'attempts')
    waiting = waiting - 1
end

count(KEYS[7], counts)
if #taken > 0 or next(counts) then
    remember(KEYS[4], ARGV[2], ids)
end
remove_old_dead_letters(KEYS[5], KEYS[6], moment - ARGV[9])
keep_private_keys()
return taken
