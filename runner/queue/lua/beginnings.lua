-- Look at the payloads of jobs that have left the list and are not dead, without changing anything.
-- KEYS[1] claimed
-- ARGV[1] bytes of each payload to return  ARGV[2…] lease ids
-- Returns {beginning of the payload, its bytes} for each; of a job that has ended meanwhile, two empty values.
local found = {}
for index = 2, #ARGV do
    local payload = call('HGET', KEYS[1], ARGV[index] .. ':payload') or ''
    found[#found + 1] = {string.sub(payload, 1, ARGV[1]), #payload}
end
return found
