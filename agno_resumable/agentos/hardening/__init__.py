"""agno's own ways of writing events and rows, made unable to raise over a value: explicit, and undone in one call."""

from __future__ import annotations

from .harden import Hardening, HardeningWarning, harden

__all__ = ["Hardening", "HardeningWarning", "harden"]
