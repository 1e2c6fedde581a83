"""What ``agno-resumable demo`` serves: scripted components, and the page that shows their streams survive."""

from __future__ import annotations

__all__ = ["DEFAULT_LOG", "DEFAULT_PORT"]

DEFAULT_LOG = "sqlite:///demo-runs.db"
DEFAULT_PORT = 7777
