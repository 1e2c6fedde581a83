"""What the Redis log does to one run while it lives."""

from __future__ import annotations

from .redis_script import Script

__all__ = ["APPEND", "CANCEL", "CLAIM", "HEAL", "OVERTAKE", "TRIM"]

# What is small goes with the wake-up: whoever follows the run needs not read it.
# KEYS run events payload seq wake leases ends pending running [the other four statuses, where one is given]
# ARGV origin connection run generation status has transcript|transcript|max bytes|ttl in ms|<count, JSON bytes, events>
APPEND: Script = Script("""
local row = load(KEYS[1])
local status = row[6]
if not status then return {1} end
local writer = ARGV[1] .. ' ' .. ARGV[2]
if row[20] and row[20] ~= writer then
  local origin, number = string.match(row[20], '^(%S+) (%d+)$')
  if origin == ARGV[1] and tonumber(number) > tonumber(ARGV[2]) then return {4} end
end
if row[9] ~= ARGV[4] then return {2, row[9]} end
if finished[status] then return {3, status} end
local given = ARGV[5]
if #ARGV < 10 and given == '' and ARGV[6] == '0' then
  if row[20] ~= writer then call('HSET', KEYS[1], 'w', writer) end
  return {0, seen(row)}
end
local now = clock()
local next, total = tonumber(row[8]), tonumber(row[18])
for i = 10, #ARGV, 3 do
  next = next + ARGV[i]
  call('XADD', KEYS[2], int(next) .. '-' .. ARGV[i], int(total), ARGV[i + 2])
  total = total + ARGV[i + 1]
end
local first, base, max = tonumber(row[7]), tonumber(row[19]), tonumber(ARGV[8])
if total - base > max then
  local from, kept = '-', nil
  while not kept do
    local found = call('XRANGE', KEYS[2], from, '+', 'COUNT', 16)
    for i = 1, #found do
      local last, count = string.match(found[i][1], '^(%d+)-(%d+)$')
      if tonumber(found[i][2][1]) >= total - max or tonumber(last) == next then
        kept = math.max(first, last - count)
        base = tonumber(found[i][2][1])
        break
      end
    end
    from = '(' .. found[#found][1]
  end
  if kept > first then
    first = kept
    call('XTRIM', KEYS[2], 'MINID', int(first + 1))
  end
end
local to = given
if to == '' then
  to = status
  if #ARGV > 9 and status == 'PENDING' then to = 'RUNNING' end
end
row[6], row[7], row[8], row[11], row[13] = to, int(first), int(next), int(row[11] + 1), int(now)
call('HSET', KEYS[1], 'st', to, 'fi', row[7], 'nx', row[8], 'v', row[11], 'up', row[13], 'tt', int(total),
  'bs', int(base), 'w', writer)
if ARGV[6] == '1' then call('HSET', KEYS[3], 't', ARGV[7]) end
if to ~= status then
  local lists = {PENDING = KEYS[8], RUNNING = KEYS[9], PAUSED = KEYS[10], COMPLETED = KEYS[11], ERROR = KEYS[12],
    CANCELLED = KEYS[13]}
  call('ZREM', lists[status] or KEYS[8], ARGV[3])
  call('ZADD', lists[to], row[12], ARGV[3])
end
if to ~= 'PENDING' and to ~= 'RUNNING' then
  call('HDEL', KEYS[1], 'le')
  call('ZREM', KEYS[6], ARGV[3])
  row[15] = false
end
if finished[to] then
  row[14] = row[13]
  call('HSET', KEYS[1], 'fn', row[14])
  call('ZADD', KEYS[7], row[14], ARGV[3])
  if ARGV[9] ~= '0' then
    for i = 1, 3 do call('PEXPIRE', KEYS[i], ARGV[9]) end
  end
end
local events
if #ARGV == 12 and to == status and to == 'RUNNING' and #ARGV[12] <= 2048 then
  events = row[8] .. ' ' .. ARGV[10] .. ' ' .. row[13] .. ' ' .. row[7] .. '\\n' .. ARGV[12]
end
tell(KEYS[4], KEYS[5], row[11], '-', ARGV[1] .. '.' .. ARGV[2], ARGV[3], events)
return {0, seen(row)}
""")

