"""Write every view that lives in the sweep's folder."""

from __future__ import annotations

from pathlib import Path

from sega_bench.analysis import table_files
from sega_bench.analysis.results import Results
from sega_bench.store import Store, is_whole_png
from sega_bench.views.image_grid.write import write_grids
from sega_bench.views.report import building as report


def write_views(results: Results) -> None:
    """Write image sheets, report and tables, replacing those that were there."""
    write_grids(results)
    report.write_report(results)
    table_files.write_tables(results)  # last: its digest tells that all of them are complete


def are_current(results: Results) -> bool:
    """Whether the folder's views show these results, read from the views themselves.

    Whoever made the records may have been killed before, or while, the views were written.
    """
    store = results.store
    sheets = list(store.grids_dir.glob("*.png"))
    are_drawn = bool(sheets) or bool(results.frame["is_reference"].all())
    digests = table_files.read_digest(store), report.read_digest(store)
    return digests == (results.digest, results.digest) and are_drawn and all(map(is_whole_png, sheets))


def locations(store: Store) -> dict[str, Path]:
    """Where each view is, by its label."""
    return {
        "report": store.report_dir / "index.html",
        "grids": store.grids_dir,
        "table": store.results_csv,
        "summary": store.summary_csv,
        "claims": store.claims_csv,
    }
