"""What a client posts to start a run: a form, multipart or JSON, with the fields that AgentOS takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

__all__ = ["RunRequest", "read_body", "read_run_request"]

_JSON_FIELDS = ("session_state", "dependencies", "metadata", "knowledge_filters", "output_schema")
_OBJECTS = ("session_state", "dependencies", "metadata")
_MEDIA = {"images": "images", "audio": "audio", "videos": "videos", "input_files": "files"}
_TRUE, _FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}


class Upload(NamedTuple):
    """An uploaded file, read; the form that it came in is closed."""

    filename: str | None
    content_type: str | None
    content: bytes


@dataclass
class RunRequest:
    """A request to start a run, checked.

    ``options`` are for the component's ``arun``: JSON fields, and media by agno's argument names.
    """

    message: Any
    stream: bool = True
    background: bool = False
    session_id: str | None = None
    user_id: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


async def read_body(request: Request, max_bytes: int) -> Mapping[str, Any]:
    """The fields of the body; uploaded files are a list under ``files``.

    Raises:
        HTTPException: 400 for a body that cannot be parsed, 413 for one that is too large, 415 for another type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    limited = Request(request.scope, _Limited(request, max_bytes).receive)
    try:
        if kind == "application/json" or kind.endswith("+json"):
            body = await limited.body()
            fields = json.loads(body or b"{}")
            if not isinstance(fields, dict):
                raise HTTPException(400, "The body must be a JSON object.")
            return fields
        if kind in ("application/x-www-form-urlencoded", "multipart/form-data"):
            async with limited.form(max_part_size=max_bytes) as form:
                collected: dict[str, Any] = {key: value for key, value in form.multi_items() if isinstance(value, str)}
                files = [
                    Upload(value.filename, value.content_type, await value.read())
                    for value in form.getlist("files")
                    if isinstance(value, UploadFile)
                ]
            if files:
                collected["files"] = files
            return collected
        if not kind and not await limited.body():
            return {}
    except (ValueError, RecursionError, MultiPartException) as error:
        raise HTTPException(400, f"The body could not be parsed: {error}.") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "The client left before the body was whole.") from error
    raise HTTPException(415, "Send a form, multipart/form-data or application/json.")


async def read_run_request(request: Request, max_bytes: int) -> RunRequest:
    """Read and check a request to start a run.

    Raises:
        HTTPException: 400, 413, 415, and 422 for a field that is missing or wrong.
    """
    fields = await read_body(request, max_bytes)
    message = fields.get("message")
    if message is None or message == "":
        raise HTTPException(422, "The field 'message' is missing.")
    options: dict[str, Any] = {}
    for name in _JSON_FIELDS:
        value = fields.get(name)
        if value in (None, ""):
            continue
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise HTTPException(422, f"The field {name!r} must be JSON: {error}.") from error
        if name in _OBJECTS and not isinstance(value, dict):
            raise HTTPException(422, f"The field {name!r} must be a JSON object.")
        options[name] = value
    for name, argument in _MEDIA.items():
        if fields.get(name) not in (None, ""):
            options.setdefault(argument, []).extend(_sent_media(name, fields[name]))
    for upload in fields.get("files") or ():
        if isinstance(upload, Upload):
            name, medium = _medium(upload)
            options.setdefault(name, []).append(medium)
    return RunRequest(
        message=message,
        stream=_flag(fields, "stream", True),
        background=_flag(fields, "background", False),
        session_id=_text(fields, "session_id"),
        user_id=_text(fields, "user_id"),
        options=options,
    )


def _flag(fields: Mapping[str, Any], name: str, default: bool) -> bool:
    value = fields.get(name)
    if value is None or value == "":
        return default
    if isinstance(value, bool):
        return value
    if str(value).lower() in _TRUE:
        return True
    if str(value).lower() in _FALSE:
        return False
    raise HTTPException(422, f"The field {name!r} must be true or false.")


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > 255 or not value.isprintable():
        raise HTTPException(422, f"The field {name!r} must be printable text of at most 255 characters.")
    return value


def _sent_media(name: str, value: Any) -> list[Any]:
    """Media that a client sends as JSON, as agno's own client does: a list of what their ``to_dict`` gave."""
    from agno.utils import media  # only where somebody sends media

    try:
        items = json.loads(value) if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise ValueError("it is no array of objects")
        # A client may send content, or say where on the web it is; it may not name what lies in the server's own
        # files or storage.
        items = [{k: v for k, v in item.items() if k not in ("filepath", "media_reference")} for item in items]
        made = {
            "images": media.reconstruct_images,
            "audio": media.reconstruct_audio_list,
            "videos": media.reconstruct_videos,
            "input_files": media.reconstruct_files,
        }[name](items)
    except (ValueError, TypeError, RecursionError) as error:
        raise HTTPException(422, f"The field {name!r} must be a JSON array of media: {error}.") from error
    if len(made or ()) != len(items):
        raise HTTPException(422, f"agno does not take all of the media in the field {name!r}.")
    return list(made or ())


def _medium(upload: Upload) -> tuple[str, Any]:
    """An uploaded file as agno's medium, with the name of the argument that takes it."""
    from agno.media import Audio, File, Image, Video  # only where somebody sends a file

    content = upload.content
    if not content:
        raise HTTPException(400, f"The file {upload.filename!r} is empty.")
    mime_type = (upload.content_type or "").partition(";")[0].strip().lower() or None
    _, dot, extension = (upload.filename or "").rpartition(".")
    format_ = extension.lower() if dot else (mime_type or "").rpartition("/")[2] or None
    kind = (mime_type or "").partition("/")[0]
    try:
        if kind == "image":
            return "images", Image(content=content, format=format_, mime_type=mime_type)
        if kind == "audio":
            return "audio", Audio(content=content, format=format_, mime_type=mime_type)
        if kind == "video":
            return "videos", Video(content=content, format=format_, mime_type=mime_type)
        if mime_type not in File.valid_mime_types():
            mime_type = None  # a browser's guess that agno does not know; the name still tells the format
        return "files", File(content=content, filename=upload.filename, format=format_, mime_type=mime_type)
    except ValueError as error:
        raise HTTPException(400, f"agno does not take the file {upload.filename!r}: {error}.") from error


class _Limited:
    """The request's body, refused when it grows over the limit."""

    def __init__(self, request: Request, max_bytes: int) -> None:
        self._receive = request.receive
        self._left = max_bytes
        declared = request.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared) > max_bytes:
            raise HTTPException(413, f"The body is over the limit of {max_bytes} bytes.")
        self._max = max_bytes

    async def receive(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise HTTPException(413, f"The body is over the limit of {self._max} bytes.")
        return message
