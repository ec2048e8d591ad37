"""One sweep's folder, the truth of it on disk: rows, images, the plan, and who is at work on them."""

from sega_bench.store.folder import (
    EXECUTION_COLUMNS,
    OUTCOME_COLUMNS,
    PLAN_VERSION,
    SCORE_COLUMNS,
    SETTING_COLUMNS,
    Record,
    Store,
    columns,
    settings,
)
from sega_bench.store.pictures import IMAGE_CHUNK, Picture

__all__ = [
    "EXECUTION_COLUMNS",
    "IMAGE_CHUNK",
    "OUTCOME_COLUMNS",
    "PLAN_VERSION",
    "SCORE_COLUMNS",
    "SETTING_COLUMNS",
    "Picture",
    "Record",
    "Store",
    "columns",
    "settings",
]
