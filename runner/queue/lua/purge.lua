-- Drop a dead letter with its payload. The same call again returns the same.
-- KEYS[1] dead  KEYS[2] dead index  KEYS[3] payload of the letter  KEYS[4] last
-- ARGV[1] word of this call  ARGV[2] id of the letter
-- Returns 1, or 0 where there is no such letter.
if recall(KEYS[4], ARGV[1]) then
    return 1
end
if not call('ZSCORE', KEYS[2], ARGV[2]) then
    return 0
end
check_dead(KEYS[1], KEYS[2])
check_last(KEYS[4])
call('DEL', KEYS[3]) -- first: it could not be checked
forget_letter(KEYS[1], KEYS[2], ARGV[2])
remember(KEYS[4], ARGV[1], {1})
return 1
