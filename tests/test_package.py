"""What the package promises before any of its code is called."""

from __future__ import annotations

import importlib.resources
import subprocess
import sys
from importlib.metadata import version

import pytest

import agno_resumable


def modules_after(statement: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after ``statement``."""
    script = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, encoding="utf-8", check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    "statement",
    [
        "import agno_resumable",
        "import agno_resumable; dir(agno_resumable)",
        "from agno_resumable.errors import ResumableError",
        "from agno_resumable.model import Run",
        "from agno_resumable.sse import format_sse_event",
        "from agno_resumable import format_sse_event",
    ],
)
def test_the_package_and_its_serializer_import_no_framework(statement: str) -> None:
    assert modules_after(statement).isdisjoint({"agno", "anyio", "pydantic", "starlette", "sqlite3", "httpx"})


def test_a_log_can_be_had_without_agno_and_without_starlette() -> None:
    loaded = modules_after("from agno_resumable import open_log; open_log('memory:'); open_log('sqlite:///runs.db')")
    assert loaded.isdisjoint({"agno", "pydantic", "starlette"})


def test_the_command_line_explains_itself_without_loading_a_framework() -> None:
    statement = (
        "from agno_resumable.cli import main\n"
        "import contextlib, io\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main(['--help'])"
    )
    assert modules_after(statement).isdisjoint({"agno", "anyio", "pydantic", "starlette", "uvicorn"})


def test_every_public_name_is_there_and_the_list_is_sorted() -> None:
    assert list(agno_resumable.__all__) == sorted(set(agno_resumable.__all__))
    for name in agno_resumable.__all__:
        assert getattr(agno_resumable, name) is not None


def test_the_public_names_are_what_dir_shows() -> None:
    assert set(agno_resumable.__all__) <= set(dir(agno_resumable))


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    name = "no_such_name"
    with pytest.raises(AttributeError, match=name):
        getattr(agno_resumable, name)


def test_a_public_name_says_where_it_is_public() -> None:
    """Tracebacks, logs and pickles should not send a reader to a module that may move."""
    for name in agno_resumable.__all__:
        value = getattr(agno_resumable, name)
        module = getattr(value, "__module__", "agno_resumable")
        assert module.split(".")[0] == "agno_resumable", name


@pytest.mark.parametrize("name", ["py.typed", "demo/index.html"])
def test_what_is_no_python_is_in_the_package_too(name: str) -> None:
    assert importlib.resources.files("agno_resumable").joinpath(name).is_file()


def test_the_version_in_the_code_is_the_one_that_was_installed() -> None:
    assert agno_resumable.__version__ == version("agno-resumable")
