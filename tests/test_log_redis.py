"""The log in Redis: the contract, what several openings and processes see, and what a server may lose."""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Sequence

import anyio
import pytest
from redis.asyncio import Redis, RedisCluster
from redis.crc import key_slot

from agno_resumable.errors import LogUnavailable, RunExists, RunNotFound, SchemaTooNew, UnsupportedLogURL
from agno_resumable.log.open import open_log
from agno_resumable.log.protocol import EventLog
from agno_resumable.log.redis import RedisEventLog
from agno_resumable.log.redis_link import Command, Lane
from agno_resumable.log.redis_queries import FORGET, SCRIPTS
from agno_resumable.log.redis_scripts import HEAL
from agno_resumable.model import Batch, EncodedEvent, Family, NewRun, RunStatus
from agno_resumable.reader import End, follow
from agno_resumable.testing import Check, event_log_checks

from .redis_server import RedisServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class RedisStores:
    """Logs on one server that have nothing to do with each other."""

    made = 0

    def __init__(self, url: str, **options: object) -> None:
        self.url = url
        self.options = {"timeout": 30.0, **options}  # a machine that is busy is no server that is away

    def open(self, *, max_run_bytes: int = 67_108_864, max_event_bytes: int = 8_388_608) -> RedisEventLog:
        RedisStores.made += 1
        return self.at(f"t{RedisStores.made}", max_run_bytes=max_run_bytes, max_event_bytes=max_event_bytes)

    def at(self, prefix: str, **options: object) -> RedisEventLog:
        return RedisEventLog(self.url, prefix=prefix, **{**self.options, **options})  # type: ignore[arg-type]

    def reopen(self, log: EventLog) -> RedisEventLog:
        assert isinstance(log, RedisEventLog)
        return self.at(log.settings.prefix)


def named(check: Check) -> str:
    return check.name


@pytest.mark.parametrize("check", event_log_checks(), ids=named)
async def test_redis_log_keeps(check: Check, redis_server: RedisServer) -> None:
    store = RedisStores(redis_server.url)
    await check.run(store.open, reopen=store.reopen, limited=store.open)


@pytest.mark.parametrize("check", event_log_checks(), ids=named)
async def test_redis_log_of_several_partitions_with_nothing_in_memory_keeps(
    check: Check, redis_server: RedisServer
) -> None:
    store = RedisStores(redis_server.url, partitions=5, hot_bytes=0)
    await check.run(store.open, reopen=store.reopen, limited=store.open)


@pytest.mark.parametrize("check", event_log_checks(), ids=named)
async def test_redis_log_in_a_cluster_keeps(check: Check, redis_cluster: str) -> None:
    store = RedisStores(redis_cluster, partitions=4)
    await check.run(store.open, reopen=store.reopen, limited=store.open)


# ------------------------------------------------------------------------------------------------ keys, lists, time


