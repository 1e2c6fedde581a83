"""How a Lua script of the Redis log is put together, and the codes with which it refuses.

A script is one atomic step. Every key that one writes is declared, and all of them lie in one slot. It refuses before
it writes, and its first write is one that a server without memory refuses, so that none ends halfway. What it returns
begins with a code: 0, or why it was refused.
"""

from __future__ import annotations

import hashlib
import re

__all__ = ["FINISHED", "LATE", "MISSING", "STALE", "Script"]

MISSING, STALE, FINISHED, LATE = 1, 2, 3, 4

# A run's row is what `load` gives: redis_keys.FIELDS in their order (6 status, 7 first, 8 next, 9 generation,
# 10 attempts, 11 version, 12 created, 13 updated, 14 finished, 15 lease, 16 cancel, 17 most attempts), then 18 the
# bytes of all events there ever were, 19 those of them that are gone, 20 the connection that wrote last, 21 when its
# key was reserved.
_PARTS = {
    "finished": "local finished = {COMPLETED = true, ERROR = true, CANCELLED = true}\n",
    "int": "local function int(n) return string.format('%.0f', n) end\n",
    "clock": """
local function clock()
  local time = call('TIME')
  return time[1] * 1000000 + time[2]
end
""",
    "load": """
local function load(key)
  return call('HMGET', key, 'f', 'c', 's', 'u', 'k', 'st', 'fi', 'nx', 'g', 'a', 'v', 'cr', 'up', 'fn', 'le', 'ca',
    'ma', 'tt', 'bs', 'w', 'kt')
end
""",
    "seen": """
local function seen(row)
  row[18] = nil
  return row
end
""",
    "tell": """
local function tell(seq, wake, version, flag, origin, run, events)
  local told = int(call('INCR', seq)) .. ' ' .. version .. ' ' .. flag .. ' ' .. origin .. ' ' .. run
  if events then
    call('XADD', wake, 'MAXLEN', '~', '4096', '*', 'w', told, 'e', events)
  else
    call('XADD', wake, 'MAXLEN', '~', '4096', '*', 'w', told)
  end
end
""",
    "whole": """
local function whole(row, payload)
  local heavy = call('HMGET', payload, 'i', 'm', 'o', 't')
  return {0, seen(row), heavy[1], heavy[2], heavy[3], heavy[4]}
end
""",
}


class Script:
    """A script, known to the server by its digest.

    Args:
        body: Lua, behind the functions that it calls: the server makes them anew at each call.
    """

    def __init__(self, body: str) -> None:
        self.source: str = body
        for name, part in reversed(_PARTS.items()):
            if re.search(rf"\b{name}[(\[]", self.source):
                self.source = part + self.source
        self.source = "local call = redis.call\n" + self.source
        self.sha: str = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
