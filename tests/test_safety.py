"""The checkpoint's safety checker: diffusers' verdict in the column ``nsfw``, and pictures as they are."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sd
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from small_sweep import small
from tiny_clip import picture, sweep

from sega_bench import runner
from sega_bench.errors import UserError
from sega_bench.scores.safety import SafetyScorer, load_safety_checker
from sega_bench.scores.scoring import score
from sega_bench.sega import ModelSettings, describe
from sega_bench.store import Store

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd.write_checkpoint(tmp_path_factory.mktemp("checked") / "mine", has_checker=True)


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """One of one's own to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "mine"))


def scorer(folder: Path) -> SafetyScorer:
    found = describe(ModelSettings("mine", str(folder), safety_checker=True)).safety_checker
    assert found is not None
    return load_safety_checker(found, CPU)


def test_the_verdict_is_diffusers(checkpoint: Path) -> None:
    cells = sweep(range(24))
    images = {cell.key: picture(int(cell.key[:8], 16), 40, 56) for cell in cells}
    ours = [row["nsfw"] for row in score([scorer(checkpoint)], cells, images, batch_size=7)]
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint)
    pictures = np.stack([images[cell.key] for cell in cells]).astype(np.float32) / 255
    _, theirs = pipeline.run_safety_checker(pictures, CPU, torch.float32)
    assert ours == [float(flag) for flag in theirs]
    assert set(ours) == {0.0, 1.0}  # a checker that says one thing of everything proves nothing


def run(output_dir: Path, folder: Path, *more: str) -> list[Any]:
    return list(runner.run(small(output_dir, f"model.path={folder}", *more)))


def test_a_sweep_records_it_and_keeps_the_pictures(checkpoint: Path, tmp_path: Path) -> None:
    checked = run(tmp_path / "checked", checkpoint, "model.safety_checker=true")
    unchecked = run(tmp_path / "unchecked", checkpoint)
    assert {record.scores["nsfw"] for record in checked} <= {0.0, 1.0}
    assert len(checked) == 6
    assert all("nsfw" not in record.scores for record in unchecked)

    def pictures(records: list[Any]) -> dict[str, str]:
        return {record.cell.key: record.image_sha256 for record in records}

    assert pictures(checked) == pictures(unchecked)  # the same keys, too: it draws the same
    plan = json.loads(Store(tmp_path / "checked" / "small-local").plan_path.read_text())
    assert plan["scores"]["nsfw"]["weights"].startswith("sha256:")
    with pytest.raises(UserError, match=r"model\.safety_checker was True and is False"):
        run(tmp_path / "checked", checkpoint)


def test_a_checkpoint_without_one(copy: Path) -> None:
    with pytest.raises(UserError, match=r"has no safety checker: set model\.safety_checker=false"):
        describe(ModelSettings("x", str(tiny_sd.folder()), safety_checker=True))
    shutil.rmtree(copy / "safety_checker")  # as people do, leaving model_index.json as it was
    describe(ModelSettings("x", str(copy)))
    with pytest.raises(UserError, match=r"lacks safety_checker/config\.json"):
        describe(ModelSettings("x", str(copy), safety_checker=True))


def test_it_is_loaded_strictly(copy: Path) -> None:
    weights = copy / "safety_checker" / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: value for name, value in tensors.items() if name != "concept_embeds"}, weights)
    with pytest.raises(
        UserError, match=r"safety_checker/model\.safetensors lacks 1 tensor \(concept_embeds\)"
    ):
        describe(ModelSettings("x", str(copy), safety_checker=True))
    aged = {name.replace("vision_model.", "vision_model.vision_model.", 1): v for name, v in tensors.items()}
    save_file(aged, weights)  # as on the hub
    assert torch.equal(scorer(copy).checker.concept_embeds, tensors["concept_embeds"])
    (copy / "feature_extractor" / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"model\.safety_checker: feature_extractor"):
        describe(ModelSettings("x", str(copy), safety_checker=True))
