-- Count what belongs to no lease. Idempotent per request id.
-- KEYS[1] totals  KEYS[2] last
-- ARGV[1] request id  ARGV[2] counts
-- Returns 1.
if not recall(KEYS[2], ARGV[1]) then
    check_last(KEYS[2])
    local counts = {}
    add_counts(counts, ARGV[2])
    count(KEYS[1], counts)
    remember(KEYS[2], ARGV[1], {1})
end
return 1
