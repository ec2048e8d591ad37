"""The drop-in pipeline against diffusers' own class, with the calls of its documentation, in float64."""

import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from support import tiny_sd
from support.live_oracle import needs_live_oracle
from transformers import CLIPConfig, CLIPImageProcessor

from sega_bench.sega import SemanticStableDiffusionPipeline, schedulers

THEIRS: Any = getattr(diffusers, "SemanticStableDiffusionPipeline", None)
FACE = "a photo of the face of a woman"
EXAMPLE: dict[str, Any] = {
    "guidance_scale": 7,
    "editing_prompt": [
        "smiling, smile",
        "glasses, wearing glasses",
        "curls, wavy hair, curly hair",
        "beard, full beard, mustache",
    ],
    "reverse_editing_direction": [False, False, False, False],
    "edit_warmup_steps": [2, 2, 2, 2],
    "edit_guidance_scale": [4, 5, 5, 5.4],
    "edit_threshold": [0.99, 0.975, 0.925, 0.96],
    "edit_momentum_scale": 0.3,
    "edit_mom_beta": 0.6,
    "edit_weights": [1, 1, 1, 1],
}
"""The example of diffusers' documentation, with one weight for each of its four concepts (there: five)."""

ONE: dict[str, Any] = {"editing_prompt": "glasses", "edit_warmup_steps": 2, "edit_threshold": 0.931}


pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def pipeline(kind: Any = SemanticStableDiffusionPipeline, dtype: torch.dtype = torch.float64) -> Any:
    loaded = kind.from_pretrained(str(tiny_sd.folder()), torch_dtype=dtype).to("cpu")
    loaded.set_progress_bar_config(disable=True)
    return loaded


def with_scheduler(name: str, **config: object) -> tuple[Any, Any]:
    """Both pipelines with another scheduler, replaced in the usual way."""
    pipelines = []
    for kind in (SemanticStableDiffusionPipeline, THEIRS):
        pipe = kind(**pipeline(kind).components, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **config)
        pipelines.append(pipe)
    return pipelines[0], pipelines[1]


def one_generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def generators(count: int) -> Callable[[], list[torch.Generator]]:
    return lambda: [torch.Generator().manual_seed(seed) for seed in range(count)]


def assert_same(
    ours: Any, theirs: Any, generator: Callable[[], Any] = one_generator, tolerance: float = 1e-9, **call: Any
) -> None:
    """Assert that both give the same latents and leave the generators in the same state."""
    defaults = {"prompt": FACE, "num_inference_steps": 5, "guidance_scale": 4.0, "output_type": "latent"}
    left, right = generator(), generator()
    mine = ours(**{**defaults, **call}, generator=left).images
    expected = theirs(**{**defaults, **call}, generator=right).images
    assert mine.shape == expected.shape
    assert (mine - expected).abs().max() <= tolerance * expected.abs().max()
    for one, other in zip(np.atleast_1d(left), np.atleast_1d(right), strict=True):
        assert one is None or torch.equal(one.get_state(), other.get_state())


@needs_live_oracle
def test_signatures_equal_those_of_diffusers() -> None:
    for method in ("__call__", "__init__"):
        mine, expected = (
            [(p.name, p.default) for p in inspect.signature(getattr(kind, method)).parameters.values()]
            for kind in (SemanticStableDiffusionPipeline, THEIRS)
        )
        assert mine == expected


@needs_live_oracle
def test_the_example_of_the_documentation_gives_the_same_image() -> None:
    def example(pipe: Any) -> Any:
        torch.manual_seed(0)
        return pipe(prompt=FACE, num_images_per_prompt=1, num_inference_steps=6, **EXAMPLE)

    mine, expected = example(pipeline()), example(pipeline(THEIRS))
    assert mine.nsfw_content_detected is expected.nsfw_content_detected is None
    assert np.array_equal(np.asarray(mine.images[0]), np.asarray(expected.images[0]))
    assert mine.images[0].size == (32, 32)


def test_the_superfluous_weight_of_the_documentation_is_refused() -> None:
    with pytest.raises(ValueError, match="edit_weights gives 5 values, but the cell has 4 concepts") as error:
        pipeline()(FACE, **{**EXAMPLE, "edit_weights": [1, 1, 1, 1, 1]})
    assert "\n" not in str(error.value)


