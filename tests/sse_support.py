"""What the tests of ``agno_resumable.sse`` judge by: written from the standards, with nothing of the library."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


def strict_json(text: str | bytes) -> Any:
    """Parse JSON as the RFC has it: no NaN, no infinities, no name twice in an object, valid UTF-8."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        assert len(result) == len(pairs), "a name stands twice in an object"
        return result

    if isinstance(text, bytes):
        text = text.decode("utf-8")
    text.encode("utf-8")
    return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)


def same_json(left: Any, right: Any) -> bool:
    """Equality of parsed JSON that tells 1, 1.0 and true apart."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same_json(value, right[key]) for key, value in left.items())
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same_json, left, right))
    return bool(left == right)


class ReferenceFrame(NamedTuple):
    event: str
    data: str
    id: str
    retry: int | None


def reference_frames(stream: bytes) -> tuple[list[ReferenceFrame], str]:
    """The frames of a whole stream and the last event id, by the letter of the HTML standard, 9.2.5 and 9.2.6."""
    text = stream.decode("utf-8", "replace")
    if text.startswith("\ufeff"):
        text = text[1:]
    lines: list[str] = []
    line = ""
    position = 0
    while position < len(text):
        character = text[position]
        position += 1
        if character == "\r":
            if text[position : position + 1] == "\n":
                position += 1
            lines.append(line)
            line = ""
        elif character == "\n":
            lines.append(line)
            line = ""
        else:
            line += character
    # what is left in `line` has no end, and belongs to a block that is not finished

    frames: list[ReferenceFrame] = []
    data = event = last_event_id_buffer = last_event_id = ""
    retry: int | None = None
    for line in lines:
        if line == "":
            last_event_id = last_event_id_buffer
            if data != "":
                if data.endswith("\n"):
                    data = data[:-1]
                frames.append(ReferenceFrame(event or "message", data, last_event_id, retry))
            data = event = ""
            retry = None
            continue
        if line.startswith(":"):
            continue
        if ":" in line:
            name, value = line[: line.index(":")], line[line.index(":") + 1 :]
            if value.startswith(" "):
                value = value[1:]
        else:
            name, value = line, ""
        if name == "event":
            event = value
        elif name == "data":
            data += value + "\n"
        elif name == "id":
            if "\0" not in value:
                last_event_id_buffer = value
        elif name == "retry" and value != "" and all(character in "0123456789" for character in value):
            retry = int(value)
    return frames, last_event_id


def single_frame(frame: str) -> tuple[str, Any]:
    """The event name and the parsed data of a text that must be exactly one frame, whoever reads it."""
    frames, _ = reference_frames(frame.encode("utf-8"))
    assert len(frames) == 1, frame
    lines = frame.splitlines()  # as clients in Python do, which end lines at far more than CR and LF
    assert [line.partition(": ")[0] for line in lines] == ["event", "data", ""], frame
    assert frames[0].event == lines[0].removeprefix("event: ")
    assert frames[0].event.isprintable()
    assert frames[0].data == lines[1].removeprefix("data: ")
    data = strict_json(frames[0].data)
    assert isinstance(data, dict)
    assert data
    return frames[0].event, data
