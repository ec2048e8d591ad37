"""A cell's picture as a PNG: lossless, with its settings, and where its edit acted, in text chunks."""

from __future__ import annotations

import base64
import io
import json
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
"""Name of the one that says where the edit acted: height x width of the latents, then bits in base64."""

UNREADABLE = (OSError, SyntaxError, ValueError)
"""What Pillow raises of a file that is not there, is torn or damaged, or is no picture."""


@dataclass(frozen=True)
class Picture:
    """A cell's image, HWC, RGB, uint8, and the positions of its latents, HW, that its edit acted on."""

    image_HWC: NDArray[np.uint8]
    is_guided_HW: NDArray[np.bool_] | None = None

    def png(self, settings: Mapping[str, Any]) -> bytes:
        """The file's content."""
        chunks = PngInfo()
        chunks.add_text(IMAGE_CHUNK, json.dumps(settings))
        if self.is_guided_HW is not None:
            chunks.add_text(GUIDED_CHUNK, _packed(self.is_guided_HW))
        buffer = io.BytesIO()
        Image.fromarray(self.image_HWC).save(buffer, format="PNG", pnginfo=chunks)
        return buffer.getvalue()

    @classmethod
    def read(cls, path: Path) -> Picture:
        """A picture from its file.

        Raises:
            OSError, SyntaxError, ValueError: it is not there, or it is damaged.
        """
        with Image.open(path) as image:
            packed = image.info.get(GUIDED_CHUNK)
            image_HWC = np.asarray(image.convert("RGB"))
        return cls(image_HWC, None if packed is None else _unpacked(packed))


def _packed(is_guided_HW: NDArray[np.bool_]) -> str:
    height, width = is_guided_HW.shape
    return f"{height}x{width} {base64.b64encode(np.packbits(is_guided_HW).tobytes()).decode()}"


def _unpacked(text: str) -> NDArray[np.bool_]:
    size, _, bits = text.partition(" ")
    height, width = map(int, size.split("x"))
    packed = np.frombuffer(base64.b64decode(bits), np.uint8)
    return np.unpackbits(packed, count=height * width).reshape(height, width).astype(bool)
