-- Count one page of dead letters by error code. Read-only.
-- KEYS[1] dead  KEYS[2] dead index
-- ARGV[1] milliseconds to keep dead letters  ARGV[2] how many to skip  ARGV[3] how many to count
-- Returns the size of the page, and then each code and its number.
local ids = call('ZRANGEBYSCORE', KEYS[2], string.format('%.0f', now() - ARGV[1]), '+inf', 'LIMIT', ARGV[2], ARGV[3])
local numbers, found = {}, {#ids}
for _, letter in ipairs(#ids > 0 and call('HMGET', KEYS[1], unpack(ids)) or {}) do
    local code = letter and string.match(letter, '"error": {"code": "([^"]*)"') or 'unknown'
    numbers[code] = (numbers[code] or 0) + 1
end
for code, number in pairs(numbers) do
    found[#found + 1] = code
    found[#found + 1] = number
end
return found
