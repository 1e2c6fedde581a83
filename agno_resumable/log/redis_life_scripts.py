"""The scripts by which a run comes into the Redis log, and leaves it."""

from __future__ import annotations

from .redis_script import Script

__all__ = ["CREATE", "RELEASE", "REMOVE", "RESERVE"]

# KEYS run events payload seq wake leases ends <six statuses> all <lists> [idempotency key]
# ARGV origin run lease|has key|key's value to take over|time of a key reserved elsewhere|has input|input|has metadata
#      |metadata|has options|options|<field, value>...
CREATE: Script = Script("""
if call('EXISTS', KEYS[1]) == 1 then return {1} end
local now = clock()
local lists, reserved = #KEYS, ARGV[6]
if ARGV[4] == '1' then
  lists = lists - 1
  local held = call('GET', KEYS[#KEYS])
  if held and held ~= ARGV[5] then return {2, held} end
  reserved = int(now)
end
local created = int(now)
local lease = int(now + ARGV[3])
local set = {'st', 'PENDING', 'fi', '0', 'nx', '0', 'g', '1', 'a', '1', 'v', '1', 'cr', created, 'up', created,
  'le', lease, 'tt', '0', 'bs', '0'}
if reserved ~= '' then
  set[#set + 1] = 'kt'
  set[#set + 1] = reserved
end
for i = 13, #ARGV do set[#set + 1] = ARGV[i] end
call('HSET', KEYS[1], unpack(set))
call('DEL', KEYS[2], KEYS[3])
for i = 7, 13 do call('ZREM', KEYS[i], ARGV[2]) end
if ARGV[7] == '1' then call('HSET', KEYS[3], 'i', ARGV[8]) end
if ARGV[9] == '1' then call('HSET', KEYS[3], 'm', ARGV[10]) end
if ARGV[11] == '1' then call('HSET', KEYS[3], 'o', ARGV[12]) end
if ARGV[4] == '1' then call('SET', KEYS[#KEYS], created .. ' ' .. ARGV[2]) end
call('ZADD', KEYS[6], lease, ARGV[2])
call('ZADD', KEYS[8], created, ARGV[2])
for i = 14, lists do call('ZADD', KEYS[i], created, ARGV[2]) end
tell(KEYS[4], KEYS[5], '1', '-', ARGV[1], ARGV[2])
return {0, seen(load(KEYS[1]))}
""")

# KEYS run events payload seq wake leases ends <six statuses> all <lists> [idempotency key]
# ARGV origin run created|finished before|value of the key
REMOVE: Script = Script("""
local row = load(KEYS[1])
local lists = #KEYS
if ARGV[5] ~= '' then lists = lists - 1 end
if (row[12] or '') ~= ARGV[3] then return {2} end
if row[6] and ARGV[4] ~= '' and not (row[14] and tonumber(row[14]) < tonumber(ARGV[4])) then
  if not row[14] then call('ZREM', KEYS[7], ARGV[2]) end
  return {3}
end
call('DEL', KEYS[1], KEYS[2], KEYS[3])
for i = 6, lists do call('ZREM', KEYS[i], ARGV[2]) end
if ARGV[5] ~= '' and call('GET', KEYS[#KEYS]) == ARGV[5] then call('DEL', KEYS[#KEYS]) end
if not row[6] then return {1} end
tell(KEYS[4], KEYS[5], row[11], 'g', ARGV[1], ARGV[2])
return {0}
""")

# KEYS idempotency key; ARGV run value to take over
RESERVE: Script = Script("""
local held = call('GET', KEYS[1])
local now = int(clock())
if held and held ~= ARGV[2] then return {2, held, now} end
call('SET', KEYS[1], now .. ' ' .. ARGV[1])
return {0, now}
""")

# KEYS idempotency key; ARGV value
RELEASE: Script = Script("""
if call('GET', KEYS[1]) == ARGV[1] then call('DEL', KEYS[1]) end
return {0}
""")
