"""KID and CMMD: how far a sweep's edited pictures are, as a set, from unedited ones or from a folder's.

    python -m sega_bench sets outputs/thresholds
    python -m sega_bench sets outputs/thresholds --reference photographs/

writes sets.csv beside the other tables.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sega_bench.analysis.groups import ALL
from sega_bench.analysis.results import Results
from sega_bench.errors import UserError
from sega_bench.rescoring.rescore import read_words, settings_of
from sega_bench.scores.clip import ClipScorer
from sega_bench.scores.loading import load_clip
from sega_bench.scores.sets import Sources, cmmd, embed, kid
from sega_bench.sega.models import resolve_device
from sega_bench.store import UNREADABLE

UNEDITED = "unedited"
"""``reference`` of a table whose edited pictures are compared with their own unedited ones."""

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def compare_sets(
    results: Results, scorer: ClipScorer, batch_size: int, reference: Path | None = None
) -> pd.DataFrame:
    """One row for each setting over all concept sets, then for each concept set.

    Args:
        results: of the sweep; each combination of its axes' values is a setting.
        scorer: whose embeddings are compared.
        batch_size: of the scorer.
        reference: a folder of pictures to compare with; None: each setting's own unedited pictures.

    Returns:
        The axes; ``concepts``; ``reference``; ``n`` and ``n_reference`` pictures in both sets; ``n_unread``
        that could not be read; ``kid`` and ``cmmd`` (:mod:`sega_bench.scores.sets`; pictures of one
        reference depend on each other), NaN of fewer than two references; ``backbone`` and ``weights`` of
        the features.

    Raises:
        UserError: the folder has fewer than two pictures that can be read.
    """
    store, axes = results.store, results.axes
    done = results.frame[results.frame["status"] == "done"]
    files = zip(done["key"].astype(str), map(store.image_file, done["image"].astype(str)), strict=True)
    feature_ND, place = _embedded(scorer, files, batch_size)
    given_MD = None if reference is None else _folder(scorer, reference, batch_size)
    source = {name: scorer.provenance["clip"][name] for name in ("backbone", "weights")}
    rows = []
    for setting, group in _settings(done[~done["is_reference"]], axes):
        read = group[group["key"].isin(list(place))]
        own = [place[key] for key in read["key"]]
        number = {key: i for i, key in enumerate(group["reference_key"].unique())}
        of_own = [number[key] for key in read["reference_key"]]
        others = [key for key in number if key in place]
        if given_MD is None:
            other_MD, of_other = feature_ND[[place[key] for key in others]], [number[key] for key in others]
        else:
            other_MD, of_other = given_MD, list(range(len(number), len(number) + len(given_MD)))
        sources = torch.tensor(of_own), torch.tensor(of_other)
        counts = {"n": len(own), "n_reference": len(other_MD), "n_unread": len(group) - len(own)}
        rows.append(setting | counts | _distances(feature_ND[own], other_MD, sources) | source)
    table = pd.DataFrame(rows, columns=[*axes, "concepts", *_COLUMNS])
    return table.assign(reference=UNEDITED if reference is None else reference.name)


_COLUMNS = ("reference", "n", "n_reference", "n_unread", "kid", "cmmd", "backbone", "weights")


def _distances(x_ND: Tensor, y_MD: Tensor, sources: Sources) -> dict[str, float]:
    of_length_1 = F.normalize(x_ND, dim=-1), F.normalize(y_MD, dim=-1)
    return {"kid": kid(x_ND, y_MD, sources), "cmmd": cmmd(*of_length_1, sources)}


def _settings(edited: pd.DataFrame, axes: Sequence[str]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    scopes = [(ALL, edited), *edited.groupby("concepts", sort=False)] if len(edited) else []
    for concepts, scope in scopes:
        groups = scope.groupby(list(axes), sort=False, dropna=False) if axes else [((), scope)]
        for values, group in groups:
            yield dict(zip(axes, values, strict=True)) | {"concepts": concepts}, group


def _embedded(
    scorer: ClipScorer, files: Iterator[tuple[str, Path]], batch_size: int
) -> tuple[Tensor, dict[str, int]]:
    """Embeddings of what can be read, and the place of each among them."""
    place: dict[str, int] = {}

    def images() -> Iterator[NDArray[np.uint8]]:
        for name, path in files:
            image_HWC = _read(path)
            if image_HWC is not None:
                place[name] = len(place)
                yield image_HWC

    return embed(scorer, images(), batch_size), place


def _read(path: Path) -> NDArray[np.uint8] | None:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except UNREADABLE:
        print(f"{path} is left out: it is not there or cannot be read", file=sys.stderr)
        return None


def _folder(scorer: ClipScorer, folder: Path, batch_size: int) -> Tensor:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    feature_MD, _ = _embedded(scorer, ((str(path), path) for path in files), batch_size)
    if len(feature_MD) < 2:
        raise UserError(
            f"--reference {folder}: it has {len(feature_MD)} pictures that can be read, but a set has at "
            f"least two ({', '.join(_SUFFIXES)})"
        )
    return feature_MD


def write_sets(results: Results, words: Sequence[str], reference: Path | None) -> pd.DataFrame:
    """Compare a folder's sets of images and write sets.csv; ``words`` choose scorer and device."""
    others, device = read_words(words)
    settings = replace(settings_of(results.store, others), perceptual="none")
    scorer = load_clip(settings, resolve_device(device))
    table = compare_sets(results, scorer, settings.batch_size, reference)
    results.store.write_text(results.store.sets_csv, table.to_csv(index=False, lineterminator="\n"))
    return table
