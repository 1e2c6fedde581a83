"""The body of a request, watched on its way to agno."""

from __future__ import annotations

import itertools
import string
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlencode

import anyio
import pytest
from hypothesis import given, strategies as st
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from agno_resumable.agentos.refusal import Refused
from agno_resumable.agentos.uploads import FormWatch
from agno_resumable.errors import RunExists

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"  # as agno needs it


URLENCODED = "application/x-www-form-urlencoded"
Form = list[tuple[str, Any]]


def request_scope(content_type: str | None, body: bytes = b"") -> Scope:
    headers = [(b"content-length", str(len(body)).encode())]
    if content_type is not None:
        headers.append((b"content-type", content_type.encode("latin-1")))
    return {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}


def chunked(body: bytes, cuts: Sequence[int]) -> Receive:
    """A server that gives the body in pieces, then waits for a disconnect that never comes."""
    edges = [0, *sorted({min(cut, len(body)) for cut in cuts}), len(body)]
    pieces = [body[start:end] for start, end in itertools.pairwise(edges)]

    async def receive() -> Message:
        if not pieces:
            await anyio.sleep_forever()
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    return receive


class Seen:
    def __init__(self, body: bytes, form: Form | None, watch: FormWatch) -> None:
        self.body, self.form, self.watch = body, form, watch


async def through(
    content_type: str | None,
    body: bytes,
    cuts: Sequence[int] = (),
    *,
    promote: bool = True,
    on_run_id: Callable[[str], Awaitable[Any]] | None = None,
) -> Seen:
    """What an application behind a ``FormWatch`` sees: the bytes, and what Starlette makes of them."""
    watch = FormWatch(request_scope(content_type, body), chunked(body, cuts), promote=promote, on_run_id=on_run_id)
    parts: list[bytes] = []

    async def receive() -> Message:
        message = await watch.receive()
        parts.append(message.get("body", b""))
        return message

    form = await parsed(watch.scope, receive)
    while not watch.done:  # where the body was not read, or not to its end
        await receive()
    return Seen(b"".join(parts), form, watch)


async def parsed(scope: Scope, receive: Receive) -> Form | None:
    """The form as Starlette reads it; ``None`` where it takes none."""
    request = Request(scope, receive)
    try:
        async with request.form() as form:
            return [
                (name, (value.filename, await value.read()) if isinstance(value, UploadFile) else value)
                for name, value in form.multi_items()
            ]
    except (HTTPException, MultiPartException):
        return None


def multipart(*parts: tuple[str, Any], boundary: str = "BOUND", end: bytes | None = None) -> bytes:
    made = []
    for name, value in parts:
        filename, content = value if isinstance(value, tuple) else (None, value)
        disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename is not None else "")
        content = content.encode() if isinstance(content, str) else content
        made.append(f"--{boundary}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n")
    return b"".join(made) + (f"--{boundary}--\r\n".encode() if end is None else end)


def multipart_type(boundary: str = "BOUND") -> str:
    return f"multipart/form-data; boundary={boundary}"


# ---------------------------------------------------------------- promotion


BACKGROUND = ("background", "true")


@pytest.mark.parametrize("cuts", [(), range(500)], ids=["at once", "byte by byte"])
async def test_a_form_gets_background_at_its_end(cuts: Sequence[int]) -> None:
    seen = await through(URLENCODED, b"message=hi&stream=true", cuts)
    assert seen.body == b"message=hi&stream=true&background=true"
    assert seen.form == [("message", "hi"), ("stream", "true"), BACKGROUND]
    assert seen.watch.promoted
    assert seen.watch.background


@pytest.mark.parametrize("cuts", [(), range(5000)], ids=["at once", "byte by byte"])
async def test_a_multipart_form_with_a_file_gets_one_more_part(cuts: Sequence[int]) -> None:
    content = bytes(range(256)) * 8 + b"\r\n--BOUN" + b"\r\n--BOUND-\r\n"
    body = multipart(("message", "hï"), ("files", ("a.bin", content)))
    seen = await through(multipart_type(), body, cuts)
    assert seen.form == [("message", "hï"), ("files", ("a.bin", content)), BACKGROUND]
    assert seen.watch.promoted


