-- Announce that a leased job is about to be parked, and for which photos. Only for its holder. From then on `wake`
-- applies to it; the holder queries PostgreSQL once more for pending photos, and only then parks the job.
-- KEYS[1] claimed  KEYS[2] parked  KEYS[3] pending
-- ARGV[1] lease id  ARGV[2] holder  ARGV[3] milliseconds, from when the job left the list, that it may wait
-- ARGV[4…] photo ids, at least one and at most a thousand
-- Returns 1, or 0 if the lease belongs to another claim.
local id = ARGV[1]
local holder, since = unpack(call('HMGET', KEYS[1], id .. ':holder', id .. ':since'))
if holder ~= ARGV[2] then
    return 0
end
local deadline = (since or now()) + ARGV[3]
check_parking(KEYS[2], KEYS[3])
leave_parking(KEYS[2], KEYS[3], id)
call('SADD', KEYS[3], unpack(ARGV, 4)) -- the first write: SADD has no check
call('EXPIRE', KEYS[3], PENDING_SECONDS)
call('ZADD', KEYS[2], deadline, id)
return 1
