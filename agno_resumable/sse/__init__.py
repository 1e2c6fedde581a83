"""Server-sent events: agno's events to frames that always parse, and a strict decoder for the way back.

Usable alone: this package imports neither agno nor Starlette, anyio or pydantic.
"""

from .decode import MAX_FRAME_BYTES, Decoder, Frame, FrameTooLarge
from .encode import encode_event, format_sse_event
from .frames import Identity, cancelled_event, completed_event, error_event

__all__ = [
    "MAX_FRAME_BYTES",
    "Decoder",
    "Frame",
    "FrameTooLarge",
    "Identity",
    "cancelled_event",
    "completed_event",
    "encode_event",
    "error_event",
    "format_sse_event",
]
