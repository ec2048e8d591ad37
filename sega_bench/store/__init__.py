"""One sweep's folder, the truth of it on disk: rows, images, the plan, and who is at work on them."""

from sega_bench.store.folder import PLAN_VERSION, DamagedPlanError, Store, is_whole_png
from sega_bench.store.journal import Place
from sega_bench.store.pictures import IMAGE_CHUNK, UNREADABLE, Picture
from sega_bench.store.records import (
    EXECUTION_COLUMNS,
    OUTCOME_COLUMNS,
    SCORE_COLUMNS,
    SETTING_COLUMNS,
    Record,
    cell_of,
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
    "DamagedPlanError",
    "Picture",
    "Place",
    "Record",
    "Store",
    "cell_of",
    "columns",
    "is_whole_png",
    "settings",
]
