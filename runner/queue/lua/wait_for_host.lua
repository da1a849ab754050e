-- Decide about a leased job whose image server (its host) fails or is known to fail. Only for the job's holder.
-- Idempotent per request id.
-- A server is failing once several jobs in a row have failed there, or once it has sent Retry-After. Then one of its
-- jobs, the probe, stays in the leases until it is due; the others are parked. Each failure of the probe
-- doubles the pause, and the next probe is another job, so that a single bad object does not decide for its server.
-- KEYS[1] leases  KEYS[2] claimed  KEYS[3] last  KEYS[4] parked  KEYS[5] hosts  KEYS[6] host
-- KEYS[7] parked jobs of the host  KEYS[8] totals
-- ARGV[1] request id  ARGV[2] lease id  ARGV[3] holder  ARGV[4] host  ARGV[5] reason  ARGV[6] state
-- ARGV[7] 1 if the server has failed, 0 if it was not tried  ARGV[8] 1 if this is the job's first failure there
-- ARGV[9] the server's Retry-After in milliseconds, 0 if it sent none
-- ARGV[10] delay of this job in milliseconds, while the server is not known to fail
-- ARGV[11], ARGV[12] first and longest pause in milliseconds  ARGV[13] share of the pause, for jitter
-- ARGV[14] milliseconds, from when the job left the list, that it may wait  ARGV[15] counts
-- Returns {0} if the lease belongs to another claim, {1} if the job was parked, {2, milliseconds} if it was deferred,
-- or {3} if it has to try the server now.
local FAILURES_IN_A_ROW = 3
local FAILURES_SECONDS = 60
local earlier = recall(KEYS[3], ARGV[1])
if earlier then
    return {tonumber(earlier[1]), tonumber(earlier[2])}
end
local id, host, has_failed, asked_pause = ARGV[2], ARGV[4], ARGV[7] == '1', tonumber(ARGV[9])
local holder, since = unpack(call('HMGET', KEYS[2], id .. ':holder', id .. ':since'))
if holder ~= ARGV[3] then
    return {0}
end
check_leases(KEYS[1])
check_claimed(KEYS[2])
check_last(KEYS[3])
check_parking(KEYS[4], KEYS[7])
check_leases(KEYS[5])
call('EXPIRE', KEYS[5], PENDING_SECONDS)
call('ZRANGE', KEYS[7], 0, 0)
local moment = now()
local failures, pauses, probe = unpack(call('HMGET', KEYS[6], 'failures', 'pauses', 'probe'))
failures, pauses = tonumber(failures or 0), tonumber(pauses or 0)
local next_probe = tonumber(call('ZSCORE', KEYS[5], host) or nil)
local has_probe = probe and call('ZSCORE', KEYS[1], probe)
local is_probe = probe == id
local has_turn = is_probe or not has_probe

if not has_failed and (not next_probe or has_turn and moment >= next_probe) then
    if next_probe then
        call('HSET', KEYS[6], 'probe', id)
    end
    return {3}
end
if has_failed and ARGV[8] == '1' then
    failures = failures + 1
end
local is_failing = next_probe or asked_pause > 0 or failures >= FAILURES_IN_A_ROW
if has_failed and is_failing then
    if not next_probe or has_turn then
        pauses = pauses + 1
        local pause = math.min(tonumber(ARGV[12]), ARGV[11] * 2 ^ (pauses - 1)) * ARGV[13]
        next_probe = moment + math.floor(math.max(asked_pause, pause))
    else
        next_probe = math.max(next_probe, moment + asked_pause)
    end
end

local due, parks, successor = moment + ARGV[10], false, nil
count_text(KEYS[8], ARGV[15])
call('HSET', KEYS[2], id .. ':holder', '', id .. ':reason', ARGV[5], id .. ':uncounted', 1, id .. ':state', ARGV[6])
if is_failing then
    due = next_probe
    successor = is_probe and has_failed and next_of_host(KEYS[4], KEYS[7])
    parks = successor or not has_turn
    if successor then
        set_due(KEYS[1], due, successor)
    elseif parks and call('HGET', KEYS[2], probe .. ':holder') == '' then
        set_due(KEYS[1], due, probe)
    end
    probe = successor or has_turn and id or probe
    call('ZADD', KEYS[5], next_probe, host)
    call('EXPIRE', KEYS[5], PENDING_SECONDS)
end
call('HSET', KEYS[6], 'failures', failures, 'pauses', pauses, 'probe', is_failing and probe or '')
call('EXPIRE', KEYS[6], is_failing and PENDING_SECONDS or FAILURES_SECONDS)
if parks then
    call('ZADD', KEYS[4], (since or moment) + ARGV[14], id)
    call('ZADD', KEYS[7], moment, id)
    call('EXPIRE', KEYS[7], PENDING_SECONDS)
    call('ZREM', KEYS[1], id)
else
    set_due(KEYS[1], due, id)
end
local answer = parks and {1, 0} or {2, math.max(0, due - moment)}
remember(KEYS[3], ARGV[1], answer)
return answer
