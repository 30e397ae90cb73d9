"""One file out of a multipart/form-data body, as it comes: nothing is held but the piece at hand."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from varvel.errors import InvalidRequest


class BadForm(InvalidRequest):
    """The body is not a form with the file."""


class _FileField:
    """Callbacks of the parser: finds the first part of the given name and keeps its bytes until they are taken."""

    def __init__(self, boundary: bytes, name: bytes) -> None:
        self._name = name
        self._header = b""
        self._value = b""
        self._inside = False
        self.found = False
        self.ended = False
        self.pieces: deque[bytes] = deque()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_data": self._on_data,
                "on_part_end": self._on_part_end,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_end": self._on_end,
            },
        )

    def feed(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError as problem:
            raise BadForm(f"The form is malformed: {problem}") from problem

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition" and not self.found:
            _, options = parse_options_header(self._value)
            self._inside = self.found = options.get(b"name") == self._name
        self._header = self._value = b""

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._inside:
            self.pieces.append(data[start:end])

    def _on_part_end(self) -> None:
        self._inside = False

    def _on_end(self) -> None:
        self.ended = True


def boundary_of(content_type: str | None) -> bytes:
    """The boundary of a form. Raises `BadForm` for any other content."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= 256:
        raise BadForm("The body must be multipart/form-data")
    return boundary


async def file_field(content_type: str | None, body: AsyncIterator[bytes], name: str) -> AsyncIterator[bytes]:
    """The bytes of the file field `name`. Raises `BadForm` at the end unless the form was whole and held it."""
    field = _FileField(boundary_of(content_type), name.encode())
    async for chunk in body:
        field.feed(chunk)
        while field.pieces:
            yield field.pieces.popleft()
    if not field.ended:
        raise BadForm("The form ends before its last boundary")
    if not field.found:
        raise BadForm(f"{name}: the form has no such field")
