-- Delete a dead letter and its payload. Idempotent per request id.
-- KEYS[1] dead  KEYS[2] dead index  KEYS[3] payload of the dead letter  KEYS[4] last
-- ARGV[1] request id  ARGV[2] id of the dead letter
-- Returns 1, or 0 if there is no such dead letter.
if recall(KEYS[4], ARGV[1]) then
    return 1
end
if not call('ZSCORE', KEYS[2], ARGV[2]) then
    return 0
end
check_dead(KEYS[1], KEYS[2])
check_last(KEYS[4])
call('DEL', KEYS[3]) -- the first write: DEL has no check
remove_dead_letter(KEYS[1], KEYS[2], ARGV[2])
remember(KEYS[4], ARGV[1], {1})
return 1
