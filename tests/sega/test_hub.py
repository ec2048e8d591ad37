"""Checkpoints from the hub, with the real client and a local server: downloads and error messages."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny_sd, tiny_xl
from support.hub_server import COMMIT, Hub, serve

from sega_bench.errors import UserError
from sega_bench.sega import Model, ModelSettings, describe, load
from sega_bench.sega.checkpoints.hub import HubUnreachableError

UNET = "unet/diffusion_pytorch_model"
CONFIGURATIONS = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hub")
    checkpoint = tiny_sd.write_checkpoint(root / "checkpoint", has_checker=True)
    add_other_uploads(checkpoint)
    return {"someone/tiny": checkpoint, "someone/xl": tiny_xl.folder(), "someone/gated": checkpoint}


def add_other_uploads(folder: Path) -> None:
    """Add half precision (the UNet in two shards), weights without EMA, pickles, a single file, a README."""
    for file in ("text_encoder/model", "vae/diffusion_pytorch_model", "safety_checker/model"):
        half = {name: value.half() for name, value in load_file(folder / f"{file}.safetensors").items()}
        save_file(half, folder / f"{file}.fp16.safetensors")
    unet = load_file(folder / f"{UNET}.safetensors")
    for i in (1, 2):
        half = {name: unet[name].half() for name in sorted(unet)[i - 1 :: 2]}
        save_file(half, folder / f"{UNET}.fp16-{i:05}-of-00002.safetensors")
    save_file(unet, folder / f"{UNET}.non_ema.safetensors")
    for name in (f"{UNET}.bin", "text_encoder/pytorch_model.bin", "v1-5-pruned.safetensors", "README.md"):
        (folder / name).write_bytes(b"not read")


@pytest.fixture
def hub(repositories: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve(Hub(repositories, gated=("someone/gated",))) as running:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        constants = "huggingface_hub.constants."
        monkeypatch.setattr(f"{constants}HF_HUB_OFFLINE", False)
        monkeypatch.setattr(f"{constants}HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(f"{constants}ENDPOINT", running.endpoint)
        template = running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(f"{constants}HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield running


def described(repo: str, *, dry_run: bool = False, **settings: Any) -> Model:
    return describe(ModelSettings("mine", f"someone/{repo}", **settings), dry_run=dry_run)


def test_a_dry_run_downloads_only_small_configurations(hub: Hub) -> None:
    model = described("tiny", dry_run=True, variant="fp16")
    assert set(hub.sent) == CONFIGURATIONS | {"safety_checker/config.json"}
    assert (model.id, model.scheduler, model.size) == (f"mine@{COMMIT}.fp16", "DDIMScheduler", 32)
    assert model.checkpoint is None


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"text_encoder/model", UNET, "vae/diffusion_pytorch_model"}),
        (
            {"variant": "fp16"},
            {
                "text_encoder/model.fp16",
                f"{UNET}.fp16-00001-of-00002",
                f"{UNET}.fp16-00002-of-00002",
                "vae/diffusion_pytorch_model.fp16",
            },
        ),
        (
            {"safety_checker": True},
            {"text_encoder/model", UNET, "vae/diffusion_pytorch_model", "safety_checker/model"},
        ),
    ],
    ids=["full", "fp16", "with safety checker"],
)
def test_only_the_weights_in_use_are_downloaded(
    hub: Hub, settings: dict[str, Any], expected: set[str]
) -> None:
    model = described("tiny", **settings)
    weights = {name.removesuffix(".safetensors") for name in hub.sent if name.endswith(".safetensors")}
    assert weights == expected
    assert not {name for name in hub.sent if name.endswith((".bin", ".md"))}
    assert len(hub.sent) == len(set(hub.sent))
    loaded = load(model, torch.device("cpu"), "float32")
    reference = load(describe(ModelSettings("x", str(hub.repositories["someone/tiny"]))), dtype="float32")
    for ours, theirs in zip(loaded.unet.parameters(), reference.unet.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_xl_is_downloaded_with_both_text_encoders(hub: Hub) -> None:
    model = described("xl")
    assert {"text_encoder_2/model.safetensors", "tokenizer_2/tokenizer_config.json"} <= set(hub.sent)
    expected = tiny_xl.loaded("float32").encode("a smile")
    encoded = load(model, torch.device("cpu"), "float32").encode("a smile")
    assert all(torch.equal(encoded[name], value) for name, value in expected.items())


def test_a_downloaded_model_needs_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    before = described("tiny", variant="fp16")
    hub.sent.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert described("tiny", variant="fp16") == before
    assert hub.sent == []


def test_after_only_a_dry_run_the_weights_are_missing_offline(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    described("tiny", dry_run=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert described("tiny", dry_run=True).id == f"mine@{COMMIT}"
    with pytest.raises(HubUnreachableError):
        described("tiny")


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize(
    ("repo", "settings", "message"),
    [
        ("nothing", {}, "neither a folder here nor a repository on the hub"),
        ("gated", {}, "is gated: accept its terms"),
        ("tiny", {"revision": "v9"}, r"has no model\.revision=v9"),
        ("a--b", {}, "is no hub id"),
    ],
    ids=["no repository", "gated", "no revision", "no hub id"],
)
def test_a_refusal_of_the_hub_is_an_error_even_in_a_dry_run(
    hub: Hub, repo: str, settings: dict[str, str], message: str, dry_run: bool
) -> None:
    with pytest.raises(UserError, match=message) as error:
        described(repo, dry_run=dry_run, **settings)
    assert not isinstance(error.value, HubUnreachableError)
    assert "\n" not in str(error.value)


def test_another_model_family_is_refused_before_its_weights_are_downloaded(hub: Hub, tmp_path: Path) -> None:
    flux = Path(shutil.copytree(tiny_sd.folder(), tmp_path / "flux"))
    (flux / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    hub.repositories["someone/flux"] = flux
    for dry_run in (True, False):
        with pytest.raises(UserError, match="FluxPipeline"):
            described("flux", dry_run=dry_run)
    assert not [name for name in hub.sent if name.endswith(".safetensors")]


def test_without_a_network_a_dry_run_assumes_defaults_and_a_run_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = described("never-seen", dry_run=True)
    assert (model.id, model.checkpoint, model.size) == ("mine", None, 512)
    with pytest.raises(HubUnreachableError, match=r"the hub cannot be reached.*model\.path=/path/to/folder"):
        described("never-seen")


def test_a_hub_that_refuses_connections_is_unreachable(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubUnreachableError):
        described("tiny")
    assert described("tiny", dry_run=True).id == "mine"
