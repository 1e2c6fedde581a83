"""``agno-resumable demo``: the server as a process, and its page in a real Chromium."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, sync_playwright

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it is killed by POSIX signals here")

ROOT = Path(__file__).parent.parent
PATIENCE = 60.0
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Demo:
    """A demo server in a process, and the terminal it writes to."""

    def __init__(self, directory: Path, *arguments: str, port: int = 0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agno_resumable", "demo", "--no-browser", "--port", str(port), *arguments],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "AGNO_RESUMABLE_LOG": "sqlite:///runs.db"},
        )
        assert self.process.stdout is not None
        self.terminal: IO[str] = self.process.stdout
        self.said = ""
        while "Ctrl-C" not in self.said:
            line = self.terminal.readline()
            assert line, f"the demo ended with {self.process.wait()}: {self.said}"
            self.said += line
        self.address = self._said(r"Page +(http://127\.0\.0\.1:\d+)")
        self.port = int(self.address.rpartition(":")[2])
        self.pid = int(self._said(r"kill -9 (\d+)"))

    def _said(self, pattern: str) -> str:
        found = re.search(pattern, self.said)
        assert found, self.said
        return found[1]

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        status = self.process.wait(timeout=PATIENCE)
        self.said += self.terminal.read()
        self.terminal.close()
        return status


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    """Starts a demo in a directory of the test; all of them are gone afterwards."""
    with ExitStack() as stack:

        def started(*arguments: str, port: int = 0) -> Demo:
            demo = Demo(tmp_path, *arguments, port=port)
            stack.callback(demo.terminal.close)
            stack.callback(demo.process.wait)
            stack.callback(demo.process.kill)
            return demo

        yield started


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo for those tests that leave it as it was."""
    with ExitStack() as stack:
        demo = Demo(tmp_path_factory.mktemp("demo"), "--delay", "0.05")
        stack.callback(demo.terminal.close)
        stack.callback(demo.process.wait)
        stack.callback(demo.process.kill)
        yield demo


@pytest.fixture(scope="module")
def browser(chromium_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("chromium"), executable_path=chromium_path, args=CHROMIUM_ARGUMENTS
        )
        context.set_default_timeout(PATIENCE * 1000)
        yield context
        context.close()


@pytest.fixture
def page(browser: BrowserContext) -> Iterator[Page]:
    with browser.new_page() as page:
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        yield page
        assert problems == []


def total(page: Page, name: str) -> int:
    return int(page.inner_text(f"#total-{name}"))


def until(page: Page, condition: str) -> None:
    page.wait_for_function(condition)


def finished(*states: str) -> str:
    chosen = ",".join(f"[data-state={state}]" for state in states)
    return f"document.querySelectorAll('{chosen}').length === 3"


def run_ids(page: Page) -> dict[str, str]:
    return dict(pair.split("=") for pair in page.url.partition("#")[2].split("&"))


def logged(demo: Demo, page: Page) -> int:
    """How many events the log holds of the three runs of the page."""
    paths = {"agents": "harbour-pilot", "teams": "boat-crew", "workflows": "night-log"}
    runs = [
        httpx.get(f"{demo.address}/{kind}/{paths[kind]}/runs/{run_id}").json() for kind, run_id in run_ids(page).items()
    ]
    return sum(run["last_event_index"] + 1 for run in runs)


# -------------------------------------------------------------------- the server


def test_the_terminal_says_where_the_page_is_and_how_to_kill_and_restart_it(demo: Demo) -> None:
    assert httpx.get(demo.address).text.startswith("<!doctype html>")
    info = httpx.get(f"{demo.address}/demo/info").json()
    assert info["pid"] == demo.pid == demo.process.pid
    assert info["restart"] in demo.said
    program = [sys.executable, "-m", "agno_resumable", "demo"]
    assert shlex.split(info["restart"]) == [*program, "--log", "sqlite:///runs.db", "--port", str(demo.port)]


def test_the_page_is_told_every_event_name_there_is(demo: Demo) -> None:
    names = httpx.get(f"{demo.address}/demo/types").json()
    wanted = {"RunContent", "TeamRunContent", "WorkflowError", "StepStarted", "CustomEvent", "end", "gap", "paused"}
    assert wanted <= set(names)
    assert "error" not in names, "an EventSource uses that name for its own connection"


