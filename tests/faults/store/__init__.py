"""Faults of the store and of whoever writes to it and reads it: one workload and one checker for every backend.

Workers (processes; tasks for the log in memory) say what they are about to do, and what they were told, as records.
``checker.check`` judges the records against what the log holds in the end. ``python -m tests.faults`` is the long form.
"""
