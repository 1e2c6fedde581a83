"""agno's ``format_sse_event`` against this library's, on the same events, in alternating rounds.

Run: ``python benchmarks/bench_serializer.py [--rounds 40] [--json]``. Prints the median CPU time per event and the
ratio, and exits with 1 if a ratio is below its gate (issue 2, "Speed").
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from time import process_time
from typing import Any

from agno.metrics import ModelMetrics, RunMetrics, ToolCallMetrics
from agno.models.response import ToolExecution
from agno.os.utils import format_sse_event as agno_format
from agno.run.agent import RunCompletedEvent, RunContentEvent, ToolCallCompletedEvent

from agno_resumable.sse import encode_event, format_sse_event

GATES = {"RunContent": 14.0, "ToolCallCompleted": 4.0, "RunCompleted with metrics": 2.0}
IDENTITY: dict[str, Any] = {
    "agent_id": "assistant",
    "agent_name": "Assistant",
    "run_id": "5a3e4f6e-5d54-4d52-a1b4-8f54a0c2f6b1",
    "session_id": "0b6f2a4e-55b0-4a47-94c6-1f4f2f3f9c11",
}


def events() -> dict[str, Any]:
    """One event of each kind, filled as agno fills them."""
    tool = ToolExecution(
        tool_call_id="call_1",
        tool_name="search",
        tool_args={"query": "durable streams", "limit": 5},
        tool_call_error=False,
        result="Five results, the first of which is the one.",
        metrics=ToolCallMetrics(start_time=1.5, end_time=1.75, duration=0.25),
    )
    metrics = RunMetrics(
        input_tokens=1200,
        output_tokens=340,
        total_tokens=1540,
        time_to_first_token=0.31,
        duration=4.2,
        details={
            "model": [
                ModelMetrics(id="model-1", provider="Provider", input_tokens=1200, output_tokens=340, total_tokens=1540)
            ]
        },
    )
    return {
        "RunContent": RunContentEvent(**IDENTITY, content=" the next few words"),
        "ToolCallCompleted": ToolCallCompletedEvent(**IDENTITY, tool=tool, content="search(...) completed in 0.25s."),
        "RunCompleted with metrics": RunCompletedEvent(
            **IDENTITY, content="An answer of some length. " * 40, metrics=metrics, session_state={"turn": 3}
        ),
    }


def round_of(function: Callable[[Any], object], event: Any, count: int) -> float:
    """CPU seconds per call."""
    start = process_time()
    for _ in range(count):
        function(event)
    return (process_time() - start) / count


def measure(event: Any, rounds: int, count: int) -> dict[str, float]:
    """Medians over alternating rounds, in microseconds per event."""
    candidates: dict[str, Callable[[Any], object]] = {
        "agno": agno_format,
        "format_sse_event": format_sse_event,
        "encode_event": encode_event,
    }
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for function in candidates.values():
        round_of(function, event, count // 10)
    for _ in range(rounds):
        for name, function in candidates.items():
            times[name].append(round_of(function, event, count))
    return {name: statistics.median(found) * 1e6 for name, found in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--count", type=int, default=2000, help="events per round")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()

    failed = False
    report: dict[str, dict[str, float]] = {}
    if not arguments.json:
        print(f"{'event':28}{'agno µs':>10}{'format µs':>11}{'ratio':>8}{'gate':>7}{'encode µs':>11}{'ratio':>8}")
    for name, event in events().items():
        if json.loads(format_sse_event(event).split("data: ", 1)[1]) != json.loads(
            agno_format(event).split("data: ", 1)[1]
        ):
            print(f"{name}: the two do not write the same event", file=sys.stderr)
            return 1
        found = measure(event, arguments.rounds, arguments.count)
        ratio, encode_ratio = found["agno"] / found["format_sse_event"], found["agno"] / found["encode_event"]
        failed = failed or ratio < GATES[name]
        report[name] = {**found, "ratio": ratio, "gate": GATES[name], "encode_ratio": encode_ratio}
        if not arguments.json:
            print(
                f"{name:28}{found['agno']:10.2f}{found['format_sse_event']:11.2f}{ratio:8.1f}{GATES[name]:7.0f}"
                f"{found['encode_event']:11.2f}{encode_ratio:8.1f}"
            )
    if arguments.json:
        print(json.dumps(report))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
