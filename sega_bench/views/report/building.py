"""The report's folder: the page, the libraries it draws with, its data as scripts, and small pictures.

A page that is opened from disk may not fetch, so all is loaded with ``<script>`` and ``<img>``. The sweep's
texts are data of those scripts, never part of a document: none of them can be markup.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sega_bench.analysis.results import Results
from sega_bench.store import Store
from sega_bench.views.report.cells import Cells
from sega_bench.views.report.overview import overview
from sega_bench.views.report.thumbnails import PICTURED, write_thumbnails

ASSETS = Path(__file__).parents[1] / "assets"

ROWS_PER_SCRIPT = 2000
"""So many cells are in one script: the page shows what it has while it loads the others."""

_MARK = '<meta name="sega-digest" content="{}">'


def write_report(results: Results) -> Path:
    """Build report/index.html and what it loads, replacing what was there.

    Images are not copied; thumbnails are made of large ones where there are none. The page is written last,
    so that its digest (:func:`read_digest`) vouches for everything that it loads.

    Returns:
        The page.
    """
    store, frame = results.store, results.frame
    stored = {path.stem for path in store.images_dir.glob("*/*.png")}
    unreadable = write_thumbnails(store, frame.loc[frame["image"].notna(), list(PICTURED)], stored)
    cells = Cells(frame, results.plan["axes"], stored - unreadable)
    data = overview(results, cells)
    folder, names = store.report_dir / "data", set()
    for name, text in _scripts(cells, data):
        store.write_text(folder / name, text)
        names.add(name)
    for path in folder.glob("*.js"):
        if path.name not in names:  # of a larger plan
            path.unlink()
    for source in _assets():
        store.write_bytes(store.report_dir / "assets" / source.name, source.read_bytes())
    page = (ASSETS / "report" / "index.html").read_text(encoding="utf-8")
    marked = page.replace("<head>", "<head>\n" + _MARK.format(results.digest), 1)
    store.write_text(store.report_dir / "index.html", marked)
    return store.report_dir / "index.html"


def read_digest(store: Store) -> str | None:
    """The digest that the folder's report carries; None without a report."""
    try:
        head = (store.report_dir / "index.html").read_text(encoding="utf-8")[:500]
    except (OSError, ValueError):
        return None
    match = re.search(_MARK.format("([0-9a-f]{64})"), head)
    return match[1] if match else None


def _assets() -> Iterator[Path]:
    for folder in ("vendor", "report"):
        yield from (path for path in sorted((ASSETS / folder).iterdir()) if path.name != "index.html")


def _scripts(cells: Cells, data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and text of each script that hands data over."""
    yield "sweep.js", f"sega.open({_script(data)});\n"
    for number, part in enumerate(cells.parts(ROWS_PER_SCRIPT)):
        yield f"cells-{number:04d}.js", f"sega.add({_script(part)});\n"


def _script(value: Any) -> str:
    """JSON that is a JavaScript expression: pure ASCII, so that no encoding can spoil it."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))
