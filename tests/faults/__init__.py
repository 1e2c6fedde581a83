"""Tests at the level of processes: servers that are killed, drained, doubled, and cut off from their clients."""
