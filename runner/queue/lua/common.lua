-- Stands before every script of this folder (see `scripts.py`).
--
-- A lease is a member of KEYS `leases` (its score: the moment it falls due) and these fields of the hash `claimed`:
--   ID:payload   what the API pushed, byte for byte
--   ID:attempts  how often it was claimed, not counting claims that were released
--   ID:holder    OWNER#CLAIM of who has it; empty while it is put off
--   ID:since     when it left the list
--   ID:reason    why it was last put off
--   ID:spared    there after a release: the next claim is not counted
--
-- Redis does not roll scripts back: a command that it refuses (a missing right, a key of another type) ends the
-- script, and every earlier write of the script stays. So a script that changes something first calls the `check_`
-- functions for its keys. They send each command of the script in a form that changes nothing, and meet every
-- refusal while nothing has been written. HSET and RPUSH have no such form: one of them is the first real write.
-- Keys need no check for key patterns: EVAL itself is refused unless the user may read and write all of KEYS.
--
-- A Redis that is full (maxmemory) refuses a script's first write if that needs memory, and none after another write
-- command, even one that changed nothing. The ZREM of a check needs no memory and comes first, so leases are kept and
-- settled on a full Redis too.

local REMEMBERED_SECONDS = 3600

-- As redis.call, with an error that names the command and the key: not every server's own message does.
local function call(command, ...)
    local reply = redis.pcall(command, ...)
    if type(reply) == 'table' and reply.err then
        error(command .. ' on ' .. (... or 'the server') .. ': ' .. reply.err, 0)
    end
    return reply
end

-- No lease and no dead letter has the empty id that the checks use.

local function check_leases(leases)
    call('ZREM', leases, '')
    call('ZADD', leases, 'XX', 0, '')
end

local function check_claimed(claimed)
    call('HDEL', claimed, '')
    call('HGET', claimed, '')
    call('HMGET', claimed, '')
end

local function check_dead(dead, index)
    call('ZREM', index, '')
    call('ZADD', index, 'XX', 0, '')
    call('HDEL', dead, '')
    call('ZRANGEBYSCORE', index, '-inf', '-inf', 'LIMIT', 0, 0)
end

local function check_last(last)
    call('SET', last, '', call('GET', last) and 'NX' or 'XX')
end

local function now()
    local time = call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function fall_due(leases, moment, id)
    call('ZADD', leases, moment, id)
end

local function forget(leases, claimed, id)
    call('ZREM', leases, id)
    call('HDEL', claimed, id .. ':payload', id .. ':attempts', id .. ':holder', id .. ':since', id .. ':reason',
        id .. ':spared')
end

local function forget_letter(dead, index, id)
    call('ZREM', index, id)
    call('HDEL', dead, id)
end

local function forget_old_letters(dead, index, moment)
    for _, id in ipairs(call('ZRANGEBYSCORE', index, '-inf', moment, 'LIMIT', 0, 100)) do
        forget_letter(dead, index, id)
    end
end

-- A command whose reply was lost is sent again. `last` holds the word of its caller's latest call and that call's
-- answer (ids or a number), so that the repetition is answered alike and changes nothing.

local function remember(last, word, answer)
    call('SET', last, word .. ' ' .. table.concat(answer, ' '), 'EX', REMEMBERED_SECONDS)
end

local function recall(last, word)
    local text = call('GET', last)
    if not text or string.sub(text, 1, #word + 1) ~= word .. ' ' then
        return nil
    end
    local answer = {}
    for item in string.gmatch(string.sub(text, #word + 2), '%S+') do
        answer[#answer + 1] = item
    end
    return answer
end
