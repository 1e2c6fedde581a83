"""All benchmarks, each in a process of its own, and one table: ``python -m benchmarks [--quick] [--json FILE]``."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path

from benchmarks._support import ROOT, Figure, Report, render, surroundings

BENCHMARKS = (
    "serializer",
    "agent_http",
    "ready_events",
    "latency",
    "replay",
    "fanout",
    "memory",
    "agentos",
    "postgres",
    "redis",
    "backends",
    "load",
)


def run() -> int:
    """Run what was asked for. Missed gates are shown, not signalled: only a benchmark that breaks is a failure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(BENCHMARKS)}; without, all")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, about three minutes in all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, versions and figures as JSON")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no benchmark named {', '.join(unknown)}")

    machine = surroundings()
    print("  ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    start = time.perf_counter()
    reports, broken = [], []
    for name in options.names or BENCHMARKS:
        print(f"… {name}", file=sys.stderr, flush=True)
        report = _run_one(name, quick=options.quick)
        if report is None:
            broken.append(name)
        else:
            reports.append(report)
    print(render(reports))
    gates = [figure for report in reports for figure in report.figures if figure.passed is not None]
    missed = [figure for figure in gates if not figure.passed]
    print(f"\n{len(gates) - len(missed)} of {len(gates)} gates hold, {time.perf_counter() - start:.0f} s", flush=True)
    machine["load at the end"] = surroundings()["load"]
    print(f"load average before {machine['load']}, after {machine['load at the end']}, on {machine['cores']} cores")
    for name in broken:
        print(f"bench_{name} did not finish; its error is above", file=sys.stderr)
    if options.json:
        written = {"machine": machine, "quick": options.quick, "benchmarks": [report.as_json() for report in reports]}
        options.json.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n")
    return 1 if broken else 0


def _run_serializer(*, quick: bool) -> Report | None:
    """The serializer's benchmark needs no server and speaks for itself; its JSON goes to the standard output."""
    command = [sys.executable, "-m", "benchmarks.bench_serializer", "--json", "--rounds", "10" if quick else "40"]
    start = time.perf_counter()
    process = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False)
    try:
        found = json.loads(process.stdout)
    except ValueError:
        return None
    report = Report(
        "serializer", "format_sse_event, agno's and ours, CPU per event", seconds=time.perf_counter() - start
    )
    for event, times in found.items():
        note = f"agno {times['agno']:.1f} µs, ours {times['format_sse_event']:.2f} µs"
        report.add(f"{event}, ours to agno", times["ratio"], "x", at_least=times["gate"], note=note)
    return report


def _run_one(name: str, *, quick: bool) -> Report | None:
    if name == "serializer":
        return _run_serializer(quick=quick)
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory) / "report.json"
        command = [sys.executable, "-m", f"benchmarks.bench_{name}", "--json", str(result)]
        process = subprocess.run(
            [*command, "--quick"] if quick else command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False
        )
        if process.returncode != 0 or not result.exists():
            return None
        found = json.loads(result.read_text())
    known = {each.name for each in fields(Figure)}
    figures = [Figure(**{key: value for key, value in entry.items() if key in known}) for entry in found["figures"]]
    return Report(found["benchmark"], found["about"], figures, found.get("seconds", 0.0))


if __name__ == "__main__":
    sys.exit(run())
