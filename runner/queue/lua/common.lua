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
-- A Redis that is full (maxmemory) refuses a script's first write if that needs memory, and none after another
-- write was made. So each script frees first: leases are kept and settled on a full Redis too.

local REMEMBERED_SECONDS = 3600

local function now()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function fall_due(leases, moment, id)
    redis.call('ZREM', leases, id)
    redis.call('ZADD', leases, moment, id)
end

local function forget(leases, claimed, id)
    redis.call('ZREM', leases, id)
    redis.call('HDEL', claimed, id .. ':payload', id .. ':attempts', id .. ':holder', id .. ':since', id .. ':reason',
        id .. ':spared')
end

local function forget_letter(dead, index, id)
    redis.call('ZREM', index, id)
    redis.call('HDEL', dead, id)
end

local function forget_old_letters(dead, index, moment)
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', index, '-inf', moment, 'LIMIT', 0, 100)) do
        forget_letter(dead, index, id)
    end
end

-- A command whose reply was lost is sent again. `last` holds the word of its caller's latest call and that call's
-- answer (ids or a number), so that the repetition is answered alike and changes nothing.

local function remember(last, word, answer)
    redis.call('SET', last, word .. ' ' .. table.concat(answer, ' '), 'EX', REMEMBERED_SECONDS)
end

local function recall(last, word)
    local text = redis.call('GET', last)
    if not text or string.sub(text, 1, #word + 1) ~= word .. ' ' then
        return nil
    end
    local answer = {}
    for item in string.gmatch(string.sub(text, #word + 2), '%S+') do
        answer[#answer + 1] = item
    end
    return answer
end
