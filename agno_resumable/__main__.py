"""``python -m agno_resumable`` is ``agno-resumable``."""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())