@needs_live_oracle
@pytest.mark.parametrize(
    ("call", "generator"),
    [
        ({}, one_generator),
        (ONE, one_generator),
        (EXAMPLE, one_generator),
        (EXAMPLE | {"num_images_per_prompt": 3}, one_generator),
        (EXAMPLE | {"num_images_per_prompt": 3}, generators(3)),
        (ONE | {"prompt": [FACE, "a cat"], "num_images_per_prompt": 2}, one_generator),
        (ONE | {"prompt": [FACE, "a cat"], "num_images_per_prompt": 2}, generators(4)),
        (ONE | {"prompt": [FACE, "a cat"], "negative_prompt": ["a hat", "a dog"]}, generators(2)),
        (ONE | {"negative_prompt": "smile", "generator": None}, one_generator),
        (ONE | {"edit_weights": None, "edit_cooldown_steps": 4}, one_generator),
        (ONE | {"eta": 0.7}, generators(1)),
        (EXAMPLE | {"eta": 0.7, "num_images_per_prompt": 3}, one_generator),
        (EXAMPLE | {"eta": 0.7, "num_images_per_prompt": 3}, generators(3)),
        ({"eta": 0.7, "num_images_per_prompt": 2}, one_generator),
        ({"guidance_scale": 1.0, "num_images_per_prompt": 2}, one_generator),
        (ONE | {"height": 48, "width": 16}, one_generator),
        (ONE | {"editing_prompt": ["glasses", "smile"], "edit_warmup_steps": [1, 3]}, one_generator),
        (ONE | {"reverse_editing_direction": True, "edit_warmup_steps": 9}, one_generator),
    ],
)
def test_latents_equal_those_of_diffusers(call: dict[str, Any], generator: Callable[[], Any]) -> None:
    call.pop("generator", None)
    assert_same(pipeline(), pipeline(THEIRS), generator, **call)


@needs_live_oracle
@pytest.mark.parametrize(
    ("name", "config", "tolerance"),
    [
        ("PNDMScheduler", {"skip_prk_steps": True}, 1e-9),
        ("LMSDiscreteScheduler", {}, 1e-9),
        ("EulerDiscreteScheduler", {}, 1e-5),
        ("EulerAncestralDiscreteScheduler", {}, 1e-5),
        ("DDPMScheduler", {}, 1e-9),
        ("UniPCMultistepScheduler", {}, 1e-9),
    ],
)
@pytest.mark.parametrize("generator", [one_generator, generators(2)])
def test_latents_equal_those_of_diffusers_with_every_scheduler(
    name: str, config: dict[str, Any], tolerance: float, generator: Callable[[], Any]
) -> None:
    assert_same(*with_scheduler(name, **config), generator, tolerance, **EXAMPLE, num_images_per_prompt=2)


@needs_live_oracle
def test_without_a_generator_torchs_global_one_is_used() -> None:
    torch.manual_seed(3)
    mine = pipeline()(FACE, num_inference_steps=3, eta=1.0, num_images_per_prompt=2, output_type="latent")
    torch.manual_seed(3)
    theirs = pipeline(THEIRS)(
        FACE, num_inference_steps=3, eta=1.0, num_images_per_prompt=2, output_type="latent"
    )
    assert (mine.images - theirs.images).abs().max() <= 1e-9 * theirs.images.abs().max()


@needs_live_oracle
def test_latents_as_argument() -> None:
    latents = torch.randn(2, 4, 16, 16, dtype=torch.float64, generator=one_generator())
    for ours, theirs in ((pipeline(), pipeline(THEIRS)), with_scheduler("LMSDiscreteScheduler")):
        assert_same(ours, theirs, latents=latents, num_images_per_prompt=2, **ONE)