async def test_all_keys_of_a_script_lie_in_one_slot_and_are_declared(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Cluster refuses anything else; the list script alone reads runs whose names it makes, from their own slot."""
    seen: list[Sequence[object]] = []
    exchange = Lane.exchange

    async def record(lane: Lane, commands: Sequence[Command], *, timeout: float | None = None) -> list[object]:
        for command in commands:
            name, *rest = command.args
            keys = {str(key) for key in rest[2 : 2 + int(rest[1])]} if name == "EVALSHA" else {command.tag}
            assert {key_slot(key.encode()) for key in keys} == {key_slot(command.tag.encode())}, command
            seen.append(command.args)
        return await exchange(lane, commands, timeout=timeout)

    monkeypatch.setattr(Lane, "exchange", record)
    store = RedisStores(redis_server.url, partitions=7)
    for check in event_log_checks():
        if check.name in (
            "an_idempotency_key_is_used_once_per_owner",
            "a_deleted_id_and_key_are_free",
            "list_fits_every_filter_given",
            "a_lease_that_ran_out_is_claimed_once",
            "renew_tells_what_is_lost",
            "prune_takes_only_what_finished_before",
            "an_intent_ends_with_its_time",
            "a_claim_with_a_floor_raises_the_next_index",
            "a_trimmed_run_begins_at_its_first_index",
            "the_first_cancel_request_stays",
        ):
            await check.run(store.open, reopen=store.reopen, limited=store.open)
    used = {args[1] for args in seen if args[0] == "EVALSHA"}
    assert used >= {script.sha for script in SCRIPTS} - {HEAL.sha, FORGET.sha}


async def test_a_cluster_spreads_a_log_over_its_servers(redis_cluster: str) -> None:
    log = RedisStores(redis_cluster).open()
    async with log:
        store = log._store
        assert store.keys.partitions == 16
        assert len({store._servers.address(store.keys.name(number, "")) for number in range(16)}) == 3
        for number in range(40):
            await log.create(NewRun(f"run-{number}", session_id="s", idempotency_key=f"{number}"), lease=60)
        assert [run.run_id for run in await log.list(session_id="s", limit=10)] == [
            f"run-{number}" for number in range(39, 29, -1)
        ]
        with pytest.raises(RunExists) as taken:
            await log.create(NewRun("another", idempotency_key="7"), lease=60)
        assert taken.value.run_id == "run-7"


async def test_a_log_keeps_the_number_of_partitions_it_was_made_with(redis_server: RedisServer) -> None:
    store = RedisStores(redis_server.url)
    async with store.at("kept", partitions=3) as log:
        await log.create(NewRun("run"), lease=60)
    async with store.at("kept", partitions=9) as log:
        assert log._store.keys.partitions == 3
        assert (await log.get("run")).run_id == "run"


async def test_a_newer_layout_is_left_alone(redis_server: RedisServer) -> None:
    redis_server.command("HSET", "{newer}:meta", "layout", 99, "partitions", 1)
    with pytest.raises(SchemaTooNew):
        async with RedisStores(redis_server.url).at("newer"):
            pass


async def test_a_finished_run_leaves_by_itself_at_last(redis_server: RedisServer) -> None:
    """The backstop behind prune: what is left in the lists is mended by who comes across it."""
    store = RedisStores(redis_server.url)
    async with store.at("backstop", finished_ttl=0.05) as log:
        for name in ("listed", "pruned", "active"):
            await log.create(NewRun(name, session_id="s", input=b"{}"), lease=60)
            await log.append(name, 1, [EncodedEvent("Type", b'{"a":1}')])
        for name in ("listed", "pruned"):
            await log.append(name, 1, [], status=RunStatus.COMPLETED)
        assert int(redis_server.command("PTTL", "{backstop:0}:events:listed")[1:]) > 0
        with anyio.fail_after(5):
            while len(await log.list(session_id="s")) > 1:  # noqa: ASYNC110 - the server's clock
                await anyio.sleep(0.01)
        for name in ("listed", "pruned"):
            with pytest.raises(RunNotFound):
                await log.get(name)
        assert [run.run_id for run in await log.list(session_id="s")] == ["active"]
        assert redis_server.command("ZCARD", "{backstop:0}:session:s") == b":1"
        assert await log.prune(finished_before=await log.now() + 1) == 0
        for name in ("ends", "status:COMPLETED"):
            assert redis_server.command("ZCARD", f"{{backstop:0}}:{name}") == b":0"
        assert redis_server.command("PTTL", "{backstop:0}:run:active") == b":-1"
        ended = await log.append("active", 1, [], status=RunStatus.ERROR)
        await log.claim("active", lease=60, reopen=True)
        assert redis_server.command("PTTL", "{backstop:0}:run:active") == b":-1"
        assert ended == 1


async def test_one_append_lies_in_entries_that_a_reader_who_comes_back_can_afford(redis_server: RedisServer) -> None:
    given = [EncodedEvent("Type", b'{"n":%d,"pad":"%b"}' % (number, b"x" * (number % 900))) for number in range(1_000)]
    async with RedisStores(redis_server.url, hot_bytes=0).at("entries") as log:
        await log.create(NewRun("run"), lease=60)
        assert await log.append("run", 1, given) == 1_000
        entries = int(redis_server.command("XLEN", "{entries:0}:events:run")[1:])
        assert 1_000 / 64 <= entries <= 80
        for after in (-1, 0, 62, 63, 64, 500, 990, 998, 999):
            page = await log.read("run", after, limit=2_000, max_bytes=1 << 24)
            assert [(one.type, one.data) for one in page.events] == given[after + 1 :]
            assert [one.index for one in page.events] == list(range(after + 1, 1_000))


async def test_a_deleted_log_leaves_nothing_of_its_runs(redis_server: RedisServer) -> None:
    with RedisServer(redis_server.binary) as server:
        async with RedisEventLog(server.url, prefix="gone") as log:
            for number in range(70):
                name = f"run-{number}"
                await log.create(NewRun(name, Family.TEAM, "c", "s", "u", name, b"{}", b"{}"), lease=60)
                await log.append(name, 1, [EncodedEvent("Type", b'{"a":1}')])
                if number:
                    await log.append(name, 1, [], status=RunStatus.COMPLETED, transcript=b"{}")
            await log.delete("run-0")
            assert await log.prune(finished_before=await log.now() + 1) == 69
        assert server.command("DBSIZE") == b":3"  # what it is, its wake-ups, and their count


# ------------------------------------------------------------------------------------------------ opening


async def test_a_client_of_the_users_is_used_and_stays_open(redis_server: RedisServer) -> None:
    client = Redis.from_url(redis_server.url, decode_responses=True, protocol=3, max_connections=2)
    async with client:
        await client.ping()
        async with RedisEventLog(client, prefix="users") as log:
            await log.create(NewRun("run", input=b"{}"), lease=60)
            assert await log.append("run", 1, [EncodedEvent("Type", b'{"a":"\xc3\xa9"}')]) == 1
            assert (await log.read("run")).events[0].data == b'{"a":"\xc3\xa9"}'
            assert log.stats()["following"] == 1
        assert await client.ping()


async def test_a_cluster_client_of_the_users_is_used_and_stays_open(redis_cluster: str) -> None:
    host, _, port = redis_cluster.rpartition("//")[2].partition(",")[0].partition(":")
    client = RedisCluster(host=host, port=int(port))
    try:
        async with RedisEventLog(client, prefix="users") as log:
            await log.create(NewRun("run"), lease=60)
            assert await log.append("run", 1, [EncodedEvent("Type", b'{"a":1}')]) == 1
        assert await client.set("still", "open")
    finally:
        await (client.aclose() if hasattr(client, "aclose") else client.close())


async def test_a_closed_log_has_hung_up(redis_server: RedisServer) -> None:
    with RedisServer(redis_server.binary) as server:
        for number in range(3):
            async with RedisEventLog(server.url) as log:
                await log.create(NewRun(f"run-{number}"), lease=60)
        client = Redis.from_url(server.url)
        async with client:
            with anyio.fail_after(5):
                while len(await client.client_list()) > 1:  # noqa: ASYNC110 - the server notices when it likes
                    await anyio.sleep(0.01)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis+carrier://host", "redis\\+sentinel"),
        ("redis+sentinel://host:26379", "service"),
        ("redis+cluster://", "cannot be read"),
        ("redis://host:port/0", "cannot be read"),
        ("redis://:secret@host/0?partitions=many", "partitions"),
    ],
)
async def test_a_url_that_names_no_server_is_told_at_once(url: str, words: str) -> None:
    with pytest.raises(UnsupportedLogURL, match=words) as refused:
        open_log(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "rediss://user:password@host:6380/2?ssl_cert_reqs=none",
        "valkey://host:6379/0?prefix=mine&finished_ttl=none",
        "valkeys://host",
        "redis+unix:///run/redis.sock?db=1",
        "redis+sentinel://user:password@one:26379,two/service/3?sentinel_password=other",
        "rediss+sentinel://one/service",
        "redis+cluster://one:7000,two:7001?partitions=32",
        "valkey+cluster://user:pass%40word@one",
    ],
)
async def test_urls_of_servers_are_understood(url: str) -> None:
    log = open_log(url)
    assert isinstance(log, RedisEventLog)
    assert "password" not in repr(log)
    if "prefix" in url:
        assert (log.settings.prefix, log.settings.finished_ttl) == ("mine", None)


async def test_a_wrong_password_is_told_without_it(redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    url = f"redis://nobody:topsecret@127.0.0.1:{redis_server.port}/0"
    with pytest.raises(LogUnavailable) as refused:
        async with open_log(url):
            pass
    shown = "".join(traceback.format_exception(refused.value)) + caplog.text
    assert "topsecret" not in shown.replace(url, "")


async def test_a_server_that_is_not_there_is_told_at_once() -> None:
    with anyio.fail_after(3), pytest.raises(LogUnavailable):
        async with RedisEventLog("redis://127.0.0.1:1/0"):
            pass


async def test_what_is_no_client_is_told() -> None:
    with pytest.raises(UnsupportedLogURL, match=r"redis\.asyncio"):
        RedisEventLog(object())


async def test_a_missing_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        name for name in sys.modules if name == "redis" or name.startswith(("redis.", "agno_resumable.log.redis"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(LogUnavailable, match=r"agno-resumable\[redis\]"):
        open_log("redis://host")


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_trio_is_told_that_redis_is_for_asyncio(redis_server: RedisServer) -> None:
    with pytest.raises(LogUnavailable, match="asyncio"):
        async with RedisEventLog(redis_server.url):
            pass


# ------------------------------------------------------------------------------------------------ processes


WORKER = """
import sys, anyio
from agno_resumable import open_log
from agno_resumable.model import EncodedEvent, RunStatus

async def main():
    async with open_log(sys.argv[1]) as log:
        for number in range(int(sys.argv[2])):
            assert await log.append("run", 1, [EncodedEvent("Type", b'{"n":%d}' % number)]) == number + 1
            await anyio.sleep(0.001)
        await log.append("run", 1, [], status=RunStatus.COMPLETED)

anyio.run(main)
"""


async def test_a_run_of_another_process_is_followed_to_its_end(redis_server: RedisServer) -> None:
    url = f"{redis_server.url}?prefix=processes-{redis_server.port}"
    async with open_log(url) as log:
        await log.create(NewRun("run"), lease=60)
        indices: list[int] = []
        async with await anyio.open_process([sys.executable, "-c", WORKER, url, "200"], stderr=None) as worker:
            with anyio.fail_after(30):
                async for item in follow(log, "run"):
                    if isinstance(item, Batch):
                        indices += [stored.index for stored in item]
                    else:
                        assert isinstance(item, End)
                assert await worker.wait() == 0
        assert indices == list(range(200))


async def test_a_name_that_is_no_unicode_concerns_only_who_asks(redis_server: RedisServer) -> None:
    async with RedisStores(redis_server.url).open() as log:
        await log.create(NewRun("run"), lease=60)
        outcomes: list[object] = []

        async def ask(run_id: str) -> None:
            try:
                outcomes.append((await log.get(run_id)).run_id)
                outcomes.append(await log.append(run_id, 1, []))
            except (RunNotFound, ValueError) as error:
                outcomes.append(type(error))

        async with anyio.create_task_group() as group:
            for run_id in ("run", "lone \ud800", "never", "run"):
                group.start_soon(ask, run_id)
        assert sorted(map(str, outcomes)) == sorted(map(str, ["run", 0, UnicodeEncodeError, RunNotFound, "run", 0]))


def test_a_log_goes_on_when_every_task_of_the_loop_is_cancelled(redis_server: RedisServer) -> None:
    """As asyncio.run does it under a server that has left its loop without a lifespan: runs still have to end."""
    store = RedisStores(redis_server.url)

    async def append(log: RedisEventLog) -> int:
        try:
            return await log.append("run", 1, [EncodedEvent("Type", b'{"a":1}')])
        except LogUnavailable:  # what was under way is in doubt
            return await log.append("run", 1, [])

    async def main() -> None:
        async with store.open() as log, store.reopen(log) as other:
            await log.create(NewRun("run"), lease=60)
            for number in range(3):
                for task in asyncio.all_tasks() - {asyncio.current_task()}:
                    task.cancel()
                with anyio.fail_after(5):
                    while await append(log) <= number:
                        pass
                    run = (await log.read("run", limit=0)).run
                    waiting = asyncio.create_task(log.wait("run", run.version, timeout=60))
                    await other.request_cancel("run")
                    await other.trim("run", before=number + 1)
                    await waiting

    asyncio.run(main())
