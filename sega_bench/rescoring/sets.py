"""Compare a sweep's edited images, as a set, with unedited ones or with a folder's, by KID and CMMD."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
from sega_bench.rescoring.rescore import parse_overrides, resolve_settings
from sega_bench.scores.clip import ClipScorer
from sega_bench.scores.loading import load_clip
from sega_bench.scores.sets import Sources, cmmd, embed, kid
from sega_bench.sega.models import resolve_device
from sega_bench.store import UNREADABLE

UNEDITED = "unedited"
"""``reference`` of a table that compares edited images with their own unedited ones."""

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_COLUMNS = ("reference", "n", "n_reference", "n_unread", "kid", "cmmd", "backbone", "weights")


@dataclass(frozen=True)
class _Embeddings:
    """CLIP embeddings of the images that could be read.

    Args:
        feature_ND: one row an image.
        row: the image's name -> its row.
    """

    feature_ND: Tensor
    row: dict[str, int]

    def of(self, names: Sequence[str]) -> Tensor:
        """Embeddings (M, D) of M images, by name."""
        return self.feature_ND[[self.row[name] for name in names]]


def compare_sets(
    results: Results, scorer: ClipScorer, batch_size: int, reference: Path | None = None
) -> pd.DataFrame:
    """One row for each setting over all concept sets, then one for each setting and concept set.

    Args:
        results: of the sweep; each combination of its axes' values is a setting.
        scorer: gives the embeddings.
        batch_size: of the scorer.
        reference: a folder of images to compare with; None: each setting's own unedited images.

    Returns:
        The axes; ``concepts``; ``reference``; ``n`` and ``n_reference``, images in both sets; ``n_unread``,
        images that could not be read; ``kid`` and ``cmmd`` (:mod:`sega_bench.scores.sets`), NaN for fewer
        than two references, because images of one reference depend on each other; ``backbone`` and
        ``weights`` of the features.

    Raises:
        UserError: the folder has fewer than two images that can be read.
    """
    store, axes = results.store, results.axes
    done = results.frame[results.frame["status"] == "done"]
    files = zip(done["key"].astype(str), map(store.image_file, done["image"].astype(str)), strict=True)
    embeddings = _embed_files(scorer, files, batch_size)
    folder_MD = None if reference is None else _embed_folder(scorer, reference, batch_size)
    network = {name: scorer.provenance["clip"][name] for name in ("backbone", "weights")}
    rows = [
        setting | _compare(group, embeddings, folder_MD) | network
        for setting, group in _settings(done[~done["is_reference"]], axes)
    ]
    table = pd.DataFrame(rows, columns=[*axes, "concepts", *_COLUMNS])
    return table.assign(reference=UNEDITED if reference is None else reference.name)


def _settings(edited: pd.DataFrame, axes: Sequence[str]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Each setting with its rows, over all concept sets and then for each."""
    scopes = [(ALL, edited), *edited.groupby("concepts", sort=False)] if len(edited) else []
    for concepts, scope in scopes:
        groups = scope.groupby(list(axes), sort=False, dropna=False) if axes else [((), scope)]
        for values, group in groups:
            yield dict(zip(axes, values, strict=True)) | {"concepts": concepts}, group


def _compare(group: pd.DataFrame, embeddings: _Embeddings, folder_MD: Tensor | None) -> dict[str, float]:
    """Counts and distances of one setting: its edited images against references or a folder's images."""
    read = group[group["key"].isin(list(embeddings.row))]
    source = {key: number for number, key in enumerate(group["reference_key"].unique())}
    edited_sources = [source[key] for key in read["reference_key"]]
    if folder_MD is None:
        references = [key for key in source if key in embeddings.row]
        other_MD, other_sources = embeddings.of(references), [source[key] for key in references]
    else:  # a folder's image depends on no other: each is its own source
        other_MD, other_sources = folder_MD, list(range(len(source), len(source) + len(folder_MD)))
    counts = {"n": len(read), "n_reference": len(other_MD), "n_unread": len(group) - len(read)}
    sources = torch.tensor(edited_sources), torch.tensor(other_sources)
    return counts | _distances(embeddings.of(list(read["key"])), other_MD, sources)


def _distances(x_ND: Tensor, y_MD: Tensor, sources: Sources) -> dict[str, float]:
    unit_ND, unit_MD = F.normalize(x_ND, dim=-1), F.normalize(y_MD, dim=-1)
    return {"kid": kid(x_ND, y_MD, sources), "cmmd": cmmd(unit_ND, unit_MD, sources)}


def _embed_files(scorer: ClipScorer, files: Iterator[tuple[str, Path]], batch_size: int) -> _Embeddings:
    """Embed named image files, one batch in memory at a time; unreadable ones are left out."""
    row: dict[str, int] = {}

    def images() -> Iterator[NDArray[np.uint8]]:
        for name, path in files:
            image_HWC = _read(path)
            if image_HWC is not None:
                row[name] = len(row)
                yield image_HWC

    return _Embeddings(embed(scorer, images(), batch_size), row)


def _embed_folder(scorer: ClipScorer, folder: Path, batch_size: int) -> Tensor:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    feature_MD = _embed_files(scorer, ((str(path), path) for path in files), batch_size).feature_ND
    if len(feature_MD) < 2:
        raise UserError(
            f"--reference {folder}: it has {len(feature_MD)} images that can be read, but a set has at "
            f"least two ({', '.join(_SUFFIXES)})"
        )
    return feature_MD


def _read(path: Path) -> NDArray[np.uint8] | None:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except UNREADABLE:
        print(f"{path} is left out: it is not there or cannot be read", file=sys.stderr)
        return None


def write_sets(results: Results, words: Sequence[str], reference: Path | None) -> pd.DataFrame:
    """Compare a folder's sets of images and write sets.csv.

    Args:
        results: of the sweep.
        words: overrides of the scorer's settings and the device, see
            :func:`sega_bench.rescoring.rescore.parse_overrides`.
        reference: see :func:`compare_sets`.
    """
    overrides, device = parse_overrides(words)
    settings = replace(resolve_settings(results.store, overrides), perceptual="none")
    scorer = load_clip(settings, resolve_device(device))
    table = compare_sets(results, scorer, settings.batch_size, reference)
    results.store.write_text(results.store.sets_csv, table.to_csv(index=False, lineterminator="\n"))
    return table
