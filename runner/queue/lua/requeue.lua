-- Put the job of a dead letter at the end of the list, as if it were new, and drop the letter. The same call again
-- returns the same.
-- KEYS[1] list  KEYS[2] dead  KEYS[3] dead index  KEYS[4] payload of the letter  KEYS[5] last
-- ARGV[1] word of this call  ARGV[2] id of the letter
-- Returns 1, 0 where there is no such letter, or -1 where its payload is no longer kept.
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
call('DEL', KEYS[5]) -- checks DEL; the answer to the caller's previous call is no longer needed
call('RPUSH', KEYS[1], payload) -- the first change: it could not be checked
call('DEL', KEYS[4])
forget_letter(KEYS[2], KEYS[3], ARGV[2])
remember(KEYS[5], ARGV[1], {1})
return 1
