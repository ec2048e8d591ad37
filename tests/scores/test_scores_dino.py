"""The DINO distance, with a tiny random DINOv2 from a folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from support.tiny_clip import draw, sweep
from transformers import Dinov2Config, Dinov2Model

from sega_bench.errors import UserError
from sega_bench.scores import ScoreSettings, build
from sega_bench.scores.dino import PREPROCESSING, load_dino
from sega_bench.scores.scoring import score

CPU = torch.device("cpu")
CELLS = sweep([0, 1])
IMAGES = draw(CELLS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=224, layerscale_value=1.0
    )
    model = Dinov2Model(config)
    for value in model.parameters():
        value.data += 0.3 * torch.randn_like(value)
    path = tmp_path_factory.mktemp("dino") / "tiny"
    model.save_pretrained(path, safe_serialization=True)
    return path


def test_dino_is_one_minus_the_cosine_of_class_embeddings(folder: Path) -> None:
    scorer, model = load_dino(str(folder), CPU), Dinov2Model.from_pretrained(folder).eval()

    def embedding(key: str) -> torch.Tensor:
        with torch.no_grad():
            output = model(pixel_values=PREPROCESSING(torch.from_numpy(IMAGES[key])[None]))
        return output.last_hidden_state[0, 0].double()

    for cell, values in zip(CELLS, score([scorer], CELLS, IMAGES, 3), strict=True):
        if cell.is_reference:
            assert values == {}
        else:
            pair = embedding(cell.key), embedding(cell.reference().key)
            assert values["dino"] == pytest.approx(1 - float(torch.cosine_similarity(*pair, dim=0)), abs=1e-5)
            assert values["dino"] > 1e-3


@pytest.mark.parametrize(("name", "width"), [("astronaut", 256), ("coffee", 384)])
def test_preprocessing_equals_pils_resize_and_crop(name: str, width: int) -> None:
    photograph = getattr(skimage.data, name)()
    resized = np.asarray(Image.fromarray(photograph).resize((width, 256), Image.Resampling.BICUBIC))
    left = (width - 224) // 2
    expected = resized[16:240, left : left + 224] / 255.0
    ours = PREPROCESSING(torch.from_numpy(photograph)[None])[0].permute(1, 2, 0).double().numpy()
    restored = ours * np.array(PREPROCESSING.std) + np.array(PREPROCESSING.mean)
    assert np.abs(restored - expected).max() * 255 <= 1 + 1e-3
    assert str(PREPROCESSING).startswith("bicubic antialias, shortest side to 256, centre crop 224x224, ")


def test_equal_images_have_distance_zero_and_provenance_names_the_model(folder: Path) -> None:
    scorer = load_dino(str(folder), CPU)
    cell = CELLS[1]
    same = dict.fromkeys((cell.key, cell.reference().key), IMAGES[cell.key])
    assert score([scorer], [cell], same, 2)[0]["dino"] == pytest.approx(0, abs=1e-12)
    (source,) = scorer.provenance.values()
    assert source["backbone"] == "tiny"
    assert source["weights"].startswith("sha256:")
    families = {name for one in build(ScoreSettings(dino=str(folder)), CPU) for name in one.provenance}
    assert "dino" in families


def test_unavailable_weights_are_an_error_of_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save(Dinov2Model.from_pretrained(folder).state_dict(), tmp_path / "pytorch_model.bin")
    for name in (str(tmp_path), "/nowhere", "nobody/nothing"):
        with pytest.raises(UserError, match=r"scores\.dino=.* cannot be loaded") as caught:
            load_dino(name, CPU)
        assert "\n" not in str(caught.value)


def test_a_file_with_missing_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"its file lacks .*layer\.2"):
        load_dino(str(tmp_path), CPU)
