"""The serializer is usable alone, and cheap to import."""

from __future__ import annotations

import json
import subprocess
import sys

FOREIGN = {"agno", "starlette", "anyio", "pydantic", "fastapi", "httpx", "asyncio", "logging", "orjson"}


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_serializer_loads_neither_agno_nor_a_web_framework() -> None:
    top_level = {name.partition(".")[0] for name in modules_after("import agno_resumable.sse")}
    assert not top_level & FOREIGN


def test_using_the_serializer_loads_orjson_and_nothing_else_of_weight() -> None:
    code = """
from dataclasses import dataclass
from agno_resumable.sse import Decoder, Identity, encode_event, error_event, format_sse_event
@dataclass
class Event:
    event: str = "E"
format_sse_event({"event": "E", "content": [1, 2]}), encode_event("text"), encode_event(Event()), encode_event(object())
error_event("team", "no", error_type="x", identity=Identity(run_id="r"))
Decoder().feed(b"data: a\\n\\n")
"""
    top_level = {name.partition(".")[0] for name in modules_after(code)}
    assert not top_level & (FOREIGN - {"orjson"})
