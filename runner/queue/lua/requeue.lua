-- Append the job of a dead letter to its list, as if it were new, and delete the dead letter. Idempotent per request
-- id.
-- KEYS[1] list  KEYS[2] dead  KEYS[3] dead index  KEYS[4] payload of the dead letter  KEYS[5] last
-- KEYS[6] totals
-- ARGV[1] request id  ARGV[2] id of the dead letter
-- Returns 1, 0 if there is no such dead letter, or -1 if its payload has expired.
if recall(KEYS[5], ARGV[1]) then
    return 1
end
if not call('ZSCORE', KEYS[3], ARGV[2]) then
    return 0
end
local payload = call('GET', KEYS[4])
if not payload then
    return -1
end
check_dead(KEYS[2], KEYS[3])
check_last(KEYS[5])
call('DEL', KEYS[5]) -- checks DEL: the caller's previous answer is no longer needed
count(KEYS[6], {taken = 0}) -- checks HSET
call('RPUSH', KEYS[1], payload) -- the first write: RPUSH has no check
count(KEYS[6], {requeues = 1})
call('DEL', KEYS[4])
remove_dead_letter(KEYS[2], KEYS[3], ARGV[2])
remember(KEYS[5], ARGV[1], {1})
return 1
