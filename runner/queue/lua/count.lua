-- Add counts that belong to no lease, and store the summary of a run. Idempotent per request id.
-- KEYS[1] totals  KEYS[2] last  KEYS[3] runs
-- ARGV[1] request id  ARGV[2] counts  ARGV[3] summary, empty for none  ARGV[4] how many summaries to keep
-- ARGV[5] seconds after which a private queue expires, 0 for others
-- Returns 1.
if not recall(KEYS[2], ARGV[1]) then
    check_leases(KEYS[3]) -- a sorted set too
    local ended = now()
    call('ZRANGE', KEYS[3], 0, 0)
    check_last(KEYS[2])
    keep_for({KEYS[1], KEYS[3]}, ARGV[5]) -- here it is a check
    count_text(KEYS[1], ARGV[2])
    if ARGV[3] ~= '' then
        call('ZADD', KEYS[3], ended, ARGV[3])
        for _, summary in ipairs(call('ZRANGE', KEYS[3], 0, -1 - ARGV[4])) do
            call('ZREM', KEYS[3], summary)
        end
    end
    keep_for({KEYS[1], KEYS[3]}, ARGV[5])
    remember(KEYS[2], ARGV[1], {1})
end
return 1
