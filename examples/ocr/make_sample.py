"""Draws `sample.png`, a page that looks scanned: a little askew, dark at one edge, with specks and soft letters.

    python examples/ocr/make_sample.py [PATH]

Needs Pillow, whose own font it uses, and numpy. The same seed gives the same page.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy
from PIL import Image, ImageDraw, ImageFilter, ImageFont

WIDTH, HEIGHT, LEFT, RIGHT = 1240, 1500, 120, 1080
TITLE, LARGE, BODY = 46, 36, 32
SHADES = 16
LINES = [
    # text, amount at the right edge, size, distance from the top
    ("The Falconer Supply Company", "", TITLE, 100),
    ("14 Mews Lane, Harrogate", "", BODY, 172),
    ("Invoice No. 2026-0417", "", LARGE, 270),
    ("Date: 14 March 2026", "", BODY, 330),
    ("Sold to: Margaret Ashdown", "", BODY, 380),
    ("2 brass varvels, engraved", "36.00", BODY, 500),
    ("1 pair of leather jesses", "18.50", BODY, 560),
    ("1 swivel, stainless steel", "7.25", BODY, 620),
    ("3 bells, Lahore pattern", "27.00", BODY, 680),
    ("Total", "88.75", LARGE, 780),
    ("A varvel is the small ring on the leash of a falcon", "", BODY, 950),
    ("that bears the name of its owner, so that a lost", "", BODY, 1000),
    ("bird can be brought home again.", "", BODY, 1050),
    ("Please pay within thirty days. Thank you.", "", BODY, 1200),
]


def draw() -> Image.Image:
    """The page as it was printed."""
    page = Image.new("L", (WIDTH, HEIGHT), 247)
    pen = ImageDraw.Draw(page)
    for text, amount, size, top in LINES:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont), "this Pillow was built without FreeType"
        _write(pen, text, LEFT, top, font)
        pen.text((RIGHT, top), amount, fill=30, font=font, anchor="ra")
    for top in (460, 750, 850):
        pen.line([(LEFT, top), (RIGHT, top)], fill=60, width=2)
    return page


def _write(pen: ImageDraw.ImageDraw, text: str, left: float, top: int, font: ImageFont.FreeTypeFont) -> None:
    """Write words with the wide spaces of a typewriter: the model tends to join words that stand close."""
    for word in text.split():
        pen.text((left, top), word, fill=30, font=font)
        left += pen.textlength(word, font=font) + font.size * 0.5


def scan(page: Image.Image, seed: int = 3) -> Image.Image:
    """The page as a scanner saw it."""
    noise = numpy.random.default_rng(seed)
    page = page.rotate(0.35, resample=Image.Resampling.BICUBIC, fillcolor=247).filter(ImageFilter.GaussianBlur(0.7))
    edge = 1 - 0.35 * numpy.exp(-numpy.arange(WIDTH) / 25.0)
    pixels = numpy.asarray(page, dtype=numpy.float32) * edge[None, :]
    pixels = numpy.where(noise.random(pixels.shape) < 0.0005, pixels * 0.6, pixels)
    step = 256 // SHADES
    return Image.fromarray((numpy.clip(pixels, 0, 255) // step * step + step // 2).astype(numpy.uint8))


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("sample.png")
    scan(draw()).quantize(SHADES).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
