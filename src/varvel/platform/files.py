"""Files of the caller's storage, which is `/data` for its apps."""

from __future__ import annotations

import mimetypes
from collections.abc import AsyncIterator
from email.utils import formatdate
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from anyio import to_thread
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema
from starlette.responses import JSONResponse, StreamingResponse

from varvel import ids
from varvel.errors import InvalidRequest, TooLarge
from varvel.files.paths import ROOT, BadPath, StoragePath, parse, parse_file, readable
from varvel.files.store import Entry, OpenFile, Part
from varvel.platform import ranges
from varvel.platform.access import ApiCaller
from varvel.platform.envelope import Reply, failures
from varvel.platform.form import file_field
from varvel.platform.parameters import Flag
from varvel.platform.parts import PlatformParts

BLOCK = 1024 * 1024
FIELD = "file_upload"


class FileEntry(Reply):
    """A file or folder."""

    path: str = Field(description="Its whole path, in the dialect of the request.", examples=["datasets/cat.jpg"])
    name: str = Field(description="Last part of the path.", examples=["cat.jpg"])
    created_time: str = Field(description="When it was made (UTC).", json_schema_extra={"format": "date-time"})
    updated_time: str = Field(description="When it last changed (UTC).", json_schema_extra={"format": "date-time"})
    is_file: bool = Field(description="False for a folder.")
    size: float = Field(description="Bytes; 0 for a folder.", examples=[1250023])
    checksum_sha256: str | SkipJsonSchema[None] = Field(
        default=None, description="SHA-256 of the content, in hexadecimal."
    )
    checksum_md5: str | SkipJsonSchema[None] = Field(default=None, description="MD5 of the content, in hexadecimal.")


class FromUrl(BaseModel):
    """Where to fetch a file."""

    model_config = ConfigDict(extra="forbid")
    url: str = Field(description="http or https URL of the file.", max_length=8000, json_schema_extra={"format": "uri"})


class Destination(BaseModel):
    """Where to move a file or folder."""

    model_config = ConfigDict(extra="forbid")
    destination: str = Field(description="Its new path.", min_length=1, max_length=5000)


class UploadBegun(Reply):
    """A multipart upload."""

    upload_id: str = Field(description="Names the upload in the calls that follow.")


class UploadedPart(BaseModel):
    """A part of a multipart upload."""

    part_number: int = Field(description="From 1 on.", ge=1, le=10_000)
    etag: str = Field(description="MD5 of the part, in hexadecimal.", max_length=100)


class UploadedParts(Reply):
    """The parts that are there."""

    parts: list[UploadedPart]


class Completion(BaseModel):
    """The parts of which the file is made, in order."""

    parts: list[UploadedPart] = Field(min_length=1, max_length=10_000)


class Completed(Reply):
    """A file made of parts."""

    etag: str = Field(description="MD5 of the whole file, in hexadecimal.")


class VerifiedFiles(Reply):
    """What reading files back found."""

    files: int = Field(description="How many files were read.")
    bytes: int = Field(description="How many bytes.")
    mismatched: list[str] = Field(description="Files whose content is not that of their checksums.")


_DIRECTORY = Path(description="Path of a folder, relative to the storage or absolute below /data.")
_FILE = Path(description="Path of a file, relative to the storage or absolute below /data.")
_UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {FIELD: {"type": "string", "format": "binary", "description": "The file."}},
                    "required": [FIELD],
                    "additionalProperties": False,
                }
            }
        },
    }
}
# A file is sent as what its name says that it is.
_CONTENT: dict[str, Any] = {"application/octet-stream": {"schema": {}}, "*/*": {"schema": {}}}
_BYTES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The content of the file", "content": _CONTENT},
    206: {"description": "The part of it that Range asked for", "content": _CONTENT},
    304: {"description": "The version that If-None-Match or If-Modified-Since names is still the present one"},
}
_DONE: dict[int | str, dict[str, Any]] = {
    200: {"description": "Done", "content": {"application/json": {"schema": {"type": "boolean"}}}}
}


def router(parts: PlatformParts) -> APIRouter:
    """`/serverless/files/...`"""
    section = APIRouter(prefix="/serverless/files", tags=["Files"], dependencies=[Depends(_plain_path)])
    _add_listing(section, parts)
    _add_download(section, parts)
    _add_uploads(section, parts)
    _add_changes(section, parts)
    _add_multipart(section, parts)
    return section


def _plain_path(request: Request) -> None:
    # Bytes that are no UTF-8 were decoded to a question mark each, so that two paths would lead to one file.
    if "\ufffd" in request.scope["path"] and b"%EF%BF%BD" not in request.scope["raw_path"].upper():
        raise BadPath("A path must be valid UTF-8")


