"""Train the embedded model from scratch: `python -m sega_bench.faces.train --out DIR`.

The stages run in order. Each resumes from its last checkpoint and is skipped once it is complete. `--scale
0.01` trains a hundredth of the steps on a hundredth of the drawings, which tests the pipeline but gives a
useless model. The trained model is in `DIR/weights`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKL
from open_clip import CLIP
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from . import autoencoder, classifier, clip, practice, unet
from .captions import corpus
from .data import Drawings, draw, load_drawings
from .fitting import Recipe, averaged_weights, progress, save_tensors
from .tokenizer import make_tokenizer, train_merges

M = TypeVar("M", bound=nn.Module)

DRAWINGS, CORPUS, GATE = 24_000, 8_000, 400
TRAINING_SEED, GATE_SEED = 0, 1
PARTS: dict[str, Recipe] = {
    "classifier": classifier.RECIPE,
    "autoencoder": autoencoder.RECIPE,
    "clip": clip.RECIPE,
    "unet": unet.RECIPE,
    "practice": practice.RECIPE,
}


@dataclass(frozen=True)
class Run:
    """A training run: its folder, scale and seed, and the files of its stages."""

    folder: Path
    scale: float
    seed: int
    checkpoint_seconds: float

    def recipe(self, part: str) -> Recipe:
        """A part's recipe at this run's scale."""
        full = replace(PARTS[part], checkpoint_seconds=self.checkpoint_seconds)
        return full if self.scale == 1 else full.scaled(self.scale)

    def drawings(self) -> Drawings:
        """The training set, rendered on first use."""
        count = max(64, round(DRAWINGS * self.scale))
        return load_drawings(self.folder / "drawings.safetensors", TRAINING_SEED, count)

    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer trained on captions; it takes seconds and is deterministic."""
        return make_tokenizer(train_merges(corpus(TRAINING_SEED, CORPUS)))

    def averaged(self, part: str, model: M) -> M:
        """Load the averaged weights of a part's checkpoint into `model`."""
        model.load_state_dict(averaged_weights(self.folder / f"{part}.safetensors"))
        return model.eval()

    def clip(self, tokenizer: CLIPTokenizer) -> CLIP:
        """The trained scorer."""
        return self.averaged("clip", clip.make_clip(len(tokenizer)))

    def vae(self) -> AutoencoderKL:
        """The trained autoencoder with standardised latents."""
        vae = autoencoder.make_autoencoder()
        vae.load_state_dict(load_file(str(self.folder / "vae.safetensors")))
        return vae.eval()

    def latents(self) -> Tensor:
        """Latents of the drawings from the trained autoencoder, (N, 4, 16, 16)."""
        return load_file(str(self.folder / "latents.safetensors"))["latents"]

    def text(self) -> tuple[CLIPTokenizer, CLIPTextModel]:
        """The tokenizer and the trained text encoder."""
        tokenizer = self.tokenizer()
        return tokenizer, clip.text_encoder(self.clip(tokenizer), tokenizer)


def train_classifier(run: Run) -> None:
    """Train the attribute classifier."""
    classifier.train_classifier(run.drawings(), run.recipe("classifier"), run.folder, run.seed)


def train_autoencoder(run: Run) -> None:
    """Train the autoencoder; saves it with standardised latents, and the latents of all drawings."""
    if (run.folder / "vae.safetensors").exists():
        return
    drawings = run.drawings()
    vae = autoencoder.train_autoencoder(drawings, run.recipe("autoencoder"), run.folder, run.seed)
    latents_NCHW = autoencoder.standardise(vae, autoencoder.encode_means(vae, drawings))
    save_tensors({"latents": latents_NCHW}, run.folder / "latents.safetensors")
    save_tensors(vae.state_dict(), run.folder / "vae.safetensors")


def train_clip(run: Run) -> None:
    """Train the scorer, and with it the text encoder.

    Raises:
        RuntimeError: a full-scale scorer does not separate the concepts.
    """
    tokenizer = run.tokenizer()
    model = clip.train_clip(run.drawings(), tokenizer, run.recipe("clip"), run.folder, run.seed)
    auc = clip.concept_auc(model, tokenizer, draw(GATE_SEED, GATE))
    cosine = clip.cosine_to_empty(clip.text_encoder(model, tokenizer), tokenizer)
    print("clip: AUC", auc, "cosine to ''", cosine, flush=True)
    if run.scale >= 1 and (min(auc.values()) < 0.99 or max(cosine.values()) > 0.95):
        raise RuntimeError(
            "the scorer does not tell the concepts apart: a UNet trained on it can't be edited"
        )


def train_unet(run: Run) -> None:
    """Train the denoiser."""
    unet.train_unet(run.drawings(), run.latents(), run.text(), run.recipe("unet"), run.folder, run.seed)


def train_practice(run: Run) -> None:
    """Train the denoiser further on texts that the image contradicts."""
    drawings = run.drawings()
    twins = practice.counterfactuals(drawings, run.vae(), run.folder / "counterfactuals.safetensors")
    denoiser = run.averaged("unet", unet.make_unet())
    practice.continue_training(
        denoiser, drawings, run.latents(), twins, run.text(), run.recipe("practice"), run.folder, run.seed
    )


def export(run: Run) -> None:
    """Write pipeline, scorer and classifier in float16 to `weights`; works from unfinished stages too."""
    weights = run.folder / "weights"
    tokenizer = run.tokenizer()
    scorer = run.clip(tokenizer)
    judge = run.averaged("classifier", classifier.Classifier())
    denoiser = run.averaged("practice", unet.make_unet())
    pipeline = unet.make_pipeline(run.vae(), denoiser, tokenizer, clip.text_encoder(scorer, tokenizer))
    unet.save_pipeline(pipeline, weights / "pipeline")
    clip.save_scorer(scorer, tokenizer, weights / "scorer")
    halves = {name: clip.half(value) for name, value in judge.state_dict().items()}
    save_tensors(halves, weights / "classifier.safetensors")
    models = {
        "classifier": judge,
        "autoencoder": pipeline.vae,
        "clip": scorer,
        "unet": denoiser,
        "practice": denoiser,
    }
    report = {part: _training_figures(run, part, model) for part, model in models.items()}
    (weights / "training.json").write_text(json.dumps(report, indent=2) + "\n")


def _training_figures(run: Run, part: str, model: nn.Module) -> dict[str, float]:
    steps, seconds = progress(run.folder / f"{part}.safetensors")
    parameters = sum(p.numel() for p in model.parameters())
    recipe = run.recipe(part)
    return {
        "parameters": parameters,
        "steps": steps,
        "batch": recipe.batch,
        "lr": recipe.lr,
        "minutes": round(seconds / 60, 1),
    }


STAGES: dict[str, Callable[[Run], None]] = {
    "classifier": train_classifier,
    "autoencoder": train_autoencoder,
    "clip": train_clip,
    "unet": train_unet,
    "practice": train_practice,
    "export": export,
}


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run the stages."""
    parser = argparse.ArgumentParser(prog="python -m sega_bench.faces.train", description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for checkpoints and the finished model"
    )
    parser.add_argument("--stage", choices=STAGES, action="append", help="run only this stage (repeatable)")
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the steps and drawings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--checkpoint-seconds", type=float, default=60.0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    run = Run(options.out, options.scale, options.seed, options.checkpoint_seconds)
    run.folder.mkdir(parents=True, exist_ok=True)
    for name in options.stage or STAGES:
        torch.manual_seed(run.seed)  # for the initial weights
        STAGES[name](run)


if __name__ == "__main__":
    main()
