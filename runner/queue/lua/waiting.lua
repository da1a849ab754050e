-- Read a page of a list, counted from its end. Read-only.
-- KEYS[1] list
-- ARGV[1], ARGV[2] first and last index, negative  ARGV[3] largest payload to return
-- Returns how many jobs the page has, and their payloads.
local page = call('LRANGE', KEYS[1], ARGV[1], ARGV[2])
local found = {}
for index = 1, #page do
    if #page[index] <= tonumber(ARGV[3]) then
        found[#found + 1] = page[index]
    end
end
return {#page, found}
