"""All views of a sweep that lie in its folder, made anew together."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sega_bench.analysis.table_files import write_results
from sega_bench.store import Store
from sega_bench.views.image_grid import write
from sega_bench.views.report import building as report


def write_views(
    store: Store, frame: pd.DataFrame, summary: pd.DataFrame, claimed: pd.DataFrame, digest: str
) -> None:
    """Write grids, report and tables.

    Args:
        store: the folder.
        frame: as :func:`sega_bench.analysis.summary.load` gives it.
        summary: as :func:`sega_bench.analysis.summary.summarise` gives it.
        claimed: as :func:`sega_bench.analysis.claims.claims` gives it.
        digest: of what they show.
    """
    plan = store.read_plan() or {}
    write.write_grids(store, frame, plan)
    report.write_report(store, frame, summary, plan, digest)
    # Last, since it tells that all of them are there.
    write_results(store, frame, summary, claimed, digest)


def places(store: Store) -> dict[str, Path]:
    """Where they are, by what they are called."""
    return {
        "report": store.report_dir / "index.html",
        "grids": store.grids_dir,
        "table": store.results_csv,
        "summary": store.summary_csv,
        "claims": store.claims_csv,
    }
