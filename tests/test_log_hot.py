"""The hot tail answers only what it surely knows, and then exactly what the store would."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, strategies as st

from agno_resumable.log.hot import HotTail, take
from agno_resumable.model import Batch, EncodedEvent, Event, Family, Page, Run, RunStatus

NEW = Run("run", Family.AGENT, None, None, None, None, None, None, RunStatus.RUNNING, 0, 0, 1, 1, 1, 5.0, 5.0)


class Store:
    """A run of which one process knows through its hot tail, and to which it and others append."""

    def __init__(self) -> None:
        self.run = NEW
        self.batches: list[Batch] = []

    def append(self, size: int) -> Batch:
        events = [EncodedEvent("T", b'{"n":%d}' % (self.run.next_index + part)) for part in range(size)]
        batch = Batch("run", self.run.next_index, events)
        self.batches.append(batch)
        self.run = replace(self.run, next_index=self.run.next_index + size, version=self.run.version + 1)
        return batch

    def trim(self, before: int) -> None:
        before = max(self.run.first_index, min(before, self.run.next_index))
        self.run = replace(self.run, first_index=before, version=self.run.version + 1)

    def claim(self) -> None:
        self.run = replace(self.run, generation=self.run.generation + 1, version=self.run.version + 1)

    def make_anew(self) -> None:
        self.run, self.batches = replace(NEW, created_at=self.run.created_at + 1.0), []

    def read(self, after: int, limit: int = 1024) -> Page:
        return Page(self.run, take(self.batches, max(after, self.run.first_index - 1), limit, 262_144))


def commit(hot: HotTail, store: Store, began: int | None = None) -> None:
    """This process appends an event, by a commit that began at that epoch."""
    batch = store.append(1)
    hot.publish(store.run, [batch], hot.epoch if began is None else began)


def test_a_page_that_reaches_the_end_begins_a_tail_and_one_that_does_not_begins_none() -> None:
    store, hot = Store(), HotTail()
    for _ in range(4):
        store.append(3)
    hot.absorb(store.read(-1, limit=6), -1, hot.epoch)
    assert "run" not in hot
    hot.absorb(store.read(5), 5, hot.epoch)
    assert hot.end_of("run") == 11
    page = hot.read("run", 7, 100, 262_144)
    assert page is not None
    assert [event.index for event in page.events] == [8, 9, 10, 11]
    assert hot.read("run", 2, 100, 262_144) is None  # what the tail does not hold is the store's


def test_a_finished_run_begins_no_tail_and_nothing_does_without_room() -> None:
    store = Store()
    store.append(2)
    for hot, run in ((HotTail(), replace(store.run, status=RunStatus.COMPLETED)), (HotTail(max_bytes=0), store.run)):
        hot.absorb(Page(run, store.batches), -1, hot.epoch)
        assert len(hot) == 0


def test_what_others_append_grows_the_tail_and_two_that_read_the_same_count_once() -> None:
    store, hot = Store(), HotTail()
    store.append(1)
    hot.absorb(store.read(-1), -1, hot.epoch)
    for _ in range(3):
        store.append(2)
        for after in (hot.end_of("run"), -1):  # who follows, and who begins
            assert after is not None
            hot.absorb(store.read(after), after, hot.epoch)
    assert hot.read("run", -1, 100, 262_144) == store.read(-1)
    assert hot.size == sum(batch.size for batch in store.batches)


def test_a_read_that_a_commit_has_overtaken_changes_nothing() -> None:
    store, hot = Store(), HotTail()
    commit(hot, store)
    old = store.read(-1)
    commit(hot, store)
    hot.absorb(old, -1, hot.epoch)
    page = hot.read("run", -1, 100, 262_144)
    assert page is not None
    assert page.run.version == store.run.version


def test_a_commit_that_follows_on_what_is_known_makes_the_tail_sure_again() -> None:
    store, hot = Store(), HotTail()
    commit(hot, store)
    hot.doubt()
    assert hot.known_version("run") is None
    commit(hot, store)
    assert hot.known_version("run") == store.run.version
    hot.doubt()
    store.trim(1)  # by another process, in between
    commit(hot, store)
    assert hot.known_version("run") is None


def test_a_commit_that_began_before_a_doubt_proves_nothing_about_it() -> None:
    store, hot = Store(), HotTail()
    commit(hot, store)
    began = hot.epoch
    hot.doubt()
    commit(hot, store, began)
    assert hot.known_version("run") is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("mine", "theirs", "trim", "claim", "anew", "read", "follow", "forget", "tick")),
            st.integers(0, 40),
            st.integers(1, 5),
        ),
        max_size=60,
    )
)
def test_whatever_happens_a_sure_tail_says_what_the_store_says(steps: list[tuple[str, int, int]]) -> None:
    """Each change of another process is told of at once here, by a doubt, as a listener would."""
    store, hot = Store(), HotTail(max_bytes=400, max_run_bytes=120)
    for what, where, size in steps:
        began = hot.epoch
        if what == "mine":
            batch = store.append(size)
            hot.publish(store.run, [batch], began)
        elif what == "read":
            hot.absorb(store.read(where - 1, limit=size * 3), where - 1, began)
        elif what == "follow":
            end = hot.end_of("run")
            if end is not None:
                hot.absorb(store.read(end), end, began)
        elif what == "forget":
            hot.forget("run")
        else:
            if what == "theirs":
                store.append(size)
            elif what == "trim":
                store.trim(where)
            elif what == "claim":
                store.claim()
            elif what == "anew":
                store.make_anew()
            hot.doubt()
        for after in (-1, where, store.run.last_index - 2, store.run.last_index):
            page = hot.read("run", after, 1024, 262_144)
            if page is not None and after <= store.run.last_index:
                assert page.run == store.run
                assert page.events == flat(store)[max(after + 1, store.run.first_index) :][: len(page.events)]
                assert page.events or max(after + 1, store.run.first_index) == store.run.next_index
        assert hot.size >= 0


def flat(store: Store) -> list[Event]:
    return [event for batch in store.batches for event in batch]
