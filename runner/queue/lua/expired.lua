-- Find jobs that have waited for too long, in the list or as expired leases. The API's elements have no push time, so
-- `seen` records when each was first seen here: a line with time and fingerprint for each, the head of the list first.
-- Removes nothing from the list.
-- KEYS[1] list  KEYS[2] seen  KEYS[3] leases  KEYS[4] claimed
-- ARGV[1] milliseconds that a job may wait  ARGV[2] most jobs to return  ARGV[3] bytes of payload to return
-- ARGV[4] seconds to keep `seen`  ARGV[5] most waiting jobs to record
-- ARGV[6] bytes of payload after which no further job is read
-- Returns for each {lease id or empty, sha1 of the payload, start of the payload, its bytes, attempts, when its wait
-- began (ms)}.
local moment = now()
local found, waiting = {}, call('LLEN', KEYS[1])

local function mark_at(index)
    return fingerprint(call('LINDEX', KEYS[1], index))
end

local function add(id, payload, attempts, since)
    local start = string.sub(payload, 1, ARGV[3])
    found[#found + 1] = {id, redis.sha1hex(payload), start, #payload, attempts, string.format('%.0f', since)}
end

-- Jobs leave the list at its head and arrive at its tail. So the recorded entries still apply from some entry on: the
-- first with the head's mark, provided that the last entry's mark is as far behind the head as recorded.
local function still_known()
    local known, rest = {}, {}
    for since, mark in string.gmatch(call('GET', KEYS[2]) or '', '(%d+) (%S+)\n') do
        known[#known + 1] = {math.min(tonumber(since), moment), mark}
    end
    local head = waiting > 0 and mark_at(0)
    for first, entry in ipairs(known) do
        local last = #known - first
        if entry[2] == head and last < waiting and mark_at(last) == known[#known][2] then
            for index = first, #known do
                rest[#rest + 1] = known[index]
            end
            break
        end
    end
    return rest
end

local seen, room = still_known(), tonumber(ARGV[6])
while #seen < math.min(waiting, tonumber(ARGV[5])) and room > 0 do
    local payload = call('LINDEX', KEYS[1], #seen)
    room = room - #payload
    seen[#seen + 1] = {moment, fingerprint(payload)}
end
if #seen > 0 then
    local text = {}
    for index, entry in ipairs(seen) do
        text[index] = string.format('%.0f ', entry[1]) .. entry[2] .. '\n'
    end
    call('SET', KEYS[2], table.concat(text), 'EX', ARGV[4])
end

for index, entry in ipairs(seen) do
    if moment - entry[1] < tonumber(ARGV[1]) or #found >= tonumber(ARGV[2]) then
        break
    end
    local payload = call('LINDEX', KEYS[1], index - 1)
    if fingerprint(payload) ~= entry[2] then -- something else has removed jobs from the middle
        call('DEL', KEYS[2])
        break
    end
    add('', payload, 0, entry[1])
end
for _, id in ipairs(call('ZRANGEBYSCORE', KEYS[3], '-inf', moment, 'LIMIT', 0, 1000)) do
    local payload, since, attempts = unpack(call('HMGET', KEYS[4], id .. ':payload', id .. ':since', id .. ':attempts'))
    if payload and since and moment - since >= tonumber(ARGV[1]) and #found < tonumber(ARGV[2]) then
        add(id, payload, tonumber(attempts or 0), since)
    end
end
return found
