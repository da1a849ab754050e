-- Put the only job into a private list, which expires: no step of its life leaves a payload that stays. Idempotent.
-- KEYS[1] list
-- ARGV[1] payload  ARGV[2] seconds to keep the list
-- Returns 1.
call('EXPIRE', KEYS[1], ARGV[2])
if call('LLEN', KEYS[1]) == 0 then
    call('RPUSH', KEYS[1], ARGV[1]) -- the first write: RPUSH has no check
    call('EXPIRE', KEYS[1], ARGV[2])
end
return 1
