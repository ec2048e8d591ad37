from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.live_oracle import needs_live_oracle
from torch import Tensor, nn
from transformers import CLIPTokenizer

from sega_bench.faces import CLASSIFIER_PATH, PIPELINE_DIR, SCORER_DIR, card, train
from sega_bench.faces.autoencoder import make_autoencoder, psnr, reconstruct, standardise
from sega_bench.faces.captions import (
    ABSENT,
    CONCEPTS,
    PRESENT,
    Caption,
    bare_phrase,
    caption,
    claims_of,
    is_true,
    nonsense,
)
from sega_bench.faces.classifier import load_classifier, predict
from sega_bench.faces.clip import concept_auc, cosine_to_empty, make_clip, text_encoder, token_ids
from sega_bench.faces.data import Drawings, draw
from sega_bench.faces.drawing import BACKGROUND, BINARY, HAIR, LABELS, Face, face_of_seed, render
from sega_bench.faces.editing import Setting, generate, load_pipeline
from sega_bench.faces.evaluate import Share, bootstrap, share
from sega_bench.faces.fitting import Recipe, fit
from sega_bench.faces.practice import counterfactuals
from sega_bench.faces.tokenizer import make_tokenizer, train_merges
from sega_bench.faces.unet import Denoising, make_scheduler

FRESH_SEED = 4242
PROMPT = "a photo of the face of a woman"
WEIGHTS = PIPELINE_DIR.parent


@pytest.fixture(scope="module")
def fresh() -> Drawings:
    return draw(FRESH_SEED, 300)


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline(PIPELINE_DIR)


@pytest.fixture(scope="module")
def scorer():
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{SCORER_DIR}")
    return model.eval()


# drawing


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_a_seed_always_gives_the_same_drawing(index: int) -> None:
    face = face_of_seed(3, index)
    assert face == face_of_seed(3, index)
    assert (render(face) == render(face)).all()


def changed_rows_and_columns(before: Face, after: Face) -> tuple[set[int], set[int]]:
    ys, xs = np.nonzero((render(before) != render(after)).any(-1))
    return set(ys.tolist()), set(xs.tolist())


