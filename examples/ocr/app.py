# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "fastapi",
#     "httpx",
#     "opencv-python-headless",
#     "rapidocr-onnxruntime==1.4.4",
# ]
#
# # The package asks for the OpenCV build with windows, which needs libGL; the headless one serves as well.
# [tool.uv]
# override-dependencies = ["opencv-python; sys_platform == 'never'"]
#
# [tool.varvel]
# name = "ocr"
# keep_alive = 120
# max_concurrency = 2
# request_timeout = 600
# ///
"""Reads text from images: a FastAPI app with a real model, which is inside its package.

    POST /  {"image_url": "https://..."}                       one page
    POST /  {"image_url": "data:image/png;base64,..."}         the same, sent along
    POST /  {"pages": ["https://...", "data:..."]}             up to 100 pages in one request

    -> {"text": "...", "pages": [{"text": "...", "lines": [{"text", "confidence", "box"}]}]}

`box` is the four corners of the line in pixels, clockwise from the top left. Each page is one billable unit.
"""

from __future__ import annotations

import base64
import binascii
import io
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy
from fastapi import FastAPI, HTTPException, Response
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, Field, model_validator
from rapidocr_onnxruntime import RapidOCR

MAX_IMAGE_BYTES = 50 * 1024 * 1024
FETCH_SECONDS = 60
logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each image fetched would drown the app's own
Image.MAX_IMAGE_PIXELS = 100_000_000


class Input(BaseModel):
    """One image, or several pages: exactly one of the two."""

    image_url: str | None = Field(default=None, description="http(s) URL or data URI of an image.")
    pages: list[str] | None = Field(default=None, min_length=1, max_length=100, description="Several of them.")

    @model_validator(mode="after")
    def _one_of_both(self) -> Input:
        if (self.image_url is None) == (self.pages is None):
            raise ValueError("give either image_url or pages")
        return self


class Line(BaseModel):
    """One line of text and where it stands."""

    text: str
    confidence: float
    box: list[list[float]]


class Page(BaseModel):
    """The lines of one image, from top to bottom."""

    text: str
    lines: list[Line]


class Output(BaseModel):
    """All text, and the same page by page."""

    text: str
    pages: list[Page]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the model before the runner says that it is ready, so that no request waits for it."""
    started = time.perf_counter()
    app.state.engine = RapidOCR()
    print(f"model loaded in {time.perf_counter() - started:.1f} s")
    yield


app = FastAPI(title="OCR", lifespan=lifespan)


@app.post("/")
def read(request: Input, response: Response) -> Output:
    """Read each page in turn. A plain `def`, so that FastAPI runs it in a thread and the runner stays responsive."""
    sources = request.pages or [request.image_url or ""]
    pages = []
    for number, source in enumerate(sources, 1):
        started = time.perf_counter()
        page = _read_page(_load(source, number))
        took = time.perf_counter() - started
        print(f"page {number} of {len(sources)}: {len(page.lines)} lines in {took:.2f} s")
        pages.append(page)
    response.headers["x-fal-billable-units"] = str(len(pages))
    return Output(text="\n\n".join(page.text for page in pages), pages=pages)


def _read_page(image: Any) -> Page:
    found, _ = app.state.engine(image)
    lines = [Line(text=text, confidence=round(float(score), 4), box=box) for box, text, score in found or []]
    return Page(text="\n".join(line.text for line in lines), lines=lines)


def _load(source: str, number: int) -> Any:
    """The pixels of an image, upright, in the blue-green-red order that the model wants."""
    try:
        content = _decode(source) if source.startswith("data:") else _fetch(source)
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError) as problem:
        raise _refuse(number, f"not an image that can be read: {problem}") from problem
    except httpx.HTTPError as problem:
        raise _refuse(number, f"cannot be fetched: {problem}") from problem
    return numpy.asarray(image)[:, :, ::-1]


def _decode(uri: str) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ValueError("a data URI must be base64")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as problem:
        raise ValueError(f"its base64 is broken ({problem})") from problem


def _fetch(url: str) -> bytes:
    if not url.startswith(("http://", "https://")):
        raise ValueError("the URL must begin with http://, https:// or data:")
    content = bytearray()
    with httpx.stream("GET", url, follow_redirects=True, timeout=FETCH_SECONDS) as reply:
        reply.raise_for_status()
        for part in reply.iter_bytes():
            content += part
            if len(content) > MAX_IMAGE_BYTES:
                raise ValueError(f"larger than {MAX_IMAGE_BYTES} bytes")
    return bytes(content)


def _refuse(number: int, reason: str) -> HTTPException:
    return HTTPException(422, detail=[{"loc": ["body", "pages", number - 1], "msg": reason, "type": "image_error"}])
