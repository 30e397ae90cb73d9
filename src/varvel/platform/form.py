"""One file out of a multipart/form-data body, as it comes: nothing is held but the piece at hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

from python_multipart.multipart import parse_options_header

from varvel.errors import InvalidRequest, TooLarge

MAX_HEADERS = 16 * 1024


class BadForm(InvalidRequest):
    """The body is not a form with the file."""


class _FileField:
    """Finds the first part of the given name and gives its bytes.

    Written for one large part: it looks for the whole boundary at once. The parser that most use looks at each
    hyphen, one byte in 256 of a compressed file, which costs more than both checksums together. What is the file's
    from end to end is passed on as it came: slices of the whole and sums with nothing are no copies.
    """

    def __init__(self, boundary: bytes, name: bytes) -> None:
        self._name = name
        self._delimiter = b"\r\n--" + boundary
        # The first boundary has no line before it.
        self._buffer = b"\r\n"
        self._step: Callable[[], bytes | None] = self._content
        self._inside = False
        self.found = False
        self.ended = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take the next piece of the body, give what it holds of the file."""
        if self.ended:
            return
        self._buffer += data
        while not self.ended and (piece := self._step()) is not None:
            if piece and self._inside:
                yield piece

    def _content(self) -> bytes | None:
        """Up to the next boundary; None when the buffer holds nothing more that is certain."""
        at = self._buffer.find(self._delimiter)
        if at >= 0:
            self._step = self._after_boundary
            return self._take(at, len(self._delimiter))
        certain = len(self._buffer) - _begun(self._buffer, self._delimiter)
        return self._take(certain, 0) if certain > 0 else None

    def _after_boundary(self) -> bytes | None:
        self._inside = False
        rest = self._buffer.lstrip(b" \t")
        if len(rest) < 2 and len(self._buffer) <= MAX_HEADERS:
            return None
        if rest.startswith(b"--"):
            self.ended = True
        elif rest.startswith(b"\r\n"):
            # The line break stays: a part without headers has an empty line right behind it.
            self._buffer, self._step = rest, self._headers
        else:
            raise BadForm("The form is malformed: something follows a boundary")
        return b""

    def _headers(self) -> bytes | None:
        at = self._buffer.find(b"\r\n\r\n")
        if at < 0 and len(self._buffer) <= MAX_HEADERS:
            return None
        if not 0 <= at <= MAX_HEADERS:
            raise BadForm("The form is malformed: the headers of a part do not end")
        for line in self._take(at, 4).split(b"\r\n"):
            header, _, value = line.partition(b":")
            if header.strip().lower() == b"content-disposition" and not self.found:
                _, options = parse_options_header(value.strip())
                self._inside = self.found = options.get(b"name") == self._name
        self._step = self._content
        return b""

    def _take(self, size: int, drop: int) -> bytes:
        taken, self._buffer = self._buffer[:size], self._buffer[size + drop :]
        return taken


def _begun(data: bytes, delimiter: bytes) -> int:
    """How many bytes at the end of `data` may be the begin of a delimiter, which has only one carriage return."""
    at = data.rfind(delimiter[:1], -len(delimiter) + 1)
    return len(data) - at if at >= 0 and delimiter.startswith(data[at:]) else 0


def boundary_of(content_type: str | None) -> bytes:
    """The boundary of a form. Raises `BadForm` for any other content."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= 256:
        raise BadForm("The body must be multipart/form-data")
    return boundary


async def file_field(
    content_type: str | None, body: AsyncIterator[bytes], name: str, limit: int
) -> AsyncIterator[bytes]:
    """The bytes of the file field `name`. Raises `BadForm` at the end unless the form was whole and held it.

    Raises `TooLarge` for a form of more than `limit` bytes, wherever in it they are.
    """
    field = _FileField(boundary_of(content_type), name.encode())
    came = 0
    async for chunk in body:
        came += len(chunk)
        if came > limit:
            raise TooLarge(f"The form is larger than {limit} bytes")
        for piece in field.feed(chunk):
            yield piece
    if not field.ended:
        raise BadForm("The form ends before its last boundary")
    if not field.found:
        raise BadForm(f"{name}: the form has no such field")
