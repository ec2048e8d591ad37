"""A small attribute classifier that judges edits; no other model is trained with it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from .data import Drawings
from .drawing import BACKGROUND, BINARY, HAIR
from .fitting import Recipe, fit

RECIPE = Recipe(steps=1000, batch=64, lr=3e-3, ema=0.99)


class Classifier(nn.Module):
    """Predicts logits (B, 7 + 5 + 7): the attributes in `BINARY`, hair colour, background."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = (3, 16, 32, 64, 64)
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(4, after), nn.SiLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels[-1] * 16, len(BINARY) + len(HAIR) + len(BACKGROUND))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits of images (B, 3, 64, 64) in [-1, 1]."""
        logits: Tensor = self.head(self.features(x_BCHW).flatten(1))
        return logits


def split(logits_BO: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split logits into those of yes/no attributes, hair colours and backgrounds."""
    sizes = [len(BINARY), len(HAIR), len(BACKGROUND)]
    bits, hair, background = torch.split(logits_BO, sizes, dim=1)
    return bits, hair, background


@torch.no_grad()
def predict(classifier: Classifier, x_BCHW: Tensor) -> Tensor:
    """Predicted values of the first nine columns of `LABELS`, (B, 9) integers."""
    bits, hair, background = split(classifier(x_BCHW))
    return torch.cat(
        [(bits > 0).long(), hair.argmax(1, keepdim=True), background.argmax(1, keepdim=True)], dim=1
    )


def load_classifier(path: Path) -> Classifier:
    """Load the trained classifier in float32, in evaluation mode."""
    classifier = Classifier()
    classifier.load_state_dict({key: value.float() for key, value in load_file(str(path)).items()})
    return classifier.eval()


def train_classifier(drawings: Drawings, recipe: Recipe, folder: Path, seed: int) -> Classifier:
    """Train on augmented drawings, so that the classifier generalises to generated images."""
    classifier = Classifier()

    def loss(rng: np.random.Generator) -> Tensor:
        indices = drawings.batch(rng, recipe.batch)
        bits, hair, background = split(classifier(augment(drawings.images(indices))))
        labels_BL = drawings.labels_NL[indices].long()
        count = len(BINARY)
        return (
            F.binary_cross_entropy_with_logits(bits, labels_BL[:, :count].float())
            + 0.3 * F.cross_entropy(hair, labels_BL[:, count])
            + 0.3 * F.cross_entropy(background, labels_BL[:, count + 1])
        )

    fit("classifier", classifier, loss, recipe, folder, seed)
    return classifier


def augment(x_BCHW: Tensor) -> Tensor:
    """Random blur, noise, contrast and colour shift, a different amount for each image."""
    each = (len(x_BCHW), 1, 1, 1)
    blurred = F.avg_pool2d(F.pad(x_BCHW, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x_BCHW = torch.lerp(x_BCHW, blurred, torch.rand(each))
    x_BCHW = x_BCHW * (1 + 0.15 * torch.randn(each)) + 0.08 * torch.randn(len(x_BCHW), 3, 1, 1)
    return x_BCHW + 0.15 * torch.rand(each) * torch.randn_like(x_BCHW)
