"""Small pictures of large ones: what a page of thousands of images can show at once."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import pandas as pd
from PIL import Image

from sega_bench.store import UNREADABLE, Store

SIDE = 160
"""Of a thumbnail, in pixels; an image that is no larger is its own."""

PICTURED = ("image", "height", "width")
"""What it asks of a row."""

_QUALITY = 80
_AT_ONCE = 256


def write_thumbnails(store: Store, rows: pd.DataFrame, there: set[str]) -> set[str]:
    """Make the thumbnails that are not there yet, report/thumbs/<2 hex>/<key>.webp; remove those of no row.

    Args:
        store: the folder.
        rows: of the table, all with an ``image``; :data:`PICTURED` of its columns.
        there: the keys of the images that exist.

    Returns:
        The keys of images that can't be read.
    """
    large = rows[rows[["height", "width"]].max(axis=1) > SIDE]
    wanted = {PurePosixPath(name).stem for name in large["image"]} & there
    made = {path.stem: path for path in _folder(store).glob("*/*.webp")}
    for key in made.keys() - wanted:
        made[key].unlink()
    missing, unreadable = sorted(wanted - made.keys()), set()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:  # Pillow's work lets the others run
        for start in range(0, len(missing), _AT_ONCE):
            keys = missing[start : start + _AT_ONCE]
            succeeded = threads.map(lambda key: _write(store, key), keys)
            unreadable |= {key for key, success in zip(keys, succeeded, strict=True) if not success}
    return unreadable


def thumbnail_path(store: Store, key: str) -> Path:
    """Where the thumbnail of an image belongs."""
    return _folder(store) / key[:2] / f"{key}.webp"


def _folder(store: Store) -> Path:
    return store.report_dir / "thumbs"


def _write(store: Store, key: str) -> bool:
    buffer = io.BytesIO()
    try:
        with Image.open(store.image_path(key)) as image:
            small = image.convert("RGB")
    except UNREADABLE:
        return False
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    small.save(buffer, format="WEBP", quality=_QUALITY)
    store.write_bytes(thumbnail_path(store, key), buffer.getvalue())
    return True