@pytest.mark.parametrize(
    ("fields", "promoted"),
    [
        ([], True),
        ([("stream", "true")], True),
        ([("stream", "TRUE")], True),
        ([("stream", "1")], True),
        ([("stream", "")], True),  # FastAPI takes an empty field for an absent one
        ([("stream", "false")], False),
        ([("stream", "False")], False),
        ([("stream", "0")], False),
        ([("stream", "off")], False),
        ([("stream", "nonsense")], False),  # agno answers 422
        ([("stream", "true"), ("stream", "false")], False),  # the last one counts
        ([("stream", "false"), ("stream", "true")], True),
        ([("background", "true")], False),
        ([("background", "false")], False),
        ([("background", "")], False),
        ([("background", "false"), ("stream", "true")], False),
        ([("stream", ("f.txt", b"true"))], False),
        ([("background", ("f.txt", b"true"))], False),
    ],
)
@pytest.mark.parametrize("kind", ["urlencoded", "multipart"])
async def test_only_a_stream_without_background_is_promoted(kind: str, fields: Form, promoted: bool) -> None:
    form = [("message", "hi"), *fields]
    if kind == "multipart":
        content_type, body = multipart_type(), multipart(*form)
    elif any(isinstance(value, tuple) for _, value in fields):
        pytest.skip("a urlencoded form has no files")
    else:
        content_type, body = URLENCODED, urlencode(form).encode()
    for cuts in ((), range(len(body))):
        seen = await through(content_type, body, cuts)
        assert seen.watch.promoted is promoted
        assert seen.form == ([*form, BACKGROUND] if promoted else form)
        assert seen.watch.background is (promoted or ("background", "true") in form)
        if not promoted:
            assert seen.body == body


async def test_nothing_is_changed_where_promotion_is_not_asked_for() -> None:
    for content_type, body in ((URLENCODED, b"message=hi"), (multipart_type(), multipart(("message", "hi")))):
        seen = await through(content_type, body, range(len(body)), promote=False)
        assert seen.body == body
        assert (b"content-length", str(len(body)).encode()) in seen.watch.scope["headers"]


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b'{"message": "hi", "stream": true}'),
        (None, b"message=hi"),
        ("text/plain", b"message=hi"),
        ("multipart/form-data", multipart(("message", "hi"))),
        (multipart_type("OTHER"), multipart(("message", "hi"))),
        (multipart_type(), multipart(("message", "hi"), end=b"")),
        (multipart_type(), multipart(("message", "hi"), end=b"--BOUND-")),
        (multipart_type(), b"--BOUND--\r\n"),
        (multipart_type(), b""),
        (multipart_type(), b"--BOUND\r\nContent-Disposition: form-data\r\n\r\nx\r\n--BOUND--\r\n"),
        (multipart_type(), b"--BOUND\r\nBad Header: x\r\n\r\nx\r\n--BOUND--\r\n"),
        (multipart_type("x" * 300), multipart(("message", "hi"), boundary="x" * 300)),
        (URLENCODED, b""),
        (URLENCODED, b"&&&"),
    ],
)
async def test_what_is_no_whole_form_passes_as_it_came(content_type: str | None, body: bytes) -> None:
    for cuts in ((), range(len(body))):
        seen = await through(content_type, body, cuts)
        assert seen.body == body
        assert not seen.watch.promoted


async def test_the_length_is_not_declared_where_the_body_may_grow() -> None:
    scope = request_scope(URLENCODED, b"message=hi")
    watch = FormWatch(scope, chunked(b"message=hi", ()), promote=True)
    assert not any(name == b"content-length" for name, _ in watch.scope["headers"])
    assert any(name == b"content-length" for name, _ in scope["headers"])