@pytest.mark.parametrize(
    ("change", "top", "bottom"),
    [
        ({"glasses": True}, 20, 42),
        ({"smile": True}, 34, 56),
        ({"beard": True}, 30, 62),
        ({"hat": True}, 0, 25),
    ],
)
@given(index=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_an_attribute_changes_only_its_region(
    change: dict[str, bool], top: int, bottom: int, index: int
) -> None:
    plain = replace(face_of_seed(3, index), smile=False, glasses=False, beard=False, hat=False, curls=False)
    rows, columns = changed_rows_and_columns(plain, replace(plain, **change))
    assert rows, "nothing changed"
    assert min(rows) >= top
    assert max(rows) <= bottom
    assert min(columns) >= 4
    assert max(columns) <= 59


@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_curls_keep_the_hair_colour(index: int) -> None:
    """The top of the head has the same hue with and without curls; shading changes only the lightness."""
    plain = replace(face_of_seed(3, index), hat=False, curls=False)
    patch = (slice(12, 18), slice(26, 38))
    means = [render(face)[patch].mean((0, 1)) for face in (plain, replace(plain, curls=True))]
    cosine = means[0] @ means[1] / (np.linalg.norm(means[0]) * np.linalg.norm(means[1]))
    assert cosine > 0.98


def test_attributes_are_independent_except_beard_and_woman() -> None:
    labels = np.array([face_of_seed(9, i).labels() for i in range(4000)])[:, :6].astype(float)
    correlation = np.corrcoef(labels.T)
    woman, beard = BINARY.index("woman"), BINARY.index("beard")
    correlation[woman, beard] = correlation[beard, woman] = 0
    assert np.abs(correlation - np.eye(6)).max() < 0.06


# captions


def claims_in(text: str) -> dict[str, bool]:
    """Attributes that a caption's text claims, read phrase by phrase without `Caption.claims`."""
    phrases = text.split(", ")
    claims = {}
    for table, value in ((PRESENT, True), (ABSENT, False)):
        for name, texts in table.items():
            if any(part in phrases for phrase in texts for part in phrase.split(", ")):
                claims[name] = value
    words = text.replace(",", "").split()
    if {"woman", "female"} & set(words):
        claims["woman"] = True
    if {"man", "male"} & set(words):
        claims["woman"] = False
    return claims


@given(st.integers(0, 100_000), st.integers(0, 100_000))
@settings(max_examples=300, deadline=None)
def test_captions_are_true_and_their_claims_match_their_text(index: int, number: int) -> None:
    face = face_of_seed(5, index)
    sampled = caption(face, np.random.default_rng(number))
    assert all(face.labels()[LABELS.index(name)] == value for name, value in sampled.claims.items())
    for name, value in claims_in(sampled.text).items():
        assert getattr(face, name) == value
        assert sampled.claims[name] == value
    for color in HAIR:
        assert f"{color} hair" not in sampled.text or face.hair == color
    for color in BACKGROUND:
        assert f"{color} background" not in sampled.text or face.background == color
    assert f"{face.hat_color} hat" not in sampled.text or face.hat


def test_a_caption_is_true_if_all_its_claims_hold() -> None:
    faces = [Face(), Face(glasses=True), Face(glasses=True, woman=False, long_hair=False)]
    captions = [Caption(""), Caption("glasses", {"glasses": 1}), Caption("a man", {"woman": 0})]
    claims = np.stack([c.claimed() for c in captions])
    labels = np.array([face.labels() for face in faces], dtype=np.int8)
    assert is_true(claims, labels).tolist() == [[True, True, True], [False, True, True], [False, False, True]]


# tokenizer and text encoder


TEXTS = ["", *CONCEPTS.values(), PROMPT, "Zoë's 3 hats & a CLOSE-UP, qwerty!", "glasses " * 40]


def test_merges_join_the_most_frequent_pairs() -> None:
    assert train_merges(["aa aa ab"], 2) == [("a", "a</w>"), ("a", "b</w>")]


def test_pipeline_and_scorer_tokenize_identically() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(PIPELINE_DIR / "tokenizer")
    ids = open_clip.get_tokenizer(f"local-dir:{SCORER_DIR}")(TEXTS)
    assert torch.equal(ids, token_ids(tokenizer, TEXTS))
    assert ids.shape == (len(TEXTS), 32)


def test_the_text_encoder_is_the_scorers_text_tower() -> None:
    tokenizer = make_tokenizer(train_merges(["a photo of a face"]))
    clip = make_clip(len(tokenizer)).eval()
    ids = token_ids(tokenizer, ["a photo of a face", ""])
    with torch.no_grad():
        states = text_encoder(clip, tokenizer)(ids).last_hidden_state
        ends = (ids == tokenizer.eos_token_id).int().argmax(1)
        embedding = states[torch.arange(2), ends] @ clip.text_projection
        torch.testing.assert_close(embedding, clip.encode_text(ids))


# training machinery


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([3.0, -2.0]))


def noisy_square(line: Line, stop_at: int | None = None):
    calls = 0

    def loss(rng: np.random.Generator) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise KeyboardInterrupt
        noise = torch.randn(2) * 0.1 + float(rng.normal()) * 0.1
        return (line.slope + noise).square().sum()

    return loss


def test_a_resumed_fit_gives_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    recipe = Recipe(steps=20, batch=1, lr=0.1, warmup=3, checkpoint_seconds=0)
    whole, first, second = Line(), Line(), Line()
    fit("line", whole, noisy_square(whole), recipe, tmp_path / "whole", seed=0)
    with pytest.raises(KeyboardInterrupt):
        fit("line", first, noisy_square(first, stop_at=9), recipe, tmp_path / "parts", seed=0)
    fit("line", second, noisy_square(second), recipe, tmp_path / "parts", seed=0)
    assert torch.equal(whole.slope, second.slope)
    assert float(whole.slope.detach().abs().max()) < 2


