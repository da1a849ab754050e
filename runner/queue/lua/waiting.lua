-- Look at a page of a list, counted from its end, without changing anything. Larger payloads than asked for are left
-- out.
-- KEYS[1] list
-- ARGV[1], ARGV[2] the first and the last index, negative  ARGV[3] bytes
-- Returns how many jobs the page has, and the payloads.
local page = call('LRANGE', KEYS[1], ARGV[1], ARGV[2])
local found = {}
for index = 1, #page do
    if #page[index] <= tonumber(ARGV[3]) then
        found[#found + 1] = page[index]
    end
end
return {#page, found}
