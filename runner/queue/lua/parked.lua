-- List parked and announced jobs. Read-only.
-- KEYS[1] parked
-- ARGV[1] 1: only those that have timed out, else 0
-- ARGV[2] longest possible wait in milliseconds: a longer one means that the clock was set back
-- Returns their ids, in the order in which they time out.
if ARGV[1] ~= '1' then
    return call('ZRANGE', KEYS[1], 0, -1)
end
local moment = now()
local overdue = call('ZRANGEBYSCORE', KEYS[1], '-inf', moment)
for _, id in ipairs(call('ZRANGEBYSCORE', KEYS[1], string.format('(%.0f', moment + ARGV[2]), '+inf')) do
    overdue[#overdue + 1] = id
end
return overdue
