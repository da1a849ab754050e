-- Read the payloads of jobs that have left the list and are not dead-lettered. Read-only.
-- KEYS[1] claimed
-- ARGV[1] bytes of each payload to return  ARGV[2…] lease ids
-- Returns {beginning of the payload, its bytes} for each; for a job that has ended in the meantime, two empty values.
local found = {}
for index = 2, #ARGV do
    local payload = call('HGET', KEYS[1], ARGV[index] .. ':payload') or ''
    found[#found + 1] = {string.sub(payload, 1, ARGV[1]), #payload}
end
return found
