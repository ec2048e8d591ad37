"""Perceptual distances against the lpips package and torchmetrics, on the same weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import lpips
import numpy as np
import pytest
import torch
import torchvision.models
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_clip import clip_folder, draw, random_image, sweep
from torch import Tensor
from torchmetrics.functional.image import lpips as torchmetrics_lpips

from sega_bench.errors import UserError
from sega_bench.scores import ScoreSettings, build
from sega_bench.scores.loading import BACKBONES, load_lpips, make_lpips
from sega_bench.scores.perceptual import LpipsScorer, feature_distance
from sega_bench.scores.scoring import score

CPU = torch.device("cpu")
CELLS = sweep([0, 1])
IMAGES = draw(CELLS)
FEATURES = {
    "alex": lambda: torchvision.models.AlexNet().features,
    "vgg": lambda: torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"]),
    "squeeze": lambda: torchvision.models.SqueezeNet("1_1").features,
}


@cache
def backbone(name: str) -> dict[str, Tensor]:
    """Random weights under torchvision's names: tests cannot download the ImageNet weights."""
    torch.manual_seed(0)
    features = FEATURES[name]()
    return {f"features.{key}": value for key, value in features.state_dict().items()}


@cache
def ours(name: str) -> LpipsScorer:
    return make_lpips(name, backbone(name), CPU)


def as_lpips_input(key: str) -> Tensor:
    return torch.from_numpy(IMAGES[key]).permute(2, 0, 1)[None].float() / 127.5 - 1


def reference_network(library: Any, name: str) -> Any:
    """The library's own LPIPS with its learnt channel weights, on the random backbone."""
    extra = {"verbose": False} if library is lpips.LPIPS else {}
    network = library(net=name, pnet_rand=True, **extra)
    for value, source in zip(network.net.state_dict().values(), backbone(name).values(), strict=True):
        value.copy_(source)
    return network


@pytest.mark.parametrize(
    ("library", "name"),
    [
        *((lpips.LPIPS, name) for name in BACKBONES),
        *((torchmetrics_lpips._LPIPS, name) for name in ("alex", "squeeze")),  # vgg takes seconds to make
    ],
    ids=lambda value: value if isinstance(value, str) else value.__module__.partition(".")[0],
)
def test_lpips_agrees_with_both_libraries(library: Any, name: str) -> None:
    scores = score([ours(name)], CELLS, IMAGES, batch_size=3)
    network = reference_network(library, name)
    for cell, values in zip(CELLS, scores, strict=True):
        if cell.edits:
            with torch.no_grad():
                expected = network(as_lpips_input(cell.key), as_lpips_input(cell.reference().key)).item()
            assert values == {"lpips": pytest.approx(expected, abs=1e-6)}
            assert expected > 1e-3
        else:
            assert values == {}


def test_provenance_names_the_network_and_its_weights() -> None:
    source = ours("alex").provenance["lpips"]
    assert (source["name"], source["backbone"]) == ("LPIPS (alex, v0.1)", "alex")
    other = {key: value + 1 for key, value in backbone("alex").items()}
    assert make_lpips("alex", other, CPU).provenance["lpips"]["weights"] != source["weights"]


def test_the_backbone_is_read_from_torch_hubs_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(backbone("squeeze"), folder / BACKBONES["squeeze"].rpartition("/")[2])
    assert load_lpips("squeeze", CPU).provenance == ours("squeeze").provenance


def test_an_unavailable_backbone_is_an_error_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(UserError) as caught:
        load_lpips("alex", CPU)
    message = str(caught.value)
    assert "\n" not in message
    assert "no route to host" in message
    assert "scores.perceptual=clip or =none" in message
    assert str(tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth") in message


def test_a_cached_file_that_holds_no_weights_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    file.parent.mkdir(parents=True)
    file.write_text("<html>sign in to the network</html>")
    with pytest.raises(UserError, match=r"scores\.perceptual=alex"):
        load_lpips("alex", CPU)


def test_feature_distance_is_lpips_without_learnt_weights() -> None:
    network = lpips.LPIPS(net="alex", pnet_rand=True, lpips=False, verbose=False)
    a, b = (torch.cat([as_lpips_input(cell.key) for cell in cells]) for cells in (CELLS[:3], CELLS[3:6]))
    with torch.no_grad():
        expected_B = network(a, b).flatten() / network.L
        stages = [tuple(network.net(network.scaling_layer(x))) for x in (a, b)]
    assert feature_distance(*stages).tolist() == pytest.approx(expected_B.tolist(), abs=1e-6)


def maps(seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, channels, 4, 3, generator=generator) for channels in (8, 16))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_feature_distance_is_a_symmetric_distance(seed_a: int, seed_b: int) -> None:
    a, b = maps(seed_a), maps(seed_b)
    assert feature_distance(a, a).tolist() == [0.0, 0.0]
    assert feature_distance(a, b).tolist() == feature_distance(b, a).tolist()
    assert 0 <= feature_distance(a, b).min() <= feature_distance(a, b).max() <= 4 + 1e-6


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_lpips_like_distance_grows_with_noise(tower: str) -> None:
    reference, *edited = cells = sweep([0])
    images = {reference.key: random_image(0)}
    for strength, cell in zip((0, 20, 80), edited, strict=True):
        noise = np.random.default_rng(0).integers(-strength, strength + 1, random_image(0).shape)
        images[cell.key] = np.clip(random_image(0) + noise, 0, 255).astype(np.uint8)
    scorers = build(ScoreSettings(clip_model=f"local-dir:{clip_folder(tower)}"), CPU)
    same, little, much = (values["lpips"] for values in score(scorers, cells, images, batch_size=4)[1:])
    assert same == 0.0
    assert 0.0 < little < much
