"""How commands reach Redis: many at once over one connection, each with its own outcome.

The driver's own pipelines send again what a lost connection left in doubt, which would store events twice. Here what
may have been done is never sent again; only what the server has refused before doing it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import anyio

from ..errors import LogUnavailable
from .patience import Patience
from .redis_driver import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    Word,
    pack,
)
from .redis_queries import SCRIPTS
from .redis_script import Script

__all__ = ["Command", "Lane", "Plan", "Topology", "evaluate", "unavailable"]

T = TypeVar("T")

# What a server says that will soon take the command, or leads to one that does; nothing was done.
_PASSING = ("TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "BUSY", "TryAgainError", "ClusterDownError", "MasterDownError")
_ATTEMPTS = 6


class Command:
    """A command, and the hash tag of its keys, which in a cluster decides who gets it.

    Raises:
        UnicodeEncodeError: A word is no valid Unicode.
    """

    __slots__ = ("args", "data", "tag")

    def __init__(self, tag: str, args: tuple[Word, ...]) -> None:
        self.tag: str = tag
        self.args: tuple[Word, ...] = args
        self.data: bytes = pack(args)  # here, where it concerns nobody else if it fails


Plan = Generator[Sequence[Command], Sequence[Any], T]
"""What an operation does: it yields commands, gets their replies, and in the end returns its result."""


def evaluate(script: Script, tag: str, keys: Sequence[str], *args: Word) -> Command:
    """A call of a script."""
    return Command(tag, ("EVALSHA", script.sha, len(keys), *keys, *args))


def unavailable(error: BaseException, *, outcome_unknown: bool = False) -> LogUnavailable:
    """``error`` as this library tells it. A refusal's own words stay in the cause: they may quote a command."""
    if isinstance(error, LogUnavailable):
        return error
    # Redis 6 gives the code of a command that failed in a script behind the script's own name and line
    found_code = re.search(r"(?:^|: -)([A-Z]{2,40}) ", str(error)) if isinstance(error, ResponseError) else None
    code = found_code[1] if found_code else type(error).__name__
    what = "has refused the command" if isinstance(error, ResponseError) else "does not answer"
    found = LogUnavailable(f"Redis {what} ({code}).", outcome_unknown=outcome_unknown)
    found.__cause__ = error
    return found


class Topology(Protocol):
    """Which servers there are."""

    def address(self, tag: str) -> str:
        """Who has the keys of a hash tag."""
        ...

    def make(self, address: str) -> Any:
        """A connection of the driver, not connected yet."""
        ...

    def moved(self, tag: str, address: str) -> None:
        """The server says that somebody else has these keys now."""
        ...

    async def refresh(self) -> None:
        """A server has gone, or is not what it was."""
        ...


class _Broken(Exception):
    """The connection failed; ``replies`` came before that, and the next command may have been done if ``sent``."""

    def __init__(self, replies: list[Any], sent: bool) -> None:
        self.replies = replies
        self.sent = sent


def _cut(connection: Any) -> None:
    """End what waits for this connection."""
    writer = getattr(connection, "_writer", None)
    if writer is not None:  # else it is hung up already
        writer.transport.abort()


def _is_alive(connection: Any) -> bool:
    """Whether the server has not hung up.

    It is noticed before anything is sent, and not in doubt afterwards. The driver's own look costs as much as a
    command.
    """
    reader = getattr(connection, "_reader", None)
    return reader is not None and not reader.at_eof()


