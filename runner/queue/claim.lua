-- Lease jobs: first those whose lease has expired, then the head of the list. Counts the attempt, unless the job
-- was released before. The same call again returns what it has taken.
-- KEYS[1] list  KEYS[2] leases  KEYS[3] claimed  KEYS[4] last  KEYS[5] dead  KEYS[6] dead index
-- ARGV[1] owner  ARGV[2] word of this call  ARGV[3] lease in milliseconds  ARGV[4] how many at most
-- ARGV[5] bytes of payload after which no further job is taken  ARGV[6] largest payload that is handed out whole
-- ARGV[7] bytes of a larger one that are  ARGV[8] milliseconds that no lease reaches into the future
-- ARGV[9] milliseconds to keep letters
-- Returns {id, payload, attempts, bytes of the whole payload} for each lease.
local moment = now()
local due = moment + ARGV[3]
local limit, room = tonumber(ARGV[4]), tonumber(ARGV[5])
local holder = ARGV[1] .. '#' .. ARGV[2]
local taken, ids = {}, {}

local function give(id, payload, attempts)
    local shown = payload
    if #payload > tonumber(ARGV[6]) then
        shown = string.sub(payload, 1, ARGV[7])
    end
    fall_due(KEYS[2], due, id)
    redis.call('HSET', KEYS[3], id .. ':holder', holder)
    room = room - #shown
    ids[#ids + 1] = id
    taken[#taken + 1] = {id, shown, attempts, #payload}
end

local earlier = recall(KEYS[4], ARGV[2])
if earlier then
    for _, id in ipairs(earlier) do
        if redis.call('HGET', KEYS[3], id .. ':holder') == holder then
            local payload, attempts = unpack(redis.call('HMGET', KEYS[3], id .. ':payload', id .. ':attempts'))
            give(id, payload, tonumber(attempts))
        end
    end
    return taken
end

-- The clock was set back: without this, what a dead runner held would wait until it has caught up.
local horizon = string.format('(%.0f', moment + ARGV[8])
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], horizon, '+inf', 'LIMIT', 0, 1000)) do
    fall_due(KEYS[2], due, id)
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', moment, 'LIMIT', 0, limit)) do
    if room <= 0 then
        break
    end
    redis.call('ZREM', KEYS[2], id)
    local payload, attempts = unpack(redis.call('HMGET', KEYS[3], id .. ':payload', id .. ':attempts'))
    if payload then
        if redis.call('HDEL', KEYS[3], id .. ':spared') == 0 then
            attempts = redis.call('HINCRBY', KEYS[3], id .. ':attempts', 1)
        end
        give(id, payload, tonumber(attempts))
    end
end
while #taken < limit and room > 0 do
    local payload = redis.call('LPOP', KEYS[1])
    if not payload then
        break
    end
    local id = ARGV[2] .. '-' .. #taken
    redis.call('HSET', KEYS[3], id .. ':payload', payload, id .. ':attempts', 1, id .. ':since', moment)
    give(id, payload, 1)
end

if #taken > 0 then
    remember(KEYS[4], ARGV[2], ids)
end
forget_old_letters(KEYS[5], KEYS[6], moment - ARGV[9])
return taken
