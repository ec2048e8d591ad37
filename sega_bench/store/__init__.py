"""A sweep's folder on disk: records, images, the plan, and the lock of the command that works on it."""

from sega_bench.store.folder import PLAN_VERSION, DamagedPlanError, Store
from sega_bench.store.images import IMAGE_CHUNK, UNREADABLE, CellImage, is_whole_png
from sega_bench.store.journal import Place
from sega_bench.store.records import (
    EXECUTION_COLUMNS,
    OUTCOME_COLUMNS,
    SCORE_COLUMNS,
    SETTING_COLUMNS,
    Record,
    cell_from_row,
    columns,
    settings,
)

__all__ = [
    "EXECUTION_COLUMNS",
    "IMAGE_CHUNK",
    "OUTCOME_COLUMNS",
    "PLAN_VERSION",
    "SCORE_COLUMNS",
    "SETTING_COLUMNS",
    "UNREADABLE",
    "CellImage",
    "DamagedPlanError",
    "Place",
    "Record",
    "Store",
    "cell_from_row",
    "columns",
    "is_whole_png",
    "settings",
]
