-- Wake parked jobs: those that wait only for the given photos, those that have timed out, or all. A job that
-- was announced and is still leased is only removed from `parked`: its holder notices. Idempotent.
-- KEYS[1] leases  KEYS[2] claimed  KEYS[3] parked  KEYS[4…] pending of each job
-- ARGV[1] 1 to wake all, else 0  ARGV[2] longest possible wait in milliseconds: a longer one means that the clock was
-- set back
-- ARGV[3] number of jobs  ARGV[4…] their ids, then the photos whose processing has ended
-- Returns the ids of the jobs that have become due.
local moment = now()
local count = tonumber(ARGV[3])
local woken = {}

local function is_over(pending, deadline)
    for first = 4 + count, #ARGV, 1000 do
        call('SREM', pending, unpack(ARGV, first, math.min(first + 999, #ARGV)))
    end
    local left = deadline - moment
    return call('SCARD', pending) == 0 or left <= 0 or left > tonumber(ARGV[2]) or ARGV[1] == '1'
end

check_leases(KEYS[1])
call('HEXISTS', KEYS[2], '')
for index = 1, count do
    local id, pending = ARGV[3 + index], KEYS[3 + index]
    local deadline = call('ZSCORE', KEYS[3], id)
    check_parking(KEYS[3], pending)
    call('SCARD', pending)
    if deadline and is_over(pending, tonumber(deadline)) then
        if not call('ZSCORE', KEYS[1], id) and call('HEXISTS', KEYS[2], id .. ':payload') == 1 then
            call('ZADD', KEYS[1], moment, id) -- before it leaves `parked`: so it is always in one of them
            woken[#woken + 1] = id
        end
        leave_parking(KEYS[3], pending, id)
    end
end
return woken
