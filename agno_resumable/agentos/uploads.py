"""The body of a start or continue, watched on its way to agno."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .fields import FieldReader, reader_for
from .promotion import absent_stream_is_true
from .refusal import Claim, Refused

__all__ = ["FormWatch"]

# As pydantic reads a boolean. An empty field counts as absent in FastAPI.
_TRUE = frozenset({"1", "on", "t", "true", "y", "yes"})


class FormWatch:
    """Watches the fields of a form while its body streams through to the inner application.

    At the end of the body it appends ``background=true``, where that was asked for and the form neither says anything
    of ``background`` nor wants no stream. Appending is what keeps the rest as it is: with ``stream=false`` the same
    field would turn the answer into a 202. A body that is no form, or no whole one, passes as it came.

    No more of the body is kept than five short fields and the length of a boundary.

    Args:
        scope: The request's scope. It gets a state if it has none; the rest is not changed.
        receive: The server's.
        promote: Whether the request may become a background one.
        on_run_id: Awaited once at the end of the body, before the last of it is handed over, with the posted
            ``run_id``. It may raise ``Refused``, or return a claim, which ``run`` releases. It is not called for an
            empty one or ``null``, for which agno makes an id of its own. A file in the place of an id, or one of over
            4096 bytes, is given as text that no id is.

    Attributes:
        scope: For the inner application. Its state is the original's.
        fields: ``stream``, ``background``, ``run_id``, ``session_id`` and ``user_id`` as far as they were read; of
            several with one name the last, as agno takes them.
        promoted: The field was appended.
        done: The body was handed over wholly.
        refused: What ``on_run_id`` raised.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        *,
        promote: bool,
        on_run_id: Callable[[str], Awaitable[Claim | None]] | None = None,
    ) -> None:
        scope.setdefault("state", {})  # shared: what the inner middleware writes must be seen outside
        self._reader: FieldReader | None = reader_for(Headers(scope=scope))
        self._promote = promote and self._reader is not None
        self.scope: Scope = dict(scope)
        if self._promote:
            self.scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        self.fields: dict[str, str] = {} if self._reader is None else self._reader.values
        self.promoted: bool = False
        self.done: bool = False
        self.refused: Refused | None = None
        self._receive = receive
        self._on_run_id = on_run_id
        self._claim: Claim | None = None

    @property
    def streaming(self) -> bool:
        """Whether agno will answer with a stream, as far as the body was read."""
        stream = self.fields.get("stream")
        return absent_stream_is_true() if not stream else stream.lower() in _TRUE

    @property
    def background(self) -> bool:
        """Whether the run goes on without its client: posted so, or promoted."""
        return self.promoted or self.fields.get("background", "").lower() in _TRUE

    async def receive(self) -> Message:
        """Give this to the inner application as its ``receive``.

        Raises:
            Refused: By ``on_run_id``. FastAPI answers 400 to whatever is raised here; see ``run``.
        """
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            if not self.done:
                return await self._passing(message)
            # After the body Starlette's middleware takes nothing but the disconnect, and fails at anything else.

    async def _passing(self, message: Message) -> Message:
        last = not message.get("more_body", False)
        body = message.get("body", b"")
        if self._reader is not None:
            body = self._reader.feed(body, last=last)
            if self._promote and self._reader.complete and not self.promoted:
                body += self._promotion()
            if self._reader.complete:
                body += self._reader.feed(b"", last=last)
            if last:
                await self._check_run_id()
        self.done = last
        return {"type": "http.request", "body": body, "more_body": not last}

    def _promotion(self) -> bytes:
        assert self._reader is not None
        if "background" in self.fields or not self.streaming:
            return b""
        field = self._reader.append("background", "true")
        self.promoted = bool(field)
        return field

    async def _check_run_id(self) -> None:
        assert self._reader is not None
        run_id = self.fields.get("run_id", "")
        if self._on_run_id is None or run_id.lower() in ("", "null", "none"):
            return
        try:
            self._claim = await self._on_run_id(run_id)
        except Refused as refused:
            self.refused = refused
            raise

    async def run(self, app: ASGIApp, send: Send) -> None:
        """Run the inner application with what is watched here, and answer what was refused.

        FastAPI turns what ``receive`` raises into an answer of its own. The refusal takes that answer's place; headers
        of the application's middleware, such as those of CORS, stay, without which a browser would see no answer.
        """
        replies = _Replies(self, send)
        try:
            await app(self.scope, self.receive, replies)
        except Exception:
            if self.refused is None:
                raise
            if not replies.begun:
                await self.refused.response(self.scope, self._receive, send)
        finally:
            self.release()

    def release(self) -> None:
        """Give back what ``on_run_id`` has claimed. ``run`` does that by itself."""
        if self._claim is not None:
            self._claim.release()


class _Replies:
    """The server's ``send``, with a refusal in the place of the answer that it has caused."""

    def __init__(self, watch: FormWatch, send: Send) -> None:
        self.begun = False
        self._watch = watch
        self._send = send
        self._replaced = False

    async def __call__(self, message: Message) -> None:
        refused = self._watch.refused
        if self._replaced:
            return
        if refused is None or self.begun:
            if message["type"] == "http.response.start":
                self.begun = True
                if message["status"] >= 400:  # no run: a client that knows it may use the id at once
                    self._watch.release()
            await self._send(message)
            return
        if message["type"] != "http.response.start":
            return
        self.begun = self._replaced = True
        response = refused.response
        ours = {name for name, _ in response.raw_headers}
        dropped = ours | {b"content-encoding", b"content-length", b"content-type", b"transfer-encoding"}
        kept = [(name, value) for name, value in message.get("headers", ()) if name.lower() not in dropped]
        headers = [*response.raw_headers, *kept]
        await self._send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await self._send({"type": "http.response.body", "body": bytes(response.body)})