@pytest.mark.parametrize(
    "content_type",
    [
        'multipart/form-data; boundary="BOUND"',
        "multipart/form-data; BOUNDARY=BOUND",
        'multipart/form-data; charset=utf-8; boundary="BOUND"',
        "multipart/form-data; boundary=BOUND; charset=ISO-8859-1",
        "multipart/form-data; boundary=BOUND; charset=no-such-charset",
        "multipart/form-data; boundary=BOUND; charset=hex",
    ],
)
async def test_a_boundary_may_be_quoted_and_a_charset_given(content_type: str) -> None:
    seen = await through(content_type, multipart(("message", "hi")), range(500))
    assert seen.form == [("message", "hi"), BACKGROUND]


async def test_a_preamble_an_epilogue_and_padding_are_no_obstacle() -> None:
    epilogue = b"--BOUND--\r\nepilogue\r\n--BOUND--\r\n"
    for body in (
        b"\r\n" + multipart(("message", "hi")),
        multipart(("message", "hi"), end=epilogue),
        multipart(("message", "hi"), end=b"--BOUND--"),
    ):
        for cuts in ((), range(len(body))):
            seen = await through(multipart_type(), body, cuts)
            assert seen.form == [("message", "hi"), BACKGROUND]


async def test_a_field_is_not_added_to_a_form_that_is_full() -> None:
    for count, promoted in ((999, True), (1000, False)):
        form = [(f"f{number}", "x") for number in range(count)]
        for content_type, body in ((URLENCODED, urlencode(form).encode()), (multipart_type(), multipart(*form))):
            seen = await through(content_type, body)
            assert seen.watch.promoted is promoted
            assert seen.form is not None
            assert len(seen.form) == 1000