@needs_live_oracle
@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_images_of_every_output_type(output_type: str) -> None:
    mine, expected = (
        pipeline(kind)(
            [FACE, "a cat"], num_inference_steps=4, generator=one_generator(), output_type=output_type, **ONE
        ).images
        for kind in (SemanticStableDiffusionPipeline, THEIRS)
    )
    assert type(mine) is type(expected)
    assert len(mine) == len(expected) == 2
    for one, other in zip(mine, expected, strict=True):
        assert np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).max() <= 1e-7
    as_tuple = pipeline()(FACE, num_inference_steps=1, output_type=output_type, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert as_tuple[1] is None


@needs_live_oracle
def test_callbacks_receive_the_same_steps() -> None:
    both: list[list[tuple[int, int, torch.Tensor]]] = [[], []]
    for kind, calls in zip((SemanticStableDiffusionPipeline, THEIRS), both, strict=True):
        pipeline(kind)(
            [FACE, "a cat"],
            num_inference_steps=5,
            generator=one_generator(),
            callback=lambda step, t, latents, calls=calls: calls.append((step, int(t), latents.clone())),
            callback_steps=2,
            **ONE,
        )
    assert [call[:2] for call in both[0]] == [call[:2] for call in both[1]]
    assert len(both[0]) == 3
    for (*_, mine), (*_, expected) in zip(*both, strict=True):
        assert (mine - expected).abs().max() <= 1e-9 * expected.abs().max()


@needs_live_oracle
def test_embeddings_replace_texts() -> None:
    pipe = pipeline()
    tokens = pipe.tokenizer(
        ["glasses", "smile"],
        padding="max_length",
        max_length=pipe.tokenizer.model_max_length,
        return_tensors="pt",
    )
    embeddings = pipe.text_encoder(tokens.input_ids)[0].detach()
    one, two = (
        {"editing_prompt": None, "editing_prompt_embeddings": e} for e in (embeddings[:1], embeddings)
    )
    assert_same(pipe, pipeline(THEIRS), **ONE | one, num_images_per_prompt=2)
    assert_same(pipe, pipeline(THEIRS), **ONE | two, num_images_per_prompt=2)
    assert_same(pipe, pipeline(THEIRS), **ONE | one, prompt=[FACE, "a cat"])
    # With several embeddings and several prompts, diffusers mixes up the images' concepts.
    both = {"prompt": [FACE, "a cat"], "edit_guidance_scale": [9, 3], "num_inference_steps": 5}
    calls = [ONE | both | {"editing_prompt": ["glasses", "smile"]}, ONE | both | two]
    mine, theirs = (
        [pipeline(kind)(**call, generator=one_generator(), output_type="latent").images for call in calls]
        for kind in (SemanticStableDiffusionPipeline, THEIRS)
    )
    assert torch.equal(mine[0], mine[1])
    assert (theirs[0] - theirs[1]).abs().max() > 0.01


@needs_live_oracle
@pytest.mark.parametrize("warmups", [[2, 2], [1, 3]])
def test_semantic_guidance_of_one_call_is_reused_in_another(warmups: list[int]) -> None:
    """Also with staggered warm-ups: diffusers stores the sum over the warm concepts."""
    edit = ONE | {"editing_prompt": ["glasses", "smile"], "edit_warmup_steps": warmups}
    images = []
    for kind in (SemanticStableDiffusionPipeline, THEIRS):
        pipe = pipeline(kind)
        call = {"num_inference_steps": 5, "output_type": "latent", "num_images_per_prompt": 2}
        pipe(FACE, generator=one_generator(), **call, **edit)
        guidance = pipe.sem_guidance
        assert guidance.shape == (6, 2, 4, 16, 16)
        images.append(pipe("a cat", generator=one_generator(), sem_guidance=guidance, **call).images)
    # diffusers stores the guidance in float32.
    assert (images[0] - images[1]).abs().max() <= 1e-5 * images[1].abs().max()
    plain = pipeline()("a cat", generator=one_generator(), **call).images
    assert (images[0] - plain).abs().max() > 0.01


@needs_live_oracle
def test_unsafe_images_are_black() -> None:
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = small | {"image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(projection_dim=8, text_config=small, vision_config=vision)
    ).double()
    checker.concept_embeds.data.normal_()
    extractor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    parts = {"safety_checker": checker, "feature_extractor": extractor}
    call = {"prompt": FACE, "num_inference_steps": 2, "num_images_per_prompt": 6}

    images = pipeline()(**call, generator=one_generator()).images
    pooled = checker.vision_model(extractor(images, return_tensors="pt").pixel_values.double())[1]
    similarity = torch.cosine_similarity(
        checker.visual_projection(pooled)[:, None], checker.concept_embeds, dim=-1
    )
    checker.concept_embeds_weights.data[:] = similarity.amax(dim=1).median()  # half of the images are unsafe

    mine, expected = (
        kind(**pipeline(kind).components | parts)(**call, generator=one_generator())
        for kind in (SemanticStableDiffusionPipeline, THEIRS)
    )
    assert mine.nsfw_content_detected == expected.nsfw_content_detected
    assert set(mine.nsfw_content_detected) == {True, False}
    for image, other, is_nsfw in zip(mine.images, expected.images, mine.nsfw_content_detected, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(other))
        assert (np.asarray(image).max() == 0) == is_nsfw
    with pytest.raises(ValueError, match="feature_extractor is None"):
        SemanticStableDiffusionPipeline(**pipeline().components | parts | {"feature_extractor": None})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"guidance_scale": 1.0}, "guidance_scale is 1.0, but SEGA needs classifier-free guidance"),
        ({"edit_threshold": [0.5, 0.9]}, "edit_threshold gives 2 values, but the cell has 1 concepts"),
        ({"edit_threshold": 1.5}, "edit_threshold is 1.5, but it must be between 0 and 1"),
        ({"edit_guidance_scale": None}, "edit_guidance_scale is None, but it must be a number"),
        ({"edit_weights": [-1]}, "use reverse_editing_direction"),
        ({"prompt": []}, "prompt has 0 texts"),
        ({"prompt": [FACE], "negative_prompt": "a"}, "must both be a text, or both a list"),
        ({"prompt": [FACE], "negative_prompt": ["a", "b"]}, "prompt has 1 texts, negative_prompt 2"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"height": 30}, "height is 30 and width None, but they must be multiples of 8"),
        ({"generator": [torch.Generator()] * 2}, "generator is a list of 2, but there are 1 images"),
        (
            {"latents": torch.zeros(1, 4, 8, 8)},
            "latents are (1, 4, 8, 8), but this call needs (1, 4,",
        ),
        ({"output_type": "jpeg"}, "output_type is 'jpeg', but it must be pil, np, pt or latent"),
        ({"callback_steps": 0}, "callback_steps is 0"),
        ({"sem_guidance": [torch.zeros(1, 4, 16, 16)] * 2}, "sem_guidance has 2 steps"),
        ({"sem_guidance": [torch.zeros(4, 16, 16)] * 3}, "sem_guidance is (4, 16, 16) a step"),
        (
            {"sem_guidance": [torch.zeros(1, 4, 16, 16)] * 3, "guidance_scale": 1, "editing_prompt": None},
            "sem_guidance needs a value above 1",
        ),
    ],
)
def test_wrong_arguments_are_errors_of_one_line(call: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"is|gives|must|has|are|needs") as error:
        pipeline()(**{"prompt": FACE, "num_inference_steps": 3, **ONE, **call})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@needs_live_oracle
def test_an_unsupported_scheduler_is_refused_by_name() -> None:
    ours, _ = with_scheduler("DDIMInverseScheduler")
    with pytest.raises(ValueError, match=r"^scheduler is 'DDIMInverseScheduler', which is none") as error:
        ours(FACE)
    assert all(known in str(error.value) for known in schedulers._ROW_STATE)


def test_the_face_model_is_loaded_by_its_name() -> None:
    pipe = SemanticStableDiffusionPipeline.from_pretrained("embedded")
    assert pipe(FACE, num_inference_steps=1, **ONE | {"edit_warmup_steps": 0}).images[0].size == (64, 64)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use_safetensors"):
        SemanticStableDiffusionPipeline.from_pretrained(tiny_sd.folder(), use_safetensors=False)
    pickled = tmp_path / "pickled"
    pipeline(dtype=torch.float32).save_pretrained(pickled, safe_serialization=False)
    assert list(pickled.rglob("*.bin"))
    with pytest.raises(OSError, match="safetensors"):
        SemanticStableDiffusionPipeline.from_pretrained(pickled)
