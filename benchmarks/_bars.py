"""A bar chart as SVG, without a library: it stands in the documentation, in a light page as in a dark one."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["bars"]

WIDTH, LABEL, ROW = 760, 90, 34


def bars(title: str, rows: Sequence[tuple[str, float, str]]) -> str:
    """One bar for each row of (label, value, note)."""
    longest = max([value for _, value, _ in rows] or [1.0]) or 1.0
    height = 44 + ROW * len(rows)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="13" role="img">',
        f"<title>{escape(title)}</title>",
        "<style>text{fill:#24292f}@media(prefers-color-scheme:dark){text{fill:#d0d7de}}</style>",
        f'<text x="0" y="18" font-weight="600">{escape(title)}</text>',
    ]
    for number, (label, value, note) in enumerate(rows):
        top = 36 + ROW * number
        width = max(2.0, (WIDTH - LABEL - 330) * value / longest)
        lines += [
            f'<text x="0" y="{top + 16}">{escape(label)}</text>',
            f'<rect x="{LABEL}" y="{top}" width="{width:.1f}" height="22" rx="3" fill="#4c8bf5"/>',
            f'<text x="{LABEL + width + 8:.1f}" y="{top + 16}"><tspan font-weight="600">{value:,.0f}</tspan> '
            f"{escape(note)}</text>",
        ]
    return "\n".join([*lines, "</svg>", ""])