class _Wire:
    """One connection to one server."""

    def __init__(self, make: Callable[[], Any], timeout: float, patient: bool) -> None:
        self._make = make
        self._timeout = timeout
        self._patient = patient
        self._connection: Any = None

    async def exchange(self, commands: Sequence[Command], timeout: float | None = None) -> list[Any]:
        """Send all, and return the replies; a refusal is a ``ResponseError`` among them.

        Raises:
            _Broken: The connection failed, with the error as its cause.
        """
        replies: list[Any] = []
        sent = False
        connection = self._connection
        patience = Patience(self._timeout if timeout is None else timeout, partial(_cut, connection))
        try:
            with patience:
                if connection is None or not _is_alive(connection):
                    with anyio.CancelScope() as scope:
                        patience.late = scope.cancel
                        connection = await self._connected()
                    if patience.lost:
                        raise TimeoutError
                    patience.late = partial(_cut, connection)
                sent = True
                await connection.send_packed_command(
                    b"".join([command.data for command in commands]), check_health=False
                )
                for _ in commands:
                    try:
                        replies.append(await connection.read_response(disable_decoding=True))
                    except ResponseError as refused:
                        replies.append(refused)
        except (BusyLoadingError, AuthenticationError) as error:  # a reply, for which the driver hangs up
            await self.drop()
            raise _Broken(replies, False) from error
        except (RedisError, OSError, EOFError) as error:  # TimeoutError is an OSError
            await self.drop()
            raise _Broken(replies, sent) from (TimeoutError() if patience.lost else error)
        except BaseException:  # a reply that nobody has read would be taken for the next command's
            await self.drop()
            raise
        return replies

    async def _connected(self) -> Any:
        if self._connection is not None:
            await self.drop()
        delay = 0.0
        while True:
            connection = self._connection = self._make()
            connection.socket_timeout = None  # a limit for all replies together, and not one for each
            try:
                await connection.connect()
                # A server that has just been started takes connections long before it takes commands
                await connection.send_command("PING", check_health=False)
                await connection.read_response()
                return connection
            except (AuthenticationError, ResponseError):
                raise
            except (RedisError, OSError, EOFError):
                if not self._patient:
                    raise
            await self.drop()
            delay = min(delay * 2, 0.25) or 0.01
            await anyio.sleep(delay)

    async def drop(self) -> None:
        """Hang up."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with anyio.CancelScope(shield=True):
                await connection.disconnect(nowait=True)


class Lane:
    """One caller at a time, with a connection of its own to each server it talks to.

    Args:
        timeout: How long an exchange may take, in seconds, and how long a server that is away is waited for.
        patient: Whether it is waited for at all.
        lost: Called when a connection was lost, before anything else is sent.
    """

    def __init__(
        self, topology: Topology, timeout: float, lost: Callable[[], None] = lambda: None, *, patient: bool = True
    ) -> None:
        self._topology = topology
        self._timeout = timeout
        self._patient = patient
        self._lost = lost
        self._wires: dict[str, _Wire] = {}

    async def exchange(self, commands: Sequence[Command], *, timeout: float | None = None) -> list[Any]:
        """The reply to each command, or the ``LogUnavailable`` that came of it."""
        results: list[Any] = [None] * len(commands)
        todo = list(range(len(commands)))
        for attempt in range(_ATTEMPTS):
            if attempt > 1:  # the first is sent again at once: a script that was forgotten, a slot that has moved
                await anyio.sleep(0.02 * 2**attempt)
            shares: dict[str, list[int]] = {}
            for position in todo:
                shares.setdefault(self._topology.address(commands[position].tag), []).append(position)
            if len(shares) == 1:
                ((address, share),) = shares.items()
                await self._send(address, share, commands, results, timeout)
            else:
                async with anyio.create_task_group() as group:
                    for address, share in shares.items():
                        group.start_soon(self._send, address, share, commands, results, timeout)
            todo = [position for position in todo if isinstance(results[position], ResponseError)]
            if todo:
                todo = await self._prepare(commands, results, todo)
            if not todo:
                break
        return [unavailable(result) if isinstance(result, Exception) else result for result in results]

    async def look(self, commands: Sequence[Command], *, timeout: float | None = None) -> list[Any]:
        """The replies of commands that all have to succeed.

        Raises:
            LogUnavailable: One did not.
        """
        replies = await self.exchange(commands, timeout=timeout)
        for reply in replies:
            if isinstance(reply, LogUnavailable):
                raise reply
        return replies

    async def close(self) -> None:
        """Hang up."""
        for wire in self._wires.values():
            await wire.drop()
        self._wires.clear()

    def _wire(self, address: str) -> _Wire:
        wire = self._wires.get(address)
        if wire is None:
            wire = self._wires[address] = _Wire(partial(self._topology.make, address), self._timeout, self._patient)
        return wire

    async def _send(
        self, address: str, share: Sequence[int], commands: Sequence[Command], results: list[Any], timeout: float | None
    ) -> None:
        try:
            replies = await self._wire(address).exchange([commands[position] for position in share], timeout)
        except _Broken as broken:
            self._lost()
            error = broken.__cause__ or broken
            replies = broken.replies
            replies += [unavailable(error, outcome_unknown=broken.sent) for _ in share[len(replies) :]]
            await self._refresh()
        for position, reply in zip(share, replies, strict=True):
            results[position] = reply

    async def _refresh(self) -> None:
        try:
            with anyio.move_on_after(self._timeout):
                await self._topology.refresh()
        except (RedisError, OSError):
            pass  # the error that led here is the one to tell

    async def _prepare(self, commands: Sequence[Command], results: Sequence[Any], todo: Sequence[int]) -> list[int]:
        """Which refused commands to send again, once what kept them is out of the way."""
        again: list[int] = []
        forgotten: dict[str, int] = {}
        demoted: set[str] = set()
        for position in todo:
            error, tag = results[position], commands[position].tag
            # the driver takes the codes that it knows off its messages, and has a class for them instead
            code, name = (str(error).split() or [""])[0], type(error).__name__
            if isinstance(error, NoScriptError):
                forgotten[self._topology.address(tag)] = position
            elif isinstance(error, AskError):  # MovedError is one
                if isinstance(error, MovedError):
                    self._topology.moved(tag, f"{error.host}:{error.port}")
            elif isinstance(error, ReadOnlyError):
                demoted.add(self._topology.address(tag))
            elif code not in _PASSING and name not in _PASSING:
                continue
            again.append(position)
        for address in forgotten:
            loads = [Command("", ("SCRIPT", "LOAD", script.source)) for script in SCRIPTS]
            try:
                await self._wire(address).exchange(loads)
            except _Broken:
                self._lost()  # and the command is told as refused, which it was
        for address in demoted:  # the next connection finds out who is the master now
            self._lost()
            await self._wire(address).drop()
            await self._refresh()
        return again