# KEYS run events payload seq wake leases ends <six statuses>
# ARGV origin run lease generation floor reopen
CLAIM: Script = Script("""
local row = load(KEYS[1])
local status = row[6]
if not status then return {1} end
local reopened = ARGV[6] == '1' and status == 'ERROR'
if finished[status] and not reopened then return {3, status} end
local generation = tonumber(row[9]) + 1
if ARGV[4] ~= '' then
  if tonumber(ARGV[4]) < generation then return {2, row[9]} end
  generation = tonumber(ARGV[4])
end
local now = clock()
if reopened or status == 'PAUSED' then row[6] = 'RUNNING' end
row[9], row[10], row[11], row[13] = int(generation), int(row[10] + 1), int(row[11] + 1), int(now)
row[15] = int(now + ARGV[3])
call('HSET', KEYS[1], 'st', row[6], 'g', row[9], 'a', row[10], 'v', row[11], 'up', row[13], 'le', row[15])
call('ZADD', KEYS[6], row[15], ARGV[2])
if ARGV[5] ~= '' and tonumber(ARGV[5]) > tonumber(row[8]) then
  row[7], row[8] = ARGV[5], ARGV[5]
  call('HSET', KEYS[1], 'fi', row[7], 'nx', row[8], 'bs', row[18])
  call('DEL', KEYS[2])
end
if row[6] ~= status then
  local from = {PAUSED = KEYS[10], ERROR = KEYS[12]}
  call('ZREM', from[status], ARGV[2])
  call('ZADD', KEYS[9], row[12], ARGV[2])
end
if reopened then
  row[14], row[16] = false, false
  call('HDEL', KEYS[1], 'fn', 'ca')
  call('HDEL', KEYS[3], 't')
  call('ZREM', KEYS[7], ARGV[2])
  for i = 1, 3 do call('PERSIST', KEYS[i]) end
end
tell(KEYS[4], KEYS[5], row[11], '-', ARGV[1], ARGV[2])
return whole(row, KEYS[3])
""")

# KEYS run payload seq wake; ARGV origin run
CANCEL: Script = Script("""
local row = load(KEYS[1])
if not row[6] then return {1} end
if not row[16] and not finished[row[6]] then
  row[16] = int(clock())
  row[11], row[13] = int(row[11] + 1), row[16]
  call('HSET', KEYS[1], 'ca', row[16], 'v', row[11], 'up', row[13])
  tell(KEYS[3], KEYS[4], row[11], 'c', ARGV[1], ARGV[2])
end
return whole(row, KEYS[2])
""")

_CUT = """
local function cut(row, first)
  local kept = call('XRANGE', KEYS[2], int(first + 1), '+', 'COUNT', 1)
  row[7], row[11], row[13] = int(first), int(row[11] + 1), int(clock())
  call('HSET', KEYS[1], 'fi', row[7], 'v', row[11], 'up', row[13], 'bs', kept[1] and kept[1][2][1] or row[18])
  call('XTRIM', KEYS[2], 'MINID', int(first + 1))
  tell(KEYS[3], KEYS[4], row[11], '-', ARGV[1], ARGV[2])
end
"""

# KEYS run events seq wake; ARGV origin run before
TRIM: Script = Script(
    _CUT
    + """
local row = load(KEYS[1])
if not row[6] then return {1} end
local before = math.min(tonumber(ARGV[3]), tonumber(row[8]))
if before > tonumber(row[7]) then cut(row, before) end
return {0, seen(row)}
"""
)

# The event at an index that should be there is not: what is left behind it becomes the run's first.
# KEYS run events seq wake; ARGV origin run index
HEAL: Script = Script(
    _CUT
    + """
local row = load(KEYS[1])
if not row[6] then return {1} end
local index, next = tonumber(ARGV[3]), tonumber(row[8])
if index >= tonumber(row[7]) and index < next then
  local kept = call('XRANGE', KEYS[2], int(index + 1), '+', 'COUNT', 1)
  local first = next
  if kept[1] then
    local last, count = string.match(kept[1][1], '^(%d+)-(%d+)$')
    first = last - count
  end
  if first > index then cut(row, first) end
end
return {0, seen(row)}
"""
)

# KEYS run seq wake leases; ARGV origin run lease patience <who can run it again>
OVERTAKE: Script = Script("""
local row = load(KEYS[1])
if not row[6] or not row[15] then
  call('ZREM', KEYS[4], ARGV[2])
  return {1}
end
local now = clock()
if tonumber(row[15]) > now then
  call('ZADD', KEYS[4], row[15], ARGV[2])
  return {2}
end
if tonumber(row[10]) < tonumber(row[17] or 1) and row[15] + ARGV[4] > now then
  local may = false
  for i = 5, #ARGV do may = may or (row[2] and ARGV[i] == row[1] .. ':' .. row[2]) end
  if not may then return {3} end
end
row[9], row[10], row[11], row[13] = int(row[9] + 1), int(row[10] + 1), int(row[11] + 1), int(now)
row[15] = int(now + ARGV[3])
call('HSET', KEYS[1], 'g', row[9], 'a', row[10], 'v', row[11], 'up', row[13], 'le', row[15])
call('ZADD', KEYS[4], row[15], ARGV[2])
tell(KEYS[2], KEYS[3], row[11], '-', ARGV[1], ARGV[2])
return {0, seen(row)}
""")
