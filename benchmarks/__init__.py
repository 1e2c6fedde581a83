"""Benchmarks: agno_resumable and what it is measured against, side by side in one run. ``python -m benchmarks``."""