def test_a_taken_port_makes_it_take_another(start: Callable[..., Demo]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        demo = start(port=taken)
        assert demo.port != taken
        assert httpx.get(demo.address).status_code == 200


def test_ctrl_c_ends_it_quietly_even_with_a_run_and_a_reader(start: Callable[..., Demo]) -> None:
    demo = start()
    runs = f"{demo.address}/agents/harbour-pilot/runs"
    run = httpx.post(runs, data={"message": "x", "stream": "false", "background": "true"}).json()
    with httpx.stream("GET", f"{runs}/{run['run_id']}/events", timeout=PATIENCE) as reader:
        lines = reader.iter_lines()
        assert "event: RunStarted" in lines
        assert demo.end(signal.SIGINT) == 0
        assert "event: disconnecting" in list(lines)
    assert "Traceback" not in demo.said


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    script = "import sys; sys.modules['uvicorn'] = None; from agno_resumable.cli import main; sys.exit(main(['demo']))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8", check=False, cwd=ROOT)
    assert done.returncode == 1
    assert "pip install 'agno-resumable[demo]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["--model", "nobody:nothing"], ["--log", "sqlite:////no/such/directory/a.db"]])
def test_what_cannot_work_is_said_before_anything_is_served(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agno_resumable", "demo", "--no-browser", *arguments],
        capture_output=True,
        encoding="utf-8",
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert arguments[1].removeprefix("sqlite:///") in done.stderr
    assert "Traceback" not in done.stderr
    assert "Page" not in done.stdout


def test_a_cut_tears_the_connection_in_the_middle_of_a_frame_and_the_run_goes_on(demo: Demo) -> None:
    runs = f"{demo.address}/agents/harbour-pilot/runs"
    run_id = httpx.post(runs, data={"message": "x", "stream": "false", "background": "true"}).json()["run_id"]
    parts: list[bytes] = []
    with httpx.stream("GET", f"{runs}/{run_id}/events", timeout=PATIENCE) as reader:
        chunks = reader.iter_raw()
        parts.append(next(chunks))
        assert httpx.post(f"{demo.address}/demo/cut", params={"run_id": "another"}).json() == {"cut": 0}
        assert httpx.post(f"{demo.address}/demo/cut", params={"run_id": run_id}).json() == {"cut": 1}
        with pytest.raises(httpx.RemoteProtocolError):
            parts.extend(chunks)  # what came before the error stays in the list
    received = b"".join(parts)
    assert not received.endswith(b"\n\n")
    complete = received.rpartition(b"\n\n")[0]
    last = re.findall(rb"^id: (.+)$", complete, re.MULTILINE)[-1].decode()
    rest = httpx.get(f"{runs}/{run_id}/events", headers={"Last-Event-ID": last}, timeout=PATIENCE).text
    first, *_ = re.findall(r'"event_index":(\d+)', rest)
    assert int(first) == int(last.rpartition(":")[2]) + 1
    end = json.loads(rest.rpartition("event: end\ndata:")[2])
    assert end["status"] == "COMPLETED"


# -------------------------------------------------------------------- the page


@pytest.mark.browser
def test_three_streams_lose_nothing_and_double_nothing_over_five_cuts(start: Callable[..., Demo], page: Page) -> None:
    demo = start("--delay", "0.1")
    page.goto(demo.address)
    page.click("#start-all")
    for cut in range(1, 6):
        until(page, "document.querySelectorAll('[data-state=live]').length > 0")
        before = total(page, "received")
        until(page, f"Number(document.getElementById('total-received').textContent) > {before}")
        page.click("#cut-all")
        # the team's run is the longest, and outlives five cuts
        until(page, f"Number(document.querySelector('#teams [data-count=reconnects]').textContent) >= {cut}")
    until(page, finished("COMPLETED"))
    assert (total(page, "lost"), total(page, "duplicated")) == (0, 0)
    assert total(page, "received") == logged(demo, page)
    assert total(page, "reconnects") >= 5
    cells = page.locator("#teams .strip i")
    assert cells.count() == int(page.inner_text("#teams [data-count=received]"))
    assert page.locator("#teams .paths li").count() >= 6


@pytest.mark.browser
def test_a_reload_and_a_second_tab_find_the_runs_by_the_address_and_show_them_from_the_start(
    demo: Demo, page: Page, browser: BrowserContext
) -> None:
    page.goto(demo.address)
    page.click("#start-all")
    until(page, "Number(document.getElementById('total-received').textContent) > 60")
    known = run_ids(page)
    page.click("#reload")
    until(page, "Number(document.getElementById('total-received')?.textContent) > 60")
    assert run_ids(page) == known
    with browser.expect_page() as opened:
        page.click("#second")
    second = opened.value
    second.wait_for_url(page.url.replace("127.0.0.1", "localhost"))
    for tab in (page, second):
        until(tab, finished("COMPLETED"))
        assert (total(tab, "lost"), total(tab, "duplicated")) == (0, 0)
        assert total(tab, "received") == logged(demo, page)
    assert second.inner_text("#teams .text") == page.inner_text("#teams .text")
    second.close()


@pytest.mark.browser
def test_a_reader_that_leaves_and_comes_back_gets_what_it_missed(demo: Demo, page: Page) -> None:
    page.goto(demo.address)
    page.click("#agents [data-do=start]")
    until(page, "Number(document.querySelector('#agents [data-count=received]').textContent) > 10")
    page.click("#agents [data-do=leave]")
    assert page.get_attribute("#agents", "data-state") == "away"
    until(page, "document.querySelector('#agents[data-state=COMPLETED]')")
    assert (total(page, "lost"), total(page, "duplicated")) == (0, 0)
    assert total(page, "received") == logged(demo, page)
    assert page.inner_text("#agents .text").endswith("connection comes back.")


@pytest.mark.browser
def test_a_cancelled_run_keeps_what_it_said_and_shows_that_it_was_cancelled(demo: Demo, page: Page) -> None:
    page.goto(demo.address)
    page.click("#start-all")
    until(page, "Number(document.getElementById('total-received').textContent) > 30")
    page.click("#cancel-all")
    until(page, finished("CANCELLED"))
    for kind in ("agents", "teams", "workflows"):
        assert "Cancelled." in page.inner_text(f"#{kind} .text")
        assert int(page.inner_text(f"#{kind} [data-count=received]")) > 3
    assert (total(page, "lost"), total(page, "duplicated")) == (0, 0)


@pytest.mark.browser
def test_a_killed_and_restarted_server_ends_its_runs_honestly_and_replays_the_finished_one(
    start: Callable[..., Demo], page: Page
) -> None:
    first = start("--delay", "0.05")
    page.goto(first.address)
    page.click("#agents [data-do=start]")
    until(page, "document.querySelector('#agents[data-state=COMPLETED]')")
    page.click("#teams [data-do=start]")
    page.click("#workflows [data-do=start]")
    until(page, "Number(document.querySelector('#workflows [data-count=received]').textContent) > 20")
    first.end(signal.SIGKILL)
    until(page, "document.querySelectorAll('[data-state=reconnecting]').length === 2")
    until(page, "document.getElementById('server-state').textContent.includes('is gone')")

    second = start("--delay", "0.05", port=first.port)
    until(page, f"document.getElementById('server-state').textContent === 'server {second.pid} (was {first.pid})'")
    until(page, "document.querySelectorAll('[data-state=ERROR]').length === 2")
    assert (total(page, "lost"), total(page, "duplicated")) == (0, 0)
    assert total(page, "received") == logged(second, page)
    for kind in ("teams", "workflows"):
        assert page.locator(f"#{kind} .text p.note.bad").count() == 1

    page.click("#reload")
    until(page, finished("COMPLETED", "ERROR"))
    assert page.get_attribute("#agents", "data-state") == "COMPLETED"
    assert total(page, "received") == logged(second, page)


@pytest.mark.browser
def test_a_run_that_retention_has_removed_is_shown_as_gone(demo: Demo, page: Page) -> None:
    page.goto(demo.address + "/#agents=no-such-run")
    until(page, "document.querySelector('#agents[data-state=gone]')")


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 420])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_window_and_every_control_has_a_name(demo: Demo, page: Page, width: int, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(demo.address)
    page.wait_for_selector("#workflows")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, a, input')].filter((e) => "
        "!(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).length"
    )
    assert unnamed == 0