def _add_listing(section: APIRouter, parts: PlatformParts) -> None:
    async def answer(owner: str, path: StoragePath) -> Response:
        entries = await parts.files.listing(owner, path)
        return Response(await to_thread.run_sync(encode_listing, path, entries), media_type="application/json")

    @section.get(
        "/list",
        operation_id="serverlessListRoot",
        summary="List the root folder",
        response_model=list[FileEntry],
        responses=failures(),
    )
    async def list_root(caller: ApiCaller) -> Response:
        """Files and folders at the top of your storage, by name."""
        return await answer(caller.owner, ROOT)

    @section.get(
        "/list/{dir:path}",
        operation_id="serverlessListDirectory",
        summary="List a folder",
        response_model=list[FileEntry],
        responses=failures(400, 404),
    )
    async def list_directory(caller: ApiCaller, dir: Annotated[str, _DIRECTORY]) -> Response:
        """Files and folders in a folder, by name. Sizes are in bytes; checksums are those of the whole content."""
        return await answer(caller.owner, parse(dir))

    @section.post(
        "/verify",
        operation_id="verifyAllFiles",
        summary="Read all files back",
        response_model=VerifiedFiles,
        responses=failures(),
    )
    async def verify_all(caller: ApiCaller) -> Response:
        """Read every file of your storage and compare it with its checksums."""
        return _json(await parts.files.verify(caller.owner, ROOT))

    @section.post(
        "/verify/{path:path}",
        operation_id="verifyFiles",
        summary="Read files back",
        response_model=VerifiedFiles,
        responses=failures(400, 404),
    )
    async def verify(caller: ApiCaller, path: Annotated[str, _DIRECTORY]) -> Response:
        """Read a file, or every file below a folder, and compare it with its checksums."""
        return _json(await parts.files.verify(caller.owner, parse(path)))


def _add_download(section: APIRouter, parts: PlatformParts) -> None:
    @section.get(
        "/file/{file:path}",
        operation_id="serverlessDownloadFile",
        summary="Download a file",
        response_class=Response,
        responses={**_BYTES, **failures(400, 404, 416)},
    )
    async def download(caller: ApiCaller, request: Request, file: Annotated[str, _FILE]) -> Response:
        """The content of a file. Takes Range and If-None-Match, If-Modified-Since, If-Range; HEAD: headers only."""
        path = parse_file(file)
        opened = await parts.files.open(caller.owner, path)
        try:
            reply = _file_reply(request, path, opened)
        except BaseException:
            await opened.close()
            raise
        if not isinstance(reply, StreamingResponse):
            await opened.close()
        return reply


def _add_uploads(section: APIRouter, parts: PlatformParts) -> None:
    limit = parts.settings.upload_limit

    @section.post(
        "/file/url/{file:path}",
        operation_id="serverlessUploadFromUrl",
        summary="Upload from a URL",
        responses={**_DONE, **failures(400, 413, 507)},
    )
    async def upload_from_url(caller: ApiCaller, file: Annotated[str, _FILE], body: FromUrl) -> bool:
        """Fetch a file from the internet and store it. The reply comes when the file is there, whole."""
        path = parse_file(file)
        async with parts.egress.request(
            "GET", body.url, timeout=parts.settings.fetch_timeout, headers={"Accept-Encoding": "identity"}
        ) as response:
            if response.status != 200:
                raise InvalidRequest(f"url: answered {response.status}")
            if (response.content_length or 0) > limit:
                raise TooLarge(f"The file is larger than {limit} bytes")
            await parts.files.write(caller.owner, path, response.content.iter_any(), limit)
        return True

    @section.post(
        "/file/local/{target_path:path}",
        operation_id="serverlessUploadLocalFile",
        summary="Upload a file",
        responses={**_DONE, **failures(400, 413, 507)},
        openapi_extra=_UPLOAD_BODY,
    )
    async def upload_local(
        caller: ApiCaller,
        request: Request,
        target_path: Annotated[str, Path(description="Path of the file, or with `unzip` of the folder to unpack in.")],
        unzip: Annotated[
            Flag, Query(description="Unpack a ZIP archive into the folder instead of storing it.")
        ] = False,
    ) -> bool:
        """Store the form field `file_upload`. An archive is unpacked whole or not at all."""
        path = parse(target_path) if unzip else parse_file(target_path)
        _refuse_early(request, limit)
        chunks = file_field(request.headers.get("content-type"), request.stream(), FIELD, limit + BLOCK)
        if unzip:
            await parts.files.unpack(caller.owner, path, chunks, limit)
        else:
            await parts.files.write(caller.owner, path, chunks, limit)
        return True


