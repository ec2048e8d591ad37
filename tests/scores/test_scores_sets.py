"""KID and CMMD against double loops, torchmetrics and known values; the table of a real sweep."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.command_line import subcommand
from support.small_sweep import run, store
from support.tiny_clip import clip_folder, random_image
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from sega_bench.analysis.groups import ALL
from sega_bench.scores import ScoreSettings, sets
from sega_bench.scores.loading import load_clip
from sega_bench.scores.sets import cmmd, embed, kid, unbiased_mmd2

CPU = torch.device("cpu")
CLIP = f"scores.clip_model=local-dir:{clip_folder('vit')}"


def features(seed: int, count: int, shift: float = 0.0, dimensions: int = 5) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, dimensions, generator=random, dtype=torch.float64) + shift


def double_loop(x: list[list[float]], y: list[list[float]], kernel: object) -> float:
    """The estimator, literally: Gretton et al. 2012, equation 3."""
    assert callable(kernel)
    within = 0.0
    for s in (x, y):
        pairs = [kernel(a, b) for (i, a), (j, b) in itertools.product(enumerate(s), repeat=2) if i != j]
        within += sum(pairs) / len(pairs)
    return within - 2 * sum(kernel(a, b) for a, b in itertools.product(x, y)) / (len(x) * len(y))


def cubic(a: list[float], b: list[float]) -> float:
    return (sum(u * v for u, v in zip(a, b, strict=True)) / len(a) + 1) ** 3


def gaussian(a: list[float], b: list[float]) -> float:
    return math.exp(-sum((u - v) ** 2 for u, v in zip(a, b, strict=True)) / (2 * 10.0**2))


@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 4), st.integers(0, 1000), st.floats(-2, 2))
@settings(max_examples=60, deadline=None)
def test_both_distances_equal_the_double_loop(n: int, m: int, rows: int, seed: int, shift: float) -> None:
    x, y = features(seed, n), features(seed + 1, m, shift)
    before, sets._ROWS = sets._ROWS, rows  # blocks of a few rows, whose diagonals have an offset
    try:
        ours = kid(x, y), cmmd(x, y)
    finally:
        sets._ROWS = before
    literal = double_loop(x.tolist(), y.tolist(), cubic), 1000 * double_loop(x.tolist(), y.tolist(), gaussian)
    assert ours == pytest.approx(literal, rel=1e-10, abs=1e-10)


def test_kid_agrees_with_torchmetrics() -> None:
    for seed, shift in ((0, 0.0), (1, 0.5), (2, 3.0)):
        x, y = features(seed, 40, dimensions=16), features(seed + 9, 40, shift, dimensions=16)
        assert kid(x, y) == pytest.approx(float(poly_mmd(x, y)), rel=1e-10)


def test_known_values() -> None:
    """Each set repeats one point, so the distance is that of the two points."""
    x, y = torch.zeros(3, 2), torch.tensor([[6.0, 8.0]]).repeat(4, 1)
    assert cmmd(x, y) == pytest.approx(1000 * (2 - 2 * math.exp(-0.5)))
    assert kid(x, y) == pytest.approx(1 + (100 / 2 + 1) ** 3 - 2)
    assert kid(x, x) == pytest.approx(0)
    assert math.isnan(kid(x[:1], y))
    assert math.isnan(cmmd(x, y[:1]))


def test_the_estimate_is_unbiased_for_small_sets() -> None:
    """For two samples of one distribution the mean estimate is 0, whatever their size."""
    for count in (3, 12):
        values = [kid(features(2 * s, count), features(2 * s + 1, count)) for s in range(400)]
        assert abs(np.mean(values)) < 3 * np.std(values) / 20
    assert unbiased_mmd2(features(0, 50), features(1, 50, 2.0), lambda a, b: a @ b.T) > 15


@pytest.mark.parametrize("edits", [1, 3])
def test_edits_of_their_own_references_are_not_closer_for_being_few(edits: int) -> None:
    """Without pairs of one source, whose images resemble each other, the mean is that of independent sets."""
    estimates: dict[float, list[float]] = {0.0: [], 2.0: []}
    sources = torch.arange(6).repeat(edits), torch.arange(6)
    for shift, values in estimates.items():
        for seed in range(400):
            unedited = 3 * features(seed, 6)
            edited = unedited.repeat(edits, 1) + 0.3 * features(seed + 1000, 6 * edits, shift / 0.3)
            values.append(unbiased_mmd2(edited, unedited, lambda a, b: a @ b.T, sources))
    for shift, values in estimates.items():  # a linear kernel gives the squared distance of the means
        assert abs(np.mean(values) - 5 * shift**2) < 3 * np.std(values) / 20


def test_an_embedding_does_not_depend_on_its_batch() -> None:
    scorer = load_clip(ScoreSettings(clip_model=CLIP.partition("=")[2], perceptual="none"), CPU)
    images = [random_image(0), random_image(1), random_image(2, 48, 64), random_image(3)]
    together = embed(scorer, images, 2)
    alone = torch.cat([embed(scorer, [image], 2) for image in images])
    assert torch.equal(together, alone)
    assert len(embed(scorer, [], 2)) == 0


# --- the table ---


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    run(folder, "concepts=[glasses,smile]", "seeds=3")
    return folder


def sets_table(sweep: Path, *words: str) -> pd.DataFrame:
    assert subcommand("sets", store(sweep).root, CLIP, *words) == 0
    return pd.read_csv(store(sweep).root / "sets.csv")


def test_each_setting_is_compared_with_its_unedited_images(sweep: Path) -> None:
    table = sets_table(sweep)
    assert list(table["concepts"]) == [ALL] * 2 + ['["glasses"]'] * 2 + ['["smile"]'] * 2
    assert list(table["edit_threshold"]) == [0.5, 0.9] * 3
    assert list(table["n"]) == [6, 6, 3, 3, 3, 3]
    assert set(table["n_reference"]) == {3}
    assert set(table["reference"]) == {"unedited"}
    assert table["kid"].notna().all()
    assert set(table["weights"].str[:7]) == {"sha256:"}
    scorer = load_clip(ScoreSettings(clip_model=CLIP.partition("=")[2], perceptual="none"), CPU)
    rows = store(sweep).rows()[0]
    edited = [row for row in rows if row["concepts"] == ["smile"] and row["edit_threshold"] == [0.9]]
    pair = [
        embed(scorer, [store(sweep).read_image(row["image"]) for row in part], 16)
        for part in (edited, [row for row in rows if row["is_reference"]])
    ]
    references = [row["key"] for row in rows if row["is_reference"]]
    sources = torch.tensor([references.index(row["reference_key"]) for row in edited]), torch.arange(3)
    assert table["kid"].iloc[-1] == pytest.approx(kid(*pair, sources), rel=1e-6)
    unit = [torch.nn.functional.normalize(feature_ND, dim=-1) for feature_ND in pair]
    assert table["cmmd"].iloc[-1] == pytest.approx(cmmd(*unit, sources), rel=1e-6)


def test_each_setting_is_compared_with_a_folders_images(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(4):
        Image.fromarray(random_image(seed, 40 + seed, 50)).save(tmp_path / f"{seed}.png")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no picture either")
    table = sets_table(sweep, "--reference", str(tmp_path))
    assert set(table["n_reference"]) == {4}
    assert set(table["reference"]) == {tmp_path.name}
    assert "broken.jpg is left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reference", "/nowhere"], "--reference /nowhere: it has 0 images that can be read"),
        (["seeds=3"], "'seeds=3': here there are"),
    ],
)
def test_mistakes_are_one_line(
    sweep: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert subcommand("sets", store(sweep).root, CLIP, *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_an_unreadable_image_is_left_out_and_counted(tmp_path: Path) -> None:
    run(tmp_path)
    (row, *_) = [row for row in store(tmp_path).rows()[0] if not row["is_reference"]]
    (store(tmp_path).root / row["image"]).write_bytes(b"")
    table = sets_table(tmp_path)
    assert list(table["n_unread"]) == [1, 0, 1, 0]
    assert list(table["n"]) == [1, 2, 1, 2]
    assert list(table["kid"].isna()) == [True, False, True, False]
