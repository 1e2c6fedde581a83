"""The bridge's part in the lifespan of the application: what is around agno's own beginning and end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..shutdown import current_drain

__all__ = ["serve_lifespan"]

logger: logging.Logger = logging.getLogger("agno_resumable.agentos")


async def serve_lifespan(
    app: ASGIApp,
    scope: Scope,
    receive: Receive,
    send: Send,
    resources: Sequence[AbstractAsyncContextManager[Any]],
) -> None:
    """Run the application's lifespan with ``resources`` open around it.

    They are open before the application starts, and closed when it has ended: agno's own end writes to them until
    then. The stop signals are heard from the end of its start on, in front of whoever hears them.
    """
    first: Message | None = await receive()
    stack = AsyncExitStack()
    try:
        for resource in resources:
            await stack.enter_async_context(resource)
    except Exception as error:
        await stack.aclose()
        logger.error("the log could not be opened", exc_info=error)
        await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
        return

    async def inner_receive() -> Message:
        nonlocal first
        message, first = first, None
        return await receive() if message is None else message

    async def inner_send(message: Message) -> None:
        if message["type"] == "lifespan.startup.complete":
            current_drain().listen()
        elif message["type"].startswith("lifespan.shutdown.") or message["type"] == "lifespan.startup.failed":
            await close()
        await send(message)

    async def close() -> None:
        try:
            await stack.aclose()
        except Exception as error:  # the application's own end is told as it was
            logger.error("the log could not be closed", exc_info=error)
        current_drain().unlisten()

    try:
        await app(scope, inner_receive, inner_send)
    finally:
        await close()  # again is no error
