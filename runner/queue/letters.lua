-- Look at dead letters, the oldest first, without changing anything.
-- KEYS[1] dead  KEYS[2] dead index
-- ARGV[1], ARGV[2] score range of the moment of burial  ARGV[3] how many at most
-- Returns {id, letter, since, buried} for each, as strings.
local entries = redis.call('ZRANGEBYSCORE', KEYS[2], ARGV[1], ARGV[2], 'WITHSCORES', 'LIMIT', 0, ARGV[3])
local found = {}
for index = 1, #entries, 2 do
    local id = entries[index]
    local letter, since = unpack(redis.call('HMGET', KEYS[1], id, id .. ':since'))
    found[#found + 1] = {id, letter or '{}', since or entries[index + 1], entries[index + 1]}
end
return found
