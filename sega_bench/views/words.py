"""How the views write values and untrusted texts."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from sega_bench.errors import clean


def short(value: Any) -> str:
    """A setting's value as one would say it: 0.5, not 0.500000."""
    if value is None or pd.isna(value):
        return "none"
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    return clean(str(value)) or "(empty)"


def concept_label(concepts: str) -> str:
    """A concept set's JSON list as words: its texts, joined by a plus sign."""
    return " + ".join(clean(text) for text in json.loads(concepts))
