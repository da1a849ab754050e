-- Record that an image server answers: its parked jobs become due, and its failures are forgotten. Idempotent.
-- KEYS[1] leases  KEYS[2] parked  KEYS[3] hosts  KEYS[4] host  KEYS[5] parked jobs of the host
-- ARGV[1] host
-- Returns how many jobs became due.
local moment, woken = now(), 0
check_leases(KEYS[1])
check_parking(KEYS[2], KEYS[5])
local waiting = call('ZRANGE', KEYS[5], 0, -1)
call('ZREM', KEYS[3], ARGV[1])
call('EXPIRE', KEYS[4], 0)
for _, id in ipairs(waiting) do
    if call('ZREM', KEYS[2], id) == 1 then
        set_due(KEYS[1], moment, id)
        woken = woken + 1
    end
end
call('EXPIRE', KEYS[5], 0)
return woken
