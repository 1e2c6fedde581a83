"""The demo's uvicorn: finds a port, says how to kill it, opens the page."""

from __future__ import annotations

import logging
import os
import shlex
import socket
import sys
import webbrowser
from collections.abc import Iterator, Sequence

import uvicorn

from . import DEFAULT_PORT
from .app import make_app

__all__ = ["serve"]

HOST = "127.0.0.1"

_GREETING = """
  Page   {address}
  Log    {log} (durability: {durability})
  PID    {pid}

  Start the runs on the page. Then, from another terminal, kill this server while the page watches:

      kill -9 {pid}

  and start it again here:

      {restart}

  Ctrl-C stops it politely.
"""


def serve(
    *, log: str, durability: str, port: int, model: str | None, delay: float, browser: bool, command: Sequence[str]
) -> None:
    """Serve the demo on the loopback address until it is stopped.

    Args:
        log: The URL of the event log.
        durability: What an event in that log survives, as ``Durability`` has it.
        port: The port to try first; if it is taken, one of the next, else any. 0 is any.
        model: agno's model string, or ``None`` for the offline script.
        delay: Seconds between the deltas of the script.
        browser: Open the page, where there is a desktop to open it on.
        command: The words that start this server again, but for the port.
    """
    listener = _listen(port)
    bound = listener.getsockname()[1]
    # on the port that the page knows, even if another one was asked for
    restart = shlex.join([*command, *([] if bound == DEFAULT_PORT else ["--port", str(bound)])])
    app = make_app(log, model=model, delay=delay, restart=restart)
    config = uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=10)
    logging.getLogger("uvicorn.error").addFilter(_is_not_a_cut)
    address = f"http://{HOST}:{bound}"
    print(
        _GREETING.format(address=address, log=log, durability=durability, pid=os.getpid(), restart=restart), flush=True
    )
    if port and bound != port:
        print(f"  Port {port} is taken, so this is {bound}.\n", flush=True)
    if browser and _has_desktop():
        webbrowser.open(address)
    uvicorn.Server(config).run(sockets=[listener])


def _listen(port: int) -> socket.socket:
    for candidate in _candidates(port):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if sys.platform != "win32":  # there it would share the port with whoever has it
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, candidate))
            # from now on a browser that comes before uvicorn is ready waits instead of being refused
            listener.listen(128)
        except OSError:
            listener.close()
        else:
            return listener
    raise AssertionError("port 0 is always free")


def _candidates(port: int) -> Iterator[int]:
    if port:
        yield from range(port, min(port + 20, 65536))
    yield 0


def _has_desktop() -> bool:
    # without one, webbrowser would start a text browser in this terminal
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _is_not_a_cut(record: logging.LogRecord) -> bool:
    """uvicorn reports a response without an end, which is what the page's cut button makes on purpose."""
    return "without completing response" not in record.getMessage()
