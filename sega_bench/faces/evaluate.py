"""Measure the embedded model and write its card: `python -m sega_bench.faces.evaluate [--weights DIR]`.

Edits come from diffusers' `SemanticStableDiffusionPipeline`; the attribute classifier and the scorer judge
them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sega_bench.errors import exit_on_user_error

from . import PIPELINE_DIR
from .autoencoder import psnr, reconstruct
from .captions import CONCEPTS
from .card import model_card
from .classifier import Classifier, load_classifier, predict
from .clip import concept_auc, cosine_to_empty
from .data import draw
from .drawing import BINARY, LABELS
from .editing import Setting, generate, load_pipeline
from .measures import EditEffect, Share

PROMPTS = ("a photo of the face of a woman", "a photo of the face of a man", "a portrait of a person")
CONTROLS = ("blue background", "xylophone")
CURVES: dict[str, tuple[float, ...]] = {
    "edit_guidance_scale": (1, 3, 5, 7, 9, 12),
    "edit_threshold": (0.5, 0.75, 0.9, 0.95, 0.99),
    "edit_warmup_steps": (0, 2, 4, 6, 8, 12, 16),
}
DRAWING_SEED = 77


class Evaluator:
    """The pipeline, the classifier and scorer that judge it, and a cache of unedited images."""

    def __init__(self, weights: Path) -> None:
        self.weights = weights
        self.pipeline = load_pipeline(weights / "pipeline")
        self.classifier: Classifier = load_classifier(weights / "classifier.safetensors")
        self.clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{weights / 'scorer'}")
        self.clip.eval()
        self.tokenizer = open_clip.get_tokenizer(f"local-dir:{weights / 'scorer'}")
        self._references: dict[tuple[Any, ...], Tensor] = {}

    def images(self, prompt: str, seeds: range, concepts: Sequence[str], setting: Setting) -> Tensor:
        """Generate images of a prompt, edited or not."""
        if concepts:
            return generate(self.pipeline, prompt, seeds, concepts, setting)
        key = (prompt, seeds, setting.guidance_scale, setting.num_inference_steps)
        if key not in self._references:
            self._references[key] = generate(self.pipeline, prompt, seeds, (), setting)
        return self._references[key]

    @torch.no_grad()
    def similarity(self, x_BCHW: Tensor, text: str) -> Tensor:
        """Cosine similarities (B,) of images to a text."""
        image_BD = self.clip.encode_image(x_BCHW, normalize=True)
        similarity_B: Tensor = image_BD @ self.clip.encode_text(self.tokenizer([text]), normalize=True)[0]
        return similarity_B

    def effect(self, x_BCHW: Tensor, y_BCHW: Tensor, name: str, edited: Sequence[str]) -> EditEffect:
        """Measure an edit for one concept.

        Args:
            x_BCHW: images before the edit.
            y_BCHW: the same images after it.
            name: the concept.
            edited: all attributes that the edit changes on purpose.
        """
        old_BL, new_BL = predict(self.classifier, x_BCHW), predict(self.classifier, y_BCHW)
        column = BINARY.index(name)
        had_B, has_B = old_BL[:, column].bool(), new_BL[:, column].bool()
        same_BL = old_BL == new_BL
        others = [i for i, label in enumerate(BINARY) if label not in edited]
        colors = [LABELS.index("hair"), LABELS.index("background")]
        gain_B = self.similarity(y_BCHW, CONCEPTS[name]) - self.similarity(x_BCHW, CONCEPTS[name])
        moved = ((y_BCHW - x_BCHW).abs() * 127.5 > 16).any(1).float().mean()
        return EditEffect(
            before=share(had_B),
            after=share(has_B),
            gained=share(has_B[~had_B]),
            kept=share(same_BL[:, others]),
            colors=share(same_BL[:, colors]),
            clip_gain=bootstrap(gain_B),
            changed=float(moved),
        )

    def edit(self, prompt: str, seeds: range, name: str, setting: Setting) -> EditEffect:
        """Edit one concept and measure the effect."""
        before = self.images(prompt, seeds, (), setting)
        after = self.images(prompt, seeds, [CONCEPTS[name]], setting)
        return self.effect(before, after, name, [name])


def share(hits: Tensor) -> Share:
    """The proportion of true values."""
    return Share(int(hits.sum()), hits.numel())


def bootstrap(values_B: Tensor, rounds: int = 2000) -> tuple[float, float, float]:
    """The mean, and its 95 % bootstrap percentile interval."""
    rng = np.random.default_rng(0)
    values = values_B.numpy()
    means = values[rng.integers(len(values), size=(rounds, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def single_edits(
    evaluator: Evaluator, prompts: Sequence[str], seeds: range, setting: Setting
) -> dict[str, dict[str, EditEffect]]:
    """Edits of single concepts at one setting, by prompt and concept."""
    return {
        prompt: {name: evaluator.edit(prompt, seeds, name, setting) for name in CONCEPTS}
        for prompt in prompts
    }


def all_four(evaluator: Evaluator, prompt: str, seeds: range, setting: Setting) -> dict[str, EditEffect]:
    """One edit of all four concepts, measured for each of them."""
    before = evaluator.images(prompt, seeds, (), setting)
    after = evaluator.images(prompt, seeds, list(CONCEPTS.values()), setting)
    return {name: evaluator.effect(before, after, name, list(CONCEPTS)) for name in CONCEPTS}


def controls(
    evaluator: Evaluator, prompt: str, seeds: range, setting: Setting
) -> dict[str, dict[str, EditEffect]]:
    """Edits with other texts, which should not change the four concepts."""
    before = evaluator.images(prompt, seeds, (), setting)
    result = {}
    for text in CONTROLS:
        after = evaluator.images(prompt, seeds, [text], setting)
        result[text] = {name: evaluator.effect(before, after, name, ()) for name in CONCEPTS}
    return result


def curves(
    evaluator: Evaluator, prompt: str, seeds: range, base: Setting
) -> dict[str, dict[float, dict[str, EditEffect]]]:
    """Effects of varying one setting at a time; points that curves share are measured once."""
    known: dict[Setting, dict[str, EditEffect]] = {}

    def point(setting: Setting) -> dict[str, EditEffect]:
        if setting not in known:
            known[setting] = {name: evaluator.edit(prompt, seeds, name, setting) for name in CONCEPTS}
            print(setting, {name: round(o.gained.value, 2) for name, o in known[setting].items()}, flush=True)
        return known[setting]

    return {
        field: {value: point(replace(base, **{field: value})) for value in values}  # type: ignore[arg-type]
        for field, values in CURVES.items()
    }


def parts(evaluator: Evaluator, count: int = 400) -> dict[str, Any]:
    """Quality of autoencoder, classifier and scorer on drawings that no training stage has seen."""
    drawings = draw(DRAWING_SEED, count)
    x_BCHW = drawings.images(slice(None))
    y_BCHW = reconstruct(evaluator.pipeline.vae, drawings)
    truth_BL = drawings.labels_NL[:, : len(LABELS) - 1].long()

    def accuracy(images: Tensor) -> dict[str, float]:
        right_BL = predict(evaluator.classifier, images) == truth_BL
        return dict(zip(LABELS, right_BL.float().mean(0).tolist(), strict=False))

    return {
        "psnr": psnr(x_BCHW, y_BCHW),
        "accuracy": accuracy(x_BCHW),
        "accuracy_reconstructed": accuracy(y_BCHW),
        "auc": concept_auc(evaluator.clip, evaluator.pipeline.tokenizer, drawings),
        "cosine": cosine_to_empty(evaluator.pipeline.text_encoder, evaluator.pipeline.tokenizer),
    }


def timings(evaluator: Evaluator, setting: Setting) -> dict[int, float]:
    """Seconds an image with one concept, by batch size; the best of three runs."""
    result = {}
    for batch in (1, 16):
        spent = []
        for _ in range(3):
            began = time.perf_counter()
            generate(evaluator.pipeline, PROMPTS[0], range(batch), [CONCEPTS["smile"]], setting, batch)
            spent.append(time.perf_counter() - began)
        result[batch] = min(spent) / batch
    return result


def contact_sheet(evaluator: Evaluator, prompt: str, seeds: range, setting: Setting) -> Image.Image:
    """Rows: unedited images, one row for each concept, all four concepts; at twice the size."""
    rows = [evaluator.images(prompt, seeds, (), setting)]
    rows += [evaluator.images(prompt, seeds, [text], setting) for text in CONCEPTS.values()]
    rows += [evaluator.images(prompt, seeds, list(CONCEPTS.values()), setting)]
    sheet_CHW = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    sheet_CHW = F.interpolate(sheet_CHW[None], scale_factor=2, mode="nearest")[0]
    bytes_HWC = ((sheet_CHW + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0)
    return Image.fromarray(bytes_HWC.numpy())


def main(arguments: list[str] | None = None) -> None:
    """Measure the model and write MODEL_CARD.md and contact_sheet.png beside the weights."""
    parser = argparse.ArgumentParser(prog="python -m sega_bench.faces.evaluate", description=__doc__)
    parser.add_argument("--weights", type=Path, default=PIPELINE_DIR.parent)
    parser.add_argument("--seeds", type=int, default=64, help="images for each figure")
    parser.add_argument(
        "--few-seeds", type=int, default=24, help="images for each figure of curves and further prompts"
    )
    parser.add_argument("--first-seed", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with exit_on_user_error():
        evaluator = Evaluator(options.weights)
    setting, first = Setting(), options.first_seed
    seeds, few = range(first, first + options.seeds), range(first, first + options.few_seeds)
    contact_sheet(evaluator, PROMPTS[0], range(first, first + 8), setting).save(
        options.weights / "contact_sheet.png"
    )
    results = {
        "training": json.loads((options.weights / "training.json").read_text()),
        "setting": asdict(setting),
        "seeds": options.seeds,
        "few_seeds": options.few_seeds,
        "first_seed": first,
        "parts": parts(evaluator),
        "single": single_edits(evaluator, PROMPTS[:1], seeds, setting)
        | single_edits(evaluator, PROMPTS[1:], few, setting),
        "all_four": all_four(evaluator, PROMPTS[0], seeds, setting),
        "controls": controls(evaluator, PROMPTS[0], seeds, setting),
        "curves": curves(evaluator, PROMPTS[0], few, setting),
        "timings": timings(evaluator, setting),
        "threads": options.threads,
    }
    card = model_card(results)
    (options.weights / "MODEL_CARD.md").write_text(card)
    print(card)


if __name__ == "__main__":
    main()
