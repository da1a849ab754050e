-- Read a page of a list, counted from its end. Read-only. No unread job is missed: claims take jobs from the head, and
-- pushes make the next page overlap.
-- KEYS[1] list
-- ARGV[1] the index to begin at, negative  ARGV[2] how many at most  ARGV[3] bytes of each payload to return
-- ARGV[4] bytes after which no further payload is returned
-- Returns {beginning of the payload, its bytes, fingerprint} for each, the last of the list first.
local found, room = {}, tonumber(ARGV[4])
local first, size = tonumber(ARGV[1]), call('LLEN', KEYS[1])
for index = first, math.max(first - ARGV[2] + 1, -size), -1 do
    if room <= 0 then
        break
    end
    local payload = call('LINDEX', KEYS[1], index)
    local beginning = string.sub(payload, 1, ARGV[3])
    room = room - #beginning
    found[#found + 1] = {beginning, #payload, fingerprint(payload)}
end
return found