names = st.sampled_from(["message", "stream", "background", "run_id", "session_id", "user_id", "ünï", "a b", "x"])
values = st.one_of(
    st.sampled_from(["true", "false", "", "1", "--BOUND", "\r\n--BOUND", "\r\n--BOUN", "-", "\r\n--", "&", "=", "%41"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
)
files = st.tuples(st.text(string.ascii_letters, min_size=1, max_size=5), st.binary(max_size=200))
forms = st.lists(st.tuples(names, st.one_of(values, files)), min_size=1, max_size=6)
cuts_at = st.lists(st.integers(0, 1500), max_size=30)


def expected(form: Form) -> Form:
    """The form with ``background`` where it is due, by the rule as a reader of the documentation would write it."""
    last = dict(form)
    stream = last.get("stream", "true")
    streams = isinstance(stream, str) and (stream == "" or stream.lower() in ("true", "1", "t", "y", "yes", "on"))
    return [*form, BACKGROUND] if streams and "background" not in last else form


@given(form=forms, cuts=cuts_at)
async def test_any_urlencoded_form_reads_the_same_behind_it(form: Form, cuts: list[int]) -> None:
    form = [(name, value) for name, value in form if isinstance(value, str)]
    body = urlencode(form).encode()
    seen = await through(URLENCODED, body, cuts)
    assert seen.form == (expected(form) if form else [])
    last = dict(form)
    assert seen.watch.fields == {name: last[name] for name in last if name in KNOWN}


@given(form=forms, cuts=cuts_at)
async def test_any_multipart_form_reads_the_same_behind_it(form: Form, cuts: list[int]) -> None:
    body = multipart(*form)
    plain = await parsed(request_scope(multipart_type(), body), chunked(body, ()))
    seen = await through(multipart_type(), body, cuts)
    if plain is None:  # a value that ends the form, or breaks it
        assert seen.form is None or not seen.watch.promoted
    else:
        assert seen.form in (expected(plain), plain)
        assert seen.watch.promoted is (seen.form != plain)
        if plain == form:
            assert seen.form == expected(form)
            last = {name: "<file>" if isinstance(value, tuple) else value for name, value in form}
            assert seen.watch.fields == {name: last[name] for name in last if name in KNOWN}


KNOWN = {"stream", "background", "run_id", "session_id", "user_id"}


@given(body=st.binary(max_size=300), cuts=cuts_at, kind=st.sampled_from([URLENCODED, multipart_type("B")]))
async def test_any_bytes_at_all_lose_nothing(body: bytes, cuts: list[int], kind: str) -> None:
    seen = await through(kind, body, cuts, promote=False)
    assert seen.body == body


# ---------------------------------------------------------------- fields


async def test_a_percent_encoded_name_is_a_name() -> None:
    seen = await through(URLENCODED, b"%72un%5Fid=a%2Bb+c&%73%65%73%73%69%6f%6e%5f%69%64=s")
    assert seen.watch.fields == {"run_id": "a+b c", "session_id": "s"}


async def test_a_name_in_the_charset_of_the_form_is_a_name() -> None:
    for charset in ("utf-16-le", "cp037", "utf-7", "unicode_escape"):
        name = b"run\\u005fid" if charset == "unicode_escape" else "run_id".encode(charset)
        if charset == "utf-7":
            name = b"run+AF8-id"
        body = b'--B\r\nContent-Disposition: form-data; name="' + name + b'"\r\n\r\n' + "x1".encode(charset)
        body += b"\r\n--B--\r\n"
        content_type = f"multipart/form-data; boundary=B; charset={charset}"
        seen = await through(content_type, body)
        assert seen.form is not None
        assert seen.form[0] == ("run_id", "x1"), charset
        assert seen.watch.fields == {"run_id": "x1"}, charset
        assert seen.form == [("run_id", "x1"), BACKGROUND] if seen.watch.promoted else [("run_id", "x1")]


async def test_a_long_value_is_not_kept() -> None:
    for content_type, body in (
        (URLENCODED, b"run_id=" + b"x" * 100_000 + b"&session_id=s"),
        (multipart_type(), multipart(("run_id", "x" * 100_000), ("session_id", "s"))),
    ):
        seen = await through(content_type, body, range(0, 100_000, 1000))
        assert seen.watch.fields == {"run_id": "<overlong>", "session_id": "s"}


async def test_a_large_upload_is_not_held() -> None:
    pieces, piece = 400, b"\r" * 65_536
    head, tail = multipart(("message", "hi"), ("files", ("a", "")), end=b"")[:-2], b"\r\n--BOUND--\r\n"
    left = [head, *([piece] * pieces), tail]

    async def receive() -> Message:
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    watch = FormWatch(request_scope(multipart_type()), receive, promote=True)
    size = 0
    tracemalloc.start()
    try:
        while not watch.done:
            size += len((await watch.receive())["body"])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size > pieces * len(piece)
    assert watch.promoted
    assert peak < 8 * len(piece)


# ---------------------------------------------------------------- run ids


async def test_a_posted_run_id_is_told_before_the_end_of_the_body_is_handed_over() -> None:
    for content_type, body in (
        (URLENCODED, b"run_id=r1&message=hi"),
        (multipart_type(), multipart(("run_id", "r1"), ("message", "hi"))),
    ):
        told: list[tuple[str, bool, dict[str, str]]] = []

        async def on_run_id(run_id: str) -> None:
            told.append((run_id, watch.done, dict(watch.fields)))  # noqa: B023

        body += b"&session_id=s" if content_type == URLENCODED else b""
        watch = FormWatch(
            request_scope(content_type), chunked(body, range(len(body))), promote=False, on_run_id=on_run_id
        )
        while not watch.done:
            assert not told
            await watch.receive()
        assert [one[:2] for one in told] == [("r1", False)]
        assert told[0][2]["run_id"] == "r1"


@pytest.mark.parametrize("value", ["", "null", "None", "NULL"])
async def test_no_id_and_null_are_no_run_id_because_agno_makes_one(value: str) -> None:
    async def on_run_id(run_id: str) -> None:
        pytest.fail("it was told")

    await through(URLENCODED, f"message=hi&run_id={value}".encode(), on_run_id=on_run_id)


async def test_of_two_run_ids_the_last_is_told_as_it_is_the_one_that_agno_takes() -> None:
    told: list[str] = []

    async def on_run_id(run_id: str) -> None:
        told.append(run_id)

    await through(URLENCODED, b"run_id=a&run_id=b", on_run_id=on_run_id)
    assert told == ["b"]


async def test_a_file_is_never_a_run_id() -> None:
    told: list[str] = []

    async def on_run_id(run_id: str) -> None:
        told.append(run_id)

    await through(multipart_type(), multipart(("run_id", ("a.txt", "r1"))), on_run_id=on_run_id)
    assert told == ["<file>"]


async def refuse(run_id: str) -> None:
    raise Refused(RunExists(run_id))


class Client:
    """The outer end: what the server would send."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def send(self, message: Message) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int:
        assert [message["type"] for message in self.messages] == ["http.response.start", "http.response.body"]
        status: int = self.messages[0]["status"]
        return status

    @property
    def headers(self) -> dict[bytes, bytes]:
        pairs = list(self.messages[0]["headers"])
        assert len(pairs) == len(dict(pairs))
        return dict(pairs)


async def _swallows(scope: Scope, receive: Receive, send: Send) -> None:
    try:
        await Request(scope, receive).body()
    except Exception:
        headers = {"access-control-allow-origin": "*"}
        await JSONResponse({"detail": "There was an error parsing the body"}, 400, headers)(scope, receive, send)


async def _lets_through(scope: Scope, receive: Receive, send: Send) -> None:
    await Request(scope, receive).body()


async def _answers_and_raises(scope: Scope, receive: Receive, send: Send) -> None:
    try:
        await Request(scope, receive).body()
    except Exception:
        await PlainTextResponse("Internal Server Error", 500)(scope, receive, send)
        raise


@pytest.mark.parametrize("app", [_swallows, _lets_through, _answers_and_raises])
async def test_a_refusal_is_the_answer_whatever_the_application_makes_of_it(app: Any) -> None:
    body = b"message=hi&run_id=r1"
    client = Client()
    watch = FormWatch(request_scope(URLENCODED, body), chunked(body, (3,)), promote=True, on_run_id=refuse)
    await watch.run(app, client.send)
    assert client.status == 409
    assert b"RunExists" in client.messages[1]["body"]
    assert client.headers[b"content-length"] == str(len(client.messages[1]["body"])).encode()
    assert client.headers[b"content-type"] == b"application/json"
    if app is _swallows:
        assert client.headers[b"access-control-allow-origin"] == b"*"


async def test_an_error_of_the_application_stays_an_error() -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    watch = FormWatch(request_scope(URLENCODED), chunked(b"", ()), promote=True)
    with pytest.raises(ZeroDivisionError):
        await watch.run(fails, Client().send)


# ---------------------------------------------------------------- after the body


async def test_after_the_body_only_the_disconnect_is_passed_on() -> None:
    messages: list[Message] = [
        {"type": "http.request", "body": b"message=hi", "more_body": False},
        {"type": "http.request", "body": b"", "more_body": False},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return messages.pop(0)

    watch = FormWatch(request_scope(URLENCODED), receive, promote=True)
    assert (await watch.receive())["body"] == b"message=hi&background=true"
    assert await watch.receive() == {"type": "http.disconnect"}


async def test_a_client_that_leaves_in_its_body_is_seen_to_leave() -> None:
    messages: list[Message] = [
        {"type": "http.request", "body": b"message", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return messages.pop(0)

    watch = FormWatch(request_scope(URLENCODED), receive, promote=True)
    await watch.receive()
    assert await watch.receive() == {"type": "http.disconnect"}
    assert not watch.done


async def test_the_state_is_shared_with_the_application() -> None:
    scope = request_scope(URLENCODED)
    watch = FormWatch(scope, chunked(b"", ()), promote=True)
    watch.scope["state"]["user_id"] = "alice"
    assert scope["state"] == {"user_id": "alice"}
