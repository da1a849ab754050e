-- Try every command that the scripts and the client send, without changing anything.
-- KEYS[1] a key that does not exist; ARGV[1] 'LREM' to try that too
-- Returns the commands that the user may not run. Other errors (a full Redis, a replica) are left to the
-- operations themselves.
local key = KEYS[1]
local refused = {}

local function try(command, ...)
    local reply = redis.pcall(command, ...)
    local message = type(reply) == 'table' and reply.err or ''
    if string.find(message, 'permissions to run', 1, true) or string.find(message, "can't run this command", 1, true) then
        refused[#refused + 1] = command
        return false
    end
    return true
end

try('TIME')
try('ZREM', key, '')
try('LLEN', key)
try('LINDEX', key, 0)
try('LPOP', key, 0)
try('LRANGE', key, 0, 0)
try('GET', key)
try('SET', key, '', 'XX')
try('PTTL', key)
try('EXPIRE', key, 1)
try('ZADD', key, 'XX', 0, '')
try('ZRANGE', key, 0, 0)
try('ZRANGEBYSCORE', key, 0, 0)
try('ZREMRANGEBYSCORE', key, 0, 0)
try('ZCOUNT', key, 0, 0)
try('ZCARD', key)
try('ZSCORE', key, '')
try('HGET', key, '')
try('HMGET', key, '')
try('HDEL', key, '')
try('HSTRLEN', key, '')
try('HEXISTS', key, '')
try('SREM', key, '')
try('SCARD', key)
if ARGV[1] == 'LREM' then
    try('LREM', key, 0, '')
end
if try('DEL', key) then -- these have no form that changes nothing
    try('RPUSH', key, '')
    redis.pcall('DEL', key)
    try('HSET', key, '', '')
    redis.pcall('DEL', key)
    try('SADD', key, '')
    redis.pcall('DEL', key)
end
return refused
