"""Locality of known changes under known masks, and the mask's round trip from the engine to the disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.small_sweep import rows, run, store

from sega_bench.cell import Cell, Edit
from sega_bench.scores.locality import LocalityScorer, locality
from sega_bench.scores.scoring import score
from sega_bench.store.images import CellImage

EDIT = Cell("a face", 0, (Edit("smile"),), height=32, width=48)
Mask = NDArray[np.bool_]


def scored(before: NDArray[np.uint8], after: NDArray[np.uint8], mask: Mask | None) -> Mapping[str, float]:
    images = {EDIT.reference().key: before, EDIT.key: after}
    masks = {} if mask is None else {EDIT.key: mask}
    reference, values = score([LocalityScorer(masks)], [EDIT.reference(), EDIT], images, 3)
    assert reference == {}
    return values  # type: ignore[return-value]


def blank() -> NDArray[np.uint8]:
    return np.full((32, 48, 3), 100, np.uint8)


def test_locality_is_the_share_of_the_change_inside_the_mask() -> None:
    """The mask is the upper left of 4 x 6 positions, 8 x 8 pixels; 30 of 50 changed levels are inside."""
    mask = np.zeros((4, 6), bool)
    mask[0, 0] = True
    after = blank()
    after[7, 7] += np.array([10, 0, 20], np.uint8)
    after[8, 7] -= np.array([0, 20, 0], np.uint8)
    assert scored(blank(), after, mask) == {"locality": 30 / 50, "guided_fraction": 1 / 24}


def test_locality_is_nan_without_a_change_and_absent_without_a_mask() -> None:
    unchanged = scored(blank(), blank(), np.ones((4, 6), bool))
    assert math.isnan(unchanged["locality"])
    assert unchanged["guided_fraction"] == 1.0
    assert scored(blank(), blank() + 1, None) == {}


@given(st.integers(0, 2**32), st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_a_mask_and_its_complement_share_the_change(seed: int, batch: int) -> None:
    rng = np.random.default_rng(seed)
    change_BHW = torch.from_numpy(rng.integers(1, 700, (batch, 16, 24)))
    mask_BHW = torch.from_numpy(rng.random((batch, 16, 24)) < rng.random())
    inside, outside = locality(change_BHW, mask_BHW), locality(change_BHW, ~mask_BHW)
    assert torch.allclose(inside + outside, torch.ones(batch, dtype=torch.float64))
    by_hand = [c[m].sum() / c.sum() for c, m in zip(change_BHW.double(), mask_BHW, strict=True)]
    assert inside.tolist() == pytest.approx([float(value) for value in by_hand])


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_image_and_mask_survive_the_file(
    tmp_path_factory: pytest.TempPathFactory, seed: int, height: int, width: int
) -> None:
    rng = np.random.default_rng(seed)
    path = tmp_path_factory.mktemp("png") / "one.png"
    image = CellImage(rng.integers(0, 256, (8, 8, 3), np.uint8), rng.random((height, width)) < 0.5)
    path.write_bytes(image.to_png({"seed": seed}))
    back = CellImage.read(path)
    assert (back.image_HWC == image.image_HWC).all()
    assert back.is_guided_HW is not None
    assert image.is_guided_HW is not None
    assert (back.is_guided_HW == image.is_guided_HW).all()


def test_a_higher_threshold_guides_less_and_a_reference_is_not_guided(tmp_path: Path) -> None:
    run(tmp_path, "+axes.edit_guidance_scale=[0,5]")
    fraction_at: dict[object, float] = {}
    for row in rows(tmp_path).values():
        image = store(tmp_path).read_cell_image(row["image"])
        if row["is_reference"] or row["edit_guidance_scale"] == [0]:
            assert image.is_guided_HW is None
            assert "locality" not in row
        else:
            assert image.is_guided_HW is not None
            assert row["guided_fraction"] == image.is_guided_HW.mean()
            assert 0 < row["locality"] <= 1
            fraction_at.setdefault(row["edit_threshold"][0], row["guided_fraction"])
    assert fraction_at[0.9] < fraction_at[0.5]


def test_scoring_later_reads_the_mask_from_the_file(tmp_path: Path) -> None:
    run(tmp_path)
    key, row = next((key, row) for key, row in rows(tmp_path).items() if not row["is_reference"])
    lines = (store(tmp_path).records_dir / "0.jsonl").read_text().splitlines()
    unscored = [
        line.replace('"error": null', '"error": "not scored: x"') if f'"key": "{key}"' in line else line
        for line in lines
    ]
    (store(tmp_path).records_dir / "0.jsonl").write_text("\n".join(unscored) + "\n")
    (record,) = run(tmp_path, "retry_failed=true")
    assert record.error is None
    assert record.scores["locality"] == row["locality"]