def _add_changes(section: APIRouter, parts: PlatformParts) -> None:
    @section.delete(
        "/file/{file:path}",
        operation_id="deleteFile",
        summary="Delete a file or folder",
        responses={**_DONE, **failures(400, 404)},
    )
    async def delete(
        caller: ApiCaller,
        file: Annotated[str, _FILE],
        recursive: Annotated[bool, Query(description="Delete a folder with all that is in it.")] = False,
    ) -> bool:
        """Delete a file or an empty folder; with `recursive` a folder and all below it."""
        path = parse(file)
        if not path.parts:
            raise InvalidRequest("The root folder cannot be deleted")
        await parts.files.delete(caller.owner, path, recursive=recursive)
        return True

    @section.post(
        "/rename/{file:path}",
        operation_id="renameFile",
        summary="Move a file or folder",
        responses={**_DONE, **failures(400, 404)},
    )
    async def rename(caller: ApiCaller, file: Annotated[str, _FILE], body: Destination) -> bool:
        """Move a file or folder in one step. A file at the destination is replaced, a folder is not."""
        source = parse(file)
        if not source.parts:
            raise InvalidRequest("The root folder cannot be moved")
        await parts.files.rename(caller.owner, source, parse_file(body.destination))
        return True


def _add_multipart(section: APIRouter, parts: PlatformParts) -> None:
    limit = parts.settings.upload_limit

    @section.post(
        "/file/multipart/{file:path}/initiate",
        operation_id="beginMultipartUpload",
        summary="Begin an upload in parts",
        response_model=UploadBegun,
        responses=failures(400, 507),
    )
    async def begin(caller: ApiCaller, file: Annotated[str, _FILE]) -> Response:
        """Begin an upload whose parts may be sent at once, in any order, and again after a failure."""
        return JSONResponse({"upload_id": await parts.files.begin(caller.owner, parse_file(file))})

    @section.put(
        "/file/multipart/{file:path}/{upload_id}/{part_number}",
        operation_id="uploadPart",
        summary="Upload a part",
        response_model=UploadedPart,
        responses=failures(400, 404, 413, 507),
        openapi_extra=_UPLOAD_BODY,
    )
    async def put_part(
        caller: ApiCaller,
        request: Request,
        file: Annotated[str, _FILE],
        upload_id: str,
        part_number: Annotated[int, Path(ge=1, le=10_000)],
    ) -> Response:
        """Send one part as the form field `file_upload`; the same number again replaces it."""
        parse_file(file)
        _refuse_early(request, limit)
        chunks = file_field(request.headers.get("content-type"), request.stream(), FIELD, limit + BLOCK)
        return _json(_wire(await parts.files.put_part(caller.owner, upload_id, part_number, chunks, limit)))

    @section.get(
        "/uploads/{upload_id}",
        operation_id="listParts",
        summary="List the parts of an upload",
        response_model=UploadedParts,
        responses=failures(400, 404),
    )
    async def list_parts(caller: ApiCaller, upload_id: str) -> Response:
        """The parts that are stored, so that an interrupted upload can go on."""
        found = await parts.files.parts(caller.owner, upload_id)
        return _json({"parts": [_wire(part) for part in found]})

    @section.post(
        "/file/multipart/{file:path}/{upload_id}/complete",
        operation_id="completeMultipartUpload",
        summary="Complete an upload",
        response_model=Completed,
        responses=failures(400, 404, 413, 507),
    )
    async def complete(caller: ApiCaller, file: Annotated[str, _FILE], upload_id: str, body: Completion) -> Response:
        """Join the parts into the file, which appears as a whole."""
        parse_file(file)
        wanted = [Part(part.part_number, part.etag) for part in body.parts]
        entry = await parts.files.complete(caller.owner, upload_id, wanted, limit)
        return JSONResponse({"etag": entry.md5})

    @section.post(
        "/file/multipart/{file:path}/{upload_id}/cancel",
        operation_id="cancelMultipartUpload",
        summary="Cancel an upload",
        responses={**_DONE, **failures(400, 404)},
    )
    async def cancel(caller: ApiCaller, file: Annotated[str, _FILE], upload_id: str) -> bool:
        """Forget the upload and its parts."""
        parse_file(file)
        await parts.files.cancel(caller.owner, upload_id)
        return True