def test_standardised_latents_decode_to_the_same_images() -> None:
    torch.manual_seed(0)
    vae = make_autoencoder().eval()
    x_BCHW = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        latents = vae.encode(x_BCHW).latent_dist.mean
        before = vae.decode(latents).sample
        returned = standardise(vae, latents)
        after = vae.encode(x_BCHW).latent_dist.mean
        torch.testing.assert_close(after, returned, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(vae.decode(after).sample, before, atol=1e-4, rtol=1e-4)
    assert after.mean((0, 2, 3)).abs().max() < 1e-4
    assert (after.std((0, 2, 3)) - 1).abs().max() < 1e-4


def test_the_learning_rate_runs_in_equal_cycles() -> None:
    recipe = Recipe(steps=40, batch=1, lr=0.5, warmup=4, cycles=2)
    rates = [recipe.lr_at(step) for step in range(40)]
    assert rates[:20] == rates[20:]
    assert rates[:4] == [0.125, 0.25, 0.375, 0.5]
    assert rates[4:20] == sorted(rates[4:20], reverse=True)
    assert rates[19] < 0.02
    for scale, steps in ((0.5, 20), (0.03, 4), (1e-6, 4)):
        small = recipe.scaled(scale)
        assert (small.steps, small.cycles) == (steps, 2)
        assert small.warmup <= steps // 4


class ConstantDenoiser(nn.Module):
    """A denoiser that always predicts the same noise."""

    def __init__(self, eps_BCHW: Tensor) -> None:
        super().__init__()
        self.eps_BCHW = eps_BCHW

    def forward(self, x_BCHW: Tensor, t_B: Tensor, states_BSD: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=self.eps_BCHW)


def test_the_difference_from_the_target_counts_as_noise() -> None:
    """A denoiser that predicts noise and difference has no loss: it denoises to the target."""
    torch.manual_seed(0)
    x_BCHW, target_BCHW, noise_BCHW = torch.randn(3, 5, 4, 16, 16, dtype=torch.float64)
    t_B = torch.tensor([0, 250, 500, 900, 999])
    scheduler = make_scheduler()
    alpha_B111 = scheduler.alphas_cumprod.double()[t_B][:, None, None, None]
    noisy_BCHW = alpha_B111.sqrt() * x_BCHW + (1 - alpha_B111).sqrt() * noise_BCHW
    eps_BCHW = (noisy_BCHW - alpha_B111.sqrt() * target_BCHW) / (1 - alpha_B111).sqrt()

    def loss(predicted_BCHW: Tensor, target: Tensor) -> float:
        return float(
            Denoising(ConstantDenoiser(predicted_BCHW)).loss(x_BCHW, target, noise_BCHW, t_B, torch.empty(0))
        )

    assert loss(eps_BCHW, target_BCHW) < 1e-9
    assert loss(noise_BCHW, x_BCHW) == 0
    assert loss(noise_BCHW, target_BCHW) > 0.1


def test_counterfactuals_are_straight_haired_faces_with_curls(tmp_path: Path) -> None:
    drawings, vae, path = draw(FRESH_SEED, 12), make_autoencoder().eval(), tmp_path / "twins.safetensors"
    twins = counterfactuals(drawings, vae, path)
    assert [face.curls for face in drawings.faces] == [i not in twins.indices_M for i in range(12)]
    for index, latent_CHW in zip(twins.indices_M, twins.latents_MCHW, strict=True):
        picture = torch.tensor(render(replace(drawings.faces[index], curls=True))).permute(2, 0, 1)
        with torch.no_grad():
            mean_1CHW = vae.encode(picture[None].float() / 127.5 - 1).latent_dist.mean
        torch.testing.assert_close(latent_CHW, mean_1CHW[0], atol=1e-5, rtol=1e-4)
    assert torch.equal(counterfactuals(drawings, vae, path).latents_MCHW, twins.latents_MCHW)


def test_practice_texts_claim_one_attribute_or_none() -> None:
    rng = np.random.default_rng(0)
    assert {bare_phrase("curls", rng) for _ in range(200)} == set(PRESENT["curls"])
    texts = {nonsense(rng) for _ in range(200)}
    assert len(texts) == 200
    assert all(claims_of(text) is None for text in texts)


@cache
def tiny_model(folder: Path) -> Path:
    train.main(["--out", str(folder), "--scale", "0.0005"])
    return folder / "weights"


@needs_live_oracle
def test_a_tiny_training_run_writes_a_working_pipeline(tmp_path_factory: pytest.TempPathFactory) -> None:
    weights = tiny_model(tmp_path_factory.mktemp("tiny"))
    pipeline = StableDiffusionPipeline.from_pretrained(weights / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(PROMPT, num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3)
    assert np.isfinite(image).all()


def run_training(folder: Path) -> subprocess.Popen[str]:
    arguments = ["--out", str(folder), "--scale", "0.002", "--checkpoint-seconds", "0", "--threads", "1"]
    command = [sys.executable, "-m", "sega_bench.faces.train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_resumed_training_gives_the_weights_of_an_uninterrupted_run(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_training(whole).wait() == 0
    for part in ("autoencoder 2/", "unet 4/", "practice 2/"):
        process = run_training(parts)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(part):
                process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert run_training(parts).wait() == 0
    for file in ("classifier.safetensors", "pipeline/unet/diffusion_pytorch_model.safetensors"):
        one, two = (load_file(str(folder / "weights" / file)) for folder in (whole, parts))
        assert all(torch.equal(one[key], two[key]) for key in one)


# shipped weights


def test_weights_are_small_and_in_safe_formats() -> None:
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md", ".png"}


def test_weights_contain_no_path_of_the_training_machine() -> None:
    for path in WEIGHTS.rglob("*.json"):
        assert "_name_or_path" not in path.read_text()


def test_the_pipeline_loads_as_plain_stable_diffusion() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(PIPELINE_DIR)
    assert pipeline.scheduler.config.steps_offset == 1
    assert not pipeline.scheduler.config.set_alpha_to_one
    assert pipeline.tokenizer.model_max_length == 32


def test_the_classifier_is_accurate_on_new_drawings(fresh: Drawings) -> None:
    predicted = predict(load_classifier(CLASSIFIER_PATH), fresh.images(slice(None)))
    right = (predicted == fresh.labels_NL[:, : predicted.shape[1]]).float().mean(0)
    assert right.min() >= 0.97


def test_the_scorer_separates_the_concepts(scorer, fresh: Drawings) -> None:
    tokenizer = open_clip.get_tokenizer(f"local-dir:{SCORER_DIR}").tokenizer
    assert min(concept_auc(scorer, tokenizer, fresh).values()) > 0.99


@needs_live_oracle
def test_text_states_of_concepts_differ_from_the_empty_text(pipeline) -> None:
    assert max(cosine_to_empty(pipeline.text_encoder, pipeline.tokenizer).values()) < 0.9


@needs_live_oracle
def test_the_autoencoder_reconstructs_new_drawings(pipeline, fresh: Drawings) -> None:
    assert psnr(fresh.images(slice(None)), reconstruct(pipeline.vae, fresh)) > 26


@needs_live_oracle
@pytest.mark.parametrize("name", CONCEPTS)
def test_an_edit_adds_its_concept_and_keeps_the_rest(pipeline, name: str) -> None:
    gained, kept, colors = edited(pipeline, range(500, 516), [name], Setting())
    assert gained[name] >= 0.8
    assert kept >= 0.9
    assert colors >= 0.85


@needs_live_oracle
@pytest.mark.slow
def test_one_setting_edits_all_four_concepts(pipeline) -> None:
    """The model's purpose: nine in ten faces gain each concept, with few other changes."""
    seeds, agreement = range(100_000, 100_064), []
    for name in CONCEPTS:
        gained, kept, colors = edited(pipeline, seeds, [name], Setting())
        assert gained[name] >= 0.9
        assert colors >= 0.9
        agreement.append(kept)
    assert np.mean(agreement) >= 0.95
    gained, _, _ = edited(pipeline, seeds, list(CONCEPTS), Setting())
    assert min(gained.values()) >= 0.7
    assert np.mean(list(gained.values())) >= 0.85


def edited(
    pipeline, seeds: range, names: list[str], setting: Setting
) -> tuple[dict[str, float], float, float]:
    """Share of faces that gain each missing concept; agreement on other attributes; on colours."""
    classifier = load_classifier(CLASSIFIER_PATH)
    before = predict(classifier, generate(pipeline, PROMPT, seeds))
    texts = [CONCEPTS[name] for name in names]
    after = predict(classifier, generate(pipeline, PROMPT, seeds, texts, setting))
    columns = {name: BINARY.index(name) for name in names}
    gained = {name: float(after[before[:, i] == 0, i].float().mean()) for name, i in columns.items()}
    others = [i for i in range(len(BINARY)) if i not in columns.values()]
    colors = [LABELS.index("hair"), LABELS.index("background")]
    kept, colors_kept = (float((before[:, i] == after[:, i]).float().mean()) for i in (others, colors))
    return gained, kept, colors_kept


# the model card


def test_the_committed_card_has_the_generated_text() -> None:
    text = (WEIGHTS / "MODEL_CARD.md").read_text()
    rows = ", ".join(f'"{concept}"' for concept in CONCEPTS.values())
    for section in (card.INTRODUCTION.format(rows=rows), card._data(), card.LIMITS):
        assert section in text


def test_wilson_interval() -> None:
    """Expected values: the textbook formula for 8 of 10, computed by hand."""
    low, high = Share(8, 10).interval()
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert Share(0, 0).interval() == (0.0, 1.0)


def test_share_counts_and_bootstrap_brackets_the_mean() -> None:
    assert share(torch.tensor([True, False, True, True])) == Share(3, 4)
    mean, low, high = bootstrap(torch.linspace(0, 1, 101))
    assert low < mean < high
    assert mean == pytest.approx(0.5)
