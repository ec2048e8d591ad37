"""Format setting values and untrusted texts for views."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from sega_bench.errors import clean


def format_value(value: Any) -> str:
    """A setting's value as text: 0.5, not 0.500000."""
    if value is None or pd.isna(value):
        return "none"
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    return clean(str(value)) or "(empty)"


def concept_labels(sets: Iterable[str]) -> dict[str, str]:
    """Labels for concept sets, each a JSON list of texts: the texts joined by plus signs.

    If any set has several texts, a text of several phrases ("smiling, smile") is shortened to its first
    phrase, unless another text starts with the same one.
    """
    texts = {concepts: [clean(text) for text in json.loads(concepts)] for concepts in sets}
    every = {text for together in texts.values() for text in together}
    short = {text: text.partition(",")[0] for text in every}
    if max(map(len, texts.values()), default=0) < 2 or len(set(short.values())) < len(every):
        short = {text: text for text in every}
    return {concepts: " + ".join(short[text] for text in together) for concepts, together in texts.items()}