def encode_listing(path: StoragePath, entries: list[Entry]) -> bytes:
    """The JSON of a listing. `path` is the folder, or the file that was listed as itself."""
    single = len(entries) == 1 and entries[0].is_file and path.parts[-1:] == (entries[0].name,)
    base = str(path.parent if single else path)
    prefix = f"{base}/" if base else ""
    times = _Times()
    listed = []
    for entry in entries:
        name, updated_at, created_at = entry.name, entry.updated_at, entry.created_at
        updated = times[int(updated_at * 1000)]
        created = updated if created_at == updated_at else times[int(created_at * 1000)]
        listed.append(
            _Listed(prefix + name, name, created, updated, entry.is_file, entry.size, entry.sha256, entry.md5)
        )
    try:
        return msgspec.json.encode(listed)
    except UnicodeEncodeError:
        # Apps may give files names that are not UTF-8. Such a file is shown, though no path of a URL leads to it.
        return msgspec.json.encode([msgspec.structs.replace(item, **_names(item)) for item in listed])


def _names(item: _Listed) -> dict[str, str]:
    return {"path": readable(item.path), "name": readable(item.name)}


class _Times(dict[int, str]):
    """Times by their milliseconds, as `ids.iso` writes them: files of a folder were often made together."""

    def __init__(self) -> None:
        self._seconds: dict[int, str] = {}

    def __missing__(self, millis: int) -> str:
        second = millis // 1000
        if (text := self._seconds.get(second)) is None:
            text = self._seconds[second] = ids.iso(second)[:-4]
        made = self[millis] = f"{text}{millis % 1000:03d}Z"
        return made


class _Listed(msgspec.Struct, omit_defaults=True, gc=False):
    """`FileEntry` as it is written, ten thousand at a time."""

    path: str
    name: str
    created_time: str
    updated_time: str
    is_file: bool
    size: int
    checksum_sha256: str | None = None
    checksum_md5: str | None = None


def _file_reply(request: Request, path: StoragePath, opened: OpenFile) -> Response:
    entry = opened.entry
    headers = {
        "accept-ranges": "bytes",
        "etag": f'"{entry.etag}"',
        "last-modified": formatdate(entry.updated_at, usegmt=True),
        "cache-control": "private, no-cache",
    }
    asked = request.headers.get("if-none-match")
    since = request.headers.get("if-modified-since") if asked is None else None
    if ranges.matches(asked, entry.etag) or ranges.unchanged_since(since, entry.updated_at):
        return Response(status_code=304, headers=headers)
    wanted = request.headers.get("range")
    try:
        same = ranges.still_the_same(request.headers.get("if-range"), entry.etag)
        span = ranges.requested(wanted, entry.size) if same else None
    except ranges.Unsatisfiable:
        return _unsatisfiable(request, entry)
    headers |= {
        "content-type": _content_type(path.name),
        "content-disposition": disposition(path.name),
        "x-content-type-options": "nosniff",
    }
    if entry.sha256 is not None:
        headers["x-checksum-sha256"] = entry.sha256
    sent = span or ranges.Span(0, entry.size)
    headers["content-length"] = str(sent.end - sent.start)
    if span is not None:
        headers["content-range"] = span.content_range(entry.size)
    status = 206 if span is not None else 200
    if request.state.head:
        return Response(status_code=status, headers=headers)
    return StreamingResponse(_content(opened, sent), status, headers)


async def _content(opened: OpenFile, span: ranges.Span) -> AsyncIterator[bytes]:
    try:
        at = span.start
        while at < span.end and (data := await opened.read(at, min(BLOCK, span.end - at))):
            at += len(data)
            yield data
    finally:
        await opened.close()


def _unsatisfiable(request: Request, entry: Entry) -> Response:
    body = {
        "error": {
            "type": "validation_error",
            "message": f"Range: the file has {entry.size} bytes",
            "request_id": request.state.request_id,
        }
    }
    return JSONResponse(body, 416, {"content-range": f"bytes */{entry.size}"})


def _content_type(name: str) -> str:
    kind, encoding = mimetypes.guess_type(name)
    if encoding is not None or kind is None:
        return {"gzip": "application/gzip"}.get(encoding or "", "application/octet-stream")
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def disposition(name: str) -> str:
    """`Content-Disposition` of a download, with a plain name beside the exact one (RFC 6266)."""
    plain = "".join(letter if 32 <= ord(letter) < 127 and letter not in '"\\%' else "_" for letter in name)
    exact = "" if plain == name else f"; filename*=UTF-8''{quote(name, safe='')}"
    return f'attachment; filename="{plain}"{exact}'


def _refuse_early(request: Request, limit: int) -> None:
    # The form around the file takes some bytes too; the exact limit is held while the file is written.
    if int(request.headers.get("content-length") or 0) > limit + BLOCK:
        raise TooLarge(f"The file is larger than {limit} bytes")


def _wire(part: Part) -> dict[str, object]:
    return {"part_number": part.part_number, "etag": part.etag}


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
