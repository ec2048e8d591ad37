"""The score ``nsfw`` equals the verdict of diffusers' safety checker, and images are not blackened."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from support import tiny_sd
from support.browser import chromium, open_report
from support.small_sweep import small
from support.tiny_clip import clip_folder, random_image, sweep

from sega_bench import compose
from sega_bench.analysis.frames import load
from sega_bench.analysis.results import Results
from sega_bench.errors import UserError
from sega_bench.execution import runner
from sega_bench.scores.safety import SafetyScorer, load_safety_checker
from sega_bench.scores.scoring import score
from sega_bench.sega import ModelSettings, describe
from sega_bench.store import Store
from sega_bench.views.write_all import write_views

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd.write_checkpoint(tmp_path_factory.mktemp("checked") / "mine", has_checker=True)


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A private copy of the checkpoint, for a test to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "mine"))


def scorer(folder: Path) -> SafetyScorer:
    safety_checker = describe(ModelSettings("mine", str(folder), safety_checker=True)).safety_checker
    assert safety_checker is not None
    return load_safety_checker(safety_checker, CPU)


def test_nsfw_is_the_verdict_of_diffusers(checkpoint: Path) -> None:
    cells = sweep(range(24))
    images = {cell.key: random_image(int(cell.key[:8], 16), 40, 56) for cell in cells}
    ours = [row["nsfw"] for row in score([scorer(checkpoint)], cells, images, batch_size=7)]
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint)
    image_BHWC = np.stack([images[cell.key] for cell in cells]).astype(np.float32) / 255
    _, theirs = pipeline.run_safety_checker(image_BHWC, CPU, torch.float32)
    assert ours == [float(flag) for flag in theirs]
    assert set(ours) == {0.0, 1.0}  # a checker with one verdict for all images proves nothing


def run(output_dir: Path, folder: Path, *more: str) -> list[Any]:
    return list(runner.run(small(output_dir, f"model.path={folder}", *more)))


def test_a_sweep_records_nsfw_and_does_not_change_images(checkpoint: Path, tmp_path: Path) -> None:
    checked = run(tmp_path / "checked", checkpoint, "model.safety_checker=true")
    unchecked = run(tmp_path / "unchecked", checkpoint)
    assert {record.scores["nsfw"] for record in checked} <= {0.0, 1.0}
    assert len(checked) == 6
    assert all("nsfw" not in record.scores for record in unchecked)

    def digests(records: list[Any]) -> dict[str, str]:
        return {record.cell.key: record.image_sha256 for record in records}

    assert digests(checked) == digests(unchecked)  # the same keys, too: the checker is not part of a cell
    plan = json.loads(Store(tmp_path / "checked" / "small-local").plan_path.read_text())
    assert plan["scores"]["nsfw"]["weights"].startswith("sha256:")
    with pytest.raises(UserError, match=r"model\.safety_checker was True and is False"):
        run(tmp_path / "checked", checkpoint)


@pytest.fixture(scope="module")
def i2p_sweep(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The sweep ``i2p`` with prompts in I2P's format; the checker flags some of its images."""
    folder = tmp_path_factory.mktemp("i2p")
    checkpoint = Path(shutil.copytree(checkpoint, folder / "mine"))
    weights = checkpoint / "safety_checker" / "model.safetensors"
    thresholds = {"concept_embeds_weights": 0.5, "special_care_embeds_weights": 1.0}
    tensors = load_file(weights)
    save_file(tensors | {name: torch.full_like(tensors[name], t) for name, t in thresholds.items()}, weights)
    prompts = [("a castle", 3, 7), ("a man, walking", 11, 7.5), ("a tree", 5, 8)]
    lines = [f'"{prompt}",{seed},{scale},hate' for prompt, seed, scale in prompts]
    (folder / "i2p.csv").write_text("\n".join(["prompt,sd_seed,sd_guidance_scale,categories", *lines]))
    words = ["+sweep=i2p", "model=local", f"model.path={checkpoint}", f"prompts={folder / 'i2p.csv'}"]
    words += ["scores=faces", f"scores.clip_model=local-dir:{clip_folder('vit')}", "wandb.mode=disabled"]
    list(runner.run(compose(*words, "sampling.num_inference_steps=12", f"output_dir={folder}")))
    store = Store(folder / "i2p-local")
    write_views(Results.read(store))
    return store


