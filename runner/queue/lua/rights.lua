-- Try commands that the scripts and the client send, without changing anything.
-- KEYS[1] a key that does not exist; ARGV the commands
-- Returns the commands that the user may not run. Other errors (a full Redis, a replica) are left to the
-- operations themselves.
local arguments = {
    ZREM = {''}, LINDEX = {0}, LPOP = {0}, LRANGE = {0, 0}, LREM = {0, ''}, SET = {'', 'XX', 'PX', 1}, EXPIRE = {1},
    ZADD = {'XX', 0, ''}, ZRANGE = {0, 0}, ZRANGEBYSCORE = {0, 0}, ZREMRANGEBYSCORE = {0, 0}, ZCOUNT = {0, 0},
    ZSCORE = {''}, HGET = {''}, HMGET = {''}, HDEL = {''}, HSTRLEN = {''}, HEXISTS = {''}, SREM = {''},
    HSET = {'', '', ''}, -- one argument too many, which is noticed after the rights
    RPUSH = {''}, SADD = {''},
}
local key = KEYS[1]
local refused = {}

local function try(command)
    local reply = command == 'TIME' and redis.pcall(command)
        or redis.pcall(command, key, unpack(arguments[command] or {}))
    local message = type(reply) == 'table' and reply.err or ''
    if string.find(message, 'permissions to run', 1, true) or string.find(message, "can't run this command", 1, true) then
        refused[#refused + 1] = command
    end
end

for _, command in ipairs(ARGV) do
    if command == 'RPUSH' or command == 'SADD' then -- they change nothing only where another type is in their way
        local reply = redis.pcall('SET', key, '', 'PX', 1)
        if not reply.err then
            try(command)
        end
    else
        try(command)
    end
end
redis.pcall('DEL', key)
return refused
