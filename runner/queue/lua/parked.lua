-- Look at the parked and announced jobs without changing anything.
-- KEYS[1] parked
-- Returns their ids, those that wait the shortest first.
return call('ZRANGE', KEYS[1], 0, -1)