def test_the_i2p_sweep_records_the_verdict_on_every_image(i2p_sweep: Store) -> None:
    frame = load(i2p_sweep.root)
    assert frame.groupby("prompt")["seed"].unique().map(list).to_dict() == {
        "a castle": [3],
        "a man, walking": [11],
        "a tree": [5],
    }
    assert frame["guidance_scale"].nunique() == 3
    edited = frame[~frame["is_reference"]]
    assert len(edited) == 9
    assert edited["reverse_editing_direction"].all()
    image_BHWC = np.stack([i2p_sweep.read_image(key) for key in frame["key"]])
    pipeline = StableDiffusionPipeline.from_pretrained(i2p_sweep.root.parent / "mine")
    _, flags = pipeline.run_safety_checker(image_BHWC.astype(np.float32) / 255, CPU, torch.float32)
    assert frame["nsfw"].tolist() == [float(flag) for flag in flags]
    assert set(frame["nsfw"]) == {0.0, 1.0}
    summary = pd.read_csv(i2p_sweep.summary_csv).query("concepts == 'all'")
    assert summary["nsfw_mean"].mean() == pytest.approx(edited["nsfw"].mean())
    unedited = frame[frame["is_reference"]]["nsfw"].mean()
    assert summary["nsfw_unedited_mean"].tolist() == pytest.approx([unedited] * 3)


@pytest.mark.browser
def test_the_report_covers_flagged_images(i2p_sweep: Store) -> None:
    frame = load(i2p_sweep.root).set_index("key")
    with chromium() as started:
        page = open_report(started, i2p_sweep.root).page
        page.locator("#with-references").check()
        page.locator("#table-note", has_text=f"{len(frame)} cells").wait_for()
        covered = page.evaluate(
            """[...document.querySelectorAll("#rows tr[data-key]")].map((row) =>
            [row.dataset.key, row.querySelector(".flagged .veil") !== null])"""
        )
    of_reference = frame.loc[frame["reference_key"], "nsfw"].to_numpy() > 0
    flagged = pd.Series((frame["nsfw"] > 0) | of_reference, index=frame.index)  # a row shows both images
    assert dict(covered) == flagged.to_dict()
    assert flagged.any()


def test_a_checkpoint_without_a_safety_checker_is_refused(copy: Path) -> None:
    with pytest.raises(UserError, match=r"has no safety checker: set model\.safety_checker=false"):
        describe(ModelSettings("x", str(tiny_sd.folder()), safety_checker=True))
    shutil.rmtree(copy / "safety_checker")  # as people do; model_index.json still names it
    describe(ModelSettings("x", str(copy)))
    with pytest.raises(UserError, match=r"lacks safety_checker/config\.json"):
        describe(ModelSettings("x", str(copy), safety_checker=True))


def test_the_safety_checker_is_loaded_strictly(copy: Path) -> None:
    weights = copy / "safety_checker" / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: value for name, value in tensors.items() if name != "concept_embeds"}, weights)
    with pytest.raises(
        UserError, match=r"safety_checker/model\.safetensors lacks 1 tensor \(concept_embeds\)"
    ):
        describe(ModelSettings("x", str(copy), safety_checker=True))
    old_names = {
        name.replace("vision_model.", "vision_model.vision_model.", 1): v for name, v in tensors.items()
    }
    save_file(old_names, weights)  # as on the hub
    assert torch.equal(scorer(copy).checker.concept_embeds, tensors["concept_embeds"])
    (copy / "feature_extractor" / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"model\.safety_checker: feature_extractor"):
        describe(ModelSettings("x", str(copy), safety_checker=True))
