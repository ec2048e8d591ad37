"""A cell's image as a PNG, with the cell's settings and its guided latents in text chunks."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

IMAGE_CHUNK = "sega_bench"
"""Name of the text chunk that carries the cell's settings as JSON."""

GUIDED_CHUNK = "sega_bench_guided"
"""Name of the text chunk for guided latents: their height x width, then a bit mask in base64."""

UNREADABLE = (OSError, SyntaxError, ValueError)
"""Exceptions that Pillow raises for a file that is missing, truncated, damaged or no image."""

_PNG_END = bytes.fromhex("0000000049454e44ae426082")
"""The IEND chunk."""


@dataclass(frozen=True)
class CellImage:
    """A cell's image and the mask of its guided latents.

    Args:
        image_HWC: RGB, uint8.
        is_guided_HW: which latents the edit changed, at the latents' size; None if unknown.
    """

    image_HWC: NDArray[np.uint8]
    is_guided_HW: NDArray[np.bool_] | None = None

    def to_png(self, metadata: Mapping[str, Any]) -> bytes:
        """Encode the image as a PNG file that carries ``metadata`` as JSON."""
        chunks = PngInfo()
        chunks.add_text(IMAGE_CHUNK, json.dumps(metadata))
        if self.is_guided_HW is not None:
            chunks.add_text(GUIDED_CHUNK, _packed(self.is_guided_HW))
        buffer = io.BytesIO()
        Image.fromarray(self.image_HWC).save(buffer, format="PNG", pnginfo=chunks)
        return buffer.getvalue()

    @classmethod
    def read(cls, path: Path) -> CellImage:
        """Read an image and its mask from a PNG file.

        Raises:
            OSError, SyntaxError, ValueError: the file is missing or damaged.
        """
        with Image.open(path) as image:
            packed = image.info.get(GUIDED_CHUNK)
            image_HWC = np.asarray(image.convert("RGB"))
        return cls(image_HWC, None if packed is None else _unpacked(packed))


def is_whole_png(path: Path | str) -> bool:
    """Whether a file exists and ends with a PNG's last chunk, which a truncated file does not."""
    try:
        # A resume checks every image, and open() takes three times as long.
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        os.lseek(file, -len(_PNG_END), os.SEEK_END)
        return os.read(file, len(_PNG_END)) == _PNG_END
    except OSError:
        return False
    finally:
        os.close(file)


def _packed(is_guided_HW: NDArray[np.bool_]) -> str:
    height, width = is_guided_HW.shape
    return f"{height}x{width} {base64.b64encode(np.packbits(is_guided_HW).tobytes()).decode()}"


def _unpacked(text: str) -> NDArray[np.bool_]:
    size, _, bits = text.partition(" ")
    height, width = map(int, size.split("x"))
    packed = np.frombuffer(base64.b64decode(bits), np.uint8)
    return np.unpackbits(packed, count=height * width).reshape(height, width).astype(bool)
