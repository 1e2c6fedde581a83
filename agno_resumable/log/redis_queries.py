"""What the Redis log reads in one atomic step, and its scripts on many runs: leases, lists, intents."""

from __future__ import annotations

from .redis_life_scripts import CREATE, RELEASE, REMOVE, RESERVE
from .redis_script import Script
from .redis_scripts import APPEND, CANCEL, CLAIM, HEAL, OVERTAKE, TRIM

__all__ = ["DUE", "FORGET", "GET", "INTEND", "INTENTS", "LIST", "READ", "RENEW", "SCRIPTS"]

# KEYS run payload
GET: Script = Script("""
local row = load(KEYS[1])
if not row[6] then return {1} end
return whole(row, KEYS[2])
""")

# An entry's size is known only when it is read, so only as many are read at a time as the page may usually hold. What
# should be there and is not (evicted, trimmed by somebody, lost with the server's memory) is told by its index.
# KEYS run events; ARGV after limit max bytes
READ: Script = Script("""
local row = load(KEYS[1])
if not row[6] then return {1} end
local limit, bytes = tonumber(ARGV[2]), tonumber(ARGV[3])
local at, next = math.max(ARGV[1] + 1, tonumber(row[7])), tonumber(row[8])
local entries, lost = {}, -1
if limit > 0 and at < next then
  local usual = (row[18] - row[19]) / math.max(1, call('XLEN', KEYS[2])) + 64
  local count = math.max(1, math.min(256, next - at, math.floor(bytes / usual)))
  local from, size, stop = int(at + 1), 0, at + limit
  while at < stop and at < next and size < bytes and lost < 0 do
    local found = call('XRANGE', KEYS[2], from, '+', 'COUNT', count)
    if #found == 0 then lost = at end
    for i = 1, #found do
      local last, length = string.match(found[i][1], '^(%d+)-(%d+)$')
      if last - length > at then
        lost = at
        break
      end
      at = tonumber(last)
      entries[#entries + 1] = found[i][1]
      entries[#entries + 1] = found[i][2][2]
      size = size + #found[i][2][2]
      if at >= stop or size >= bytes then break end
      from = '(' .. found[i][1]
    end
    count = math.max(1, math.min(256, math.floor((bytes - size) / (size * 2 / #entries + 1))))
  end
end
return {0, seen(row), entries, lost}
""")

# KEYS leases <runs>; ARGV lease <run, generation>...; returns the positions of those that are lost
RENEW: Script = Script("""
local expires = int(clock() + ARGV[1])
local lost = {0}
for i = 2, #KEYS do
  local held = call('HMGET', KEYS[i], 'g', 'st')
  if held[1] == ARGV[i * 2 - 1] and (held[2] == 'RUNNING' or held[2] == 'PENDING') then
    call('HSET', KEYS[i], 'le', expires)
    call('ZADD', KEYS[1], expires, ARGV[i * 2 - 2])
  else
    lost[#lost + 1] = i - 2
  end
end
return lost
""")

# KEYS leases; ARGV offset limit
DUE: Script = Script("""
return {0, call('ZRANGEBYSCORE', KEYS[1], '-inf', int(clock()), 'LIMIT', ARGV[1], ARGV[2])}
""")

# Which runs stand in all of the lists, newest first; members of the first whose run is gone come apart.
# KEYS list <other lists>; ARGV highest score|limit|most to look at|what the runs' keys begin with
LIST: Script = Script("""
local found, gone, limit, most = {}, {}, tonumber(ARGV[2]), tonumber(ARGV[3])
local offset, score, more = 0, ARGV[1], 0
while #found < limit * 2 do
  if offset >= most then
    more = 1
    break
  end
  local step = call('ZREVRANGEBYSCORE', KEYS[1], ARGV[1], '-inf', 'WITHSCORES', 'LIMIT', offset, 100)
  if #step == 0 then break end
  for i = 1, #step, 2 do
    score = step[i + 1]
    local fits = true
    for k = 2, #KEYS do
      fits = fits and call('ZSCORE', KEYS[k], step[i])
    end
    if fits then
      local row = load(ARGV[4] .. step[i])
      if row[6] then
        found[#found + 1] = step[i]
        found[#found + 1] = seen(row)
        if #found >= limit * 2 then break end
      else
        gone[#gone + 1] = step[i]
      end
    end
  end
  offset = offset + 100
end
return {0, found, gone, more, score}
""")

# A run that is gone leaves a list. KEYS run list; ARGV run
FORGET: Script = Script("""
if call('EXISTS', KEYS[1]) == 0 then call('ZREM', KEYS[2], ARGV[1]) end
return {0}
""")

# KEYS intents intended seq wake; ARGV origin run ttl, empty to drop
INTEND: Script = Script("""
local version
if ARGV[3] == '' then
  if call('ZREM', KEYS[1], ARGV[2]) == 0 then return {0, tonumber(call('GET', KEYS[2]) or 0)} end
  version = call('INCR', KEYS[2])
else
  local now = clock()
  version = call('INCR', KEYS[2])
  call('ZREMRANGEBYSCORE', KEYS[1], '-inf', int(now))
  call('ZADD', KEYS[1], 'GT', int(now + ARGV[3]), ARGV[2])
end
tell(KEYS[3], KEYS[4], int(version), 'i', ARGV[1], '')
return {0, version}
""")

# KEYS intents intended; ARGV limit
INTENTS: Script = Script("""
local live = call('ZREVRANGEBYSCORE', KEYS[1], '+inf', '(' .. int(clock()), 'LIMIT', 0, ARGV[1])
return {0, tonumber(call('GET', KEYS[2]) or 0), live}
""")

SCRIPTS: tuple[Script, ...] = (
    APPEND,
    CANCEL,
    CLAIM,
    CREATE,
    DUE,
    FORGET,
    GET,
    HEAL,
    INTEND,
    INTENTS,
    LIST,
    OVERTAKE,
    READ,
    RELEASE,
    REMOVE,
    RENEW,
    RESERVE,
    TRIM,
)
