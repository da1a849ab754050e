-- List parked and announced jobs. Read-only.
-- KEYS[1] parked
-- Returns their ids, the first to time out first.
return call('ZRANGE', KEYS[1], 0, -1)
