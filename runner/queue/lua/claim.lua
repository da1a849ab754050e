-- Lease jobs: first those whose lease has expired, then the head of the list. Counts the attempt, unless the job
-- was released before. The same call again returns what it has taken.
-- A job whose runner died may be what ended it. Where the caller says how many jobs it has in hand, the last attempt
-- at such a job is made alone: so one that ends every runner is buried by itself, and takes no neighbour with it.
-- While one is due, nothing after it is claimed: busy runners come to an end of what they hold, and one takes it.
-- KEYS[1] list  KEYS[2] leases  KEYS[3] claimed  KEYS[4] last  KEYS[5] dead  KEYS[6] dead index
-- ARGV[1] owner  ARGV[2] word of this call  ARGV[3] lease in milliseconds  ARGV[4] how many at most
-- ARGV[5] bytes of payload after which no further job is taken  ARGV[6] largest payload that is handed out whole
-- ARGV[7] bytes of a larger one that are, and of a job that is out of attempts, whose payload may be what kills  ARGV[8] milliseconds that no lease reaches into the future
-- ARGV[9] milliseconds to keep letters  ARGV[10] attempts allowed  ARGV[11] jobs in hand, -1 where that is not said
-- With a limit of 0 it only checks that a claim would not be refused, and changes nothing.
-- Returns {id, payload, attempts, bytes of the whole payload, 1 where it is to be done alone} for each lease.
local moment = now()
local due = moment + ARGV[3]
local limit, room = tonumber(ARGV[4]), tonumber(ARGV[5])
local holder = ARGV[1] .. '#' .. ARGV[2]
local taken, ids = {}, {}
local ALONE = '!' -- stands behind the id of such a job in what is remembered

local function give(id, payload, attempts, alone)
    local shown = payload
    if #payload > tonumber(ARGV[6]) or attempts > tonumber(ARGV[10]) then
        shown = string.sub(payload, 1, ARGV[7])
    end
    fall_due(KEYS[2], due, id)
    room = room - #shown
    ids[#ids + 1] = id
    taken[#taken + 1] = {id, shown, attempts, #payload, alone}
end

-- A retry and a release leave no holder, a death does.
local function may_have_killed(attempts, earlier_holder, spared)
    local last = attempts and tonumber(attempts) + 1 == tonumber(ARGV[10])
    return ARGV[11] ~= '-1' and last and earlier_holder and earlier_holder ~= '' and not spared
end

local earlier = recall(KEYS[4], ARGV[2])
if earlier then
    local alone = earlier[#earlier] == ALONE and 1 or 0
    for _, id in ipairs(earlier) do
        if call('HGET', KEYS[3], id .. ':holder') == holder then
            local payload, attempts = unpack(call('HMGET', KEYS[3], id .. ':payload', id .. ':attempts'))
            check_leases(KEYS[2])
            give(id, payload, tonumber(attempts), alone)
        end
    end
    return taken
end

check_leases(KEYS[2])
check_claimed(KEYS[3])
check_last(KEYS[4])
check_dead(KEYS[5], KEYS[6])
local waiting = call('LLEN', KEYS[1])
call('LPOP', KEYS[1], 0)
if limit == 0 then
    return taken
end

-- The clock was set back: without this, what a dead runner held would wait until it has caught up.
local horizon = string.format('(%.0f', moment + ARGV[8])
for _, id in ipairs(call('ZRANGEBYSCORE', KEYS[2], horizon, '+inf', 'LIMIT', 0, 1000)) do
    fall_due(KEYS[2], due, id)
end

for _, id in ipairs(call('ZRANGEBYSCORE', KEYS[2], '-inf', moment, 'LIMIT', 0, limit)) do
    if room <= 0 then
        break
    end
    local names = {id .. ':payload', id .. ':attempts', id .. ':holder', id .. ':spared'}
    local payload, attempts, earlier_holder, spared = unpack(call('HMGET', KEYS[3], unpack(names)))
    local alone = payload and may_have_killed(attempts, earlier_holder, spared)
    if alone and (#taken > 0 or ARGV[11] ~= '0') then
        limit = 0
        break
    end
    if payload then
        local count = tonumber(attempts or 0) + (spared and 0 or 1)
        call('HSET', KEYS[3], id .. ':attempts', count, id .. ':holder', holder) -- first: it could not be checked
        call('HDEL', KEYS[3], id .. ':spared')
        give(id, payload, count, alone and 1 or 0)
    else
        forget(KEYS[2], KEYS[3], id)
    end
    if alone then
        ids[#ids + 1] = ALONE
        limit = 0
        break
    end
end
while #taken < limit and room > 0 and waiting > 0 do
    local id = ARGV[2] .. '-' .. #taken
    -- The job leaves the list only after this HSET, which could not be checked, has succeeded.
    call('HSET', KEYS[3], id .. ':attempts', 1, id .. ':since', moment, id .. ':holder', holder)
    local payload = call('LPOP', KEYS[1])
    call('HSET', KEYS[3], id .. ':payload', payload)
    give(id, payload, 1, 0)
    waiting = waiting - 1
end

if #taken > 0 then
    remember(KEYS[4], ARGV[2], ids)
end
forget_old_letters(KEYS[5], KEYS[6], moment - ARGV[9])
return taken
