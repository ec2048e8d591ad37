"""A drop-in for diffusers' deprecated SEGA pipeline: the same class name and call, run by this engine.

>>> from sega_bench.sega import SemanticStableDiffusionPipeline
>>> pipe = SemanticStableDiffusionPipeline.from_pretrained("/path/to/a/diffusers/folder").to("cuda")
>>> out = pipe("a photo of the face of a woman", editing_prompt=["smiling, smile"], edit_threshold=[0.99])
>>> image = out.images[0]

It draws the same noise from the same generators, so its images equal those of diffusers, except where
CONTRIBUTING.md ("Where we differ from diffusers") says otherwise. With networks in half precision, guidance,
scheduler and the scheduler's step noise use float32.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from sega_bench import faces
from sega_bench.cell import Cell, Edit, canonical_json, per_concept
from sega_bench.errors import UserError
from sega_bench.sega import schedulers
from sega_bench.sega.batching import Batching
from sega_bench.sega.denoiser import Conditioning
from sega_bench.sega.models import StableDiffusion
from sega_bench.sega.rows import Generators, Noise
from sega_bench.sega.schedule import wave_of
from sega_bench.sega.steps import base_texts, image_owner
from sega_bench.sega.wave import Step, count_timesteps, denoise

MAX_MICRO_BATCH = 16
"""Most noise estimates in one pass through the UNet; the engine halves it when memory runs out."""

log = logging.getLogger(__name__)


class SemanticStableDiffusionPipeline(DiffusionPipeline, StableDiffusionMixin):  # type: ignore[misc]
    """Text-to-image generation with semantic guidance, called as in diffusers up to 0.33.

    Args:
        vae, text_encoder, tokenizer, unet: of a Stable Diffusion 1.x or 2.x checkpoint.
        scheduler: any that :mod:`sega_bench.sega.schedulers` supports.
        safety_checker, feature_extractor: both or neither.
        requires_safety_checker: stored in the configuration, as in diffusers.

    After a call, ``sem_guidance`` holds the semantic guidance of every step, (steps + 1, images, C, H, W).
    Another call accepts it as ``sem_guidance=``. It is None after a call without classifier-free guidance.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = ["safety_checker", "feature_extractor"]  # noqa: RUF012

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        safety_checker: Any,
        feature_extractor: Any,
        requires_safety_checker: bool = True,
    ) -> None:
        super().__init__()
        if safety_checker is not None and feature_extractor is None:
            raise ValueError(
                "feature_extractor is None, but the safety_checker needs it: give both, or neither"
            )
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
        )
        self.register_to_config(requires_safety_checker=requires_safety_checker)
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self.sem_guidance: Tensor | None = None

    @classmethod
    def from_pretrained(cls, path: Any, **settings: Any) -> SemanticStableDiffusionPipeline:
        """As in diffusers, but reads only safetensors; the path ``embedded`` is the face model.

        Raises:
            ValueError: ``use_safetensors=False``.
        """
        if settings.setdefault("use_safetensors", True) is not True:
            raise ValueError("use_safetensors is not True, but other weights can run any code: convert them")
        pipeline: SemanticStableDiffusionPipeline = super().from_pretrained(
            faces.PIPELINE_DIR if path == "embedded" else path, **settings
        )
        return pipeline

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        callback: Callable[[int, int, Tensor], None] | None = None,
        callback_steps: int = 1,
        editing_prompt: str | list[str] | None = None,
        editing_prompt_embeddings: Tensor | None = None,
        reverse_editing_direction: bool | list[bool] | None = False,
        edit_guidance_scale: float | list[float] | None = 5,
        edit_warmup_steps: int | list[int] | None = 10,
        edit_cooldown_steps: int | list[int] | None = None,
        edit_threshold: float | list[float] | None = 0.9,
        edit_momentum_scale: float | None = 0.1,
        edit_mom_beta: float | None = 0.4,
        edit_weights: list[float] | None = None,
        sem_guidance: list[Tensor] | None = None,
    ) -> Any:
        """Generate images. Arguments are those of diffusers' class; :class:`Edit` documents the edit's.

        Returns:
            ``images`` in the format of ``output_type`` (``pil``, ``np``, ``pt`` or ``latent``) and
            ``nsfw_content_detected``, None without a safety checker; a tuple if not ``return_dict``.

        Raises:
            ValueError: a setting is out of range, or lists have different lengths; the message is one line.
        """
        _check_arguments(height, width, output_type, callback_steps)
        concepts, embeddings = _concepts(editing_prompt, editing_prompt_embeddings)
        edits = _edits(
            concepts,
            edit_guidance_scale=edit_guidance_scale,
            edit_threshold=edit_threshold,
            edit_warmup_steps=edit_warmup_steps,
            edit_cooldown_steps=edit_cooldown_steps,
            edit_weights=edit_weights or 1.0,
            reverse_editing_direction=reverse_editing_direction,
        )
        shared: dict[str, Any] = {
            **self._scheduler_settings(),
            "edits": edits,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "eta": eta,
            "height": height or self.unet.config.sample_size * self.vae_scale_factor,
            "width": width or self.unet.config.sample_size * self.vae_scale_factor,
            "edit_momentum_scale": edit_momentum_scale,
            "edit_mom_beta": edit_mom_beta,
        }
        # The seed only distinguishes images of one prompt: the noise comes from the generators.
        cells = [
            Cell(prompt=text, negative_prompt=negative, seed=image, **shared)
            for image, (text, negative) in enumerate(_texts(prompt, negative_prompt, num_images_per_prompt))
        ]
        networks = _Networks(self, embeddings)
        noise = self._noise(networks, cells, generator, latents)
        callback_at = (callback, callback_steps) if callback is not None else None
        final_BCHW = self._denoise(networks, cells, noise, sem_guidance, callback_at)
        images, is_nsfw = self._decode_and_check(final_BCHW, output_type)
        if not return_dict:
            return images, is_nsfw
        return StableDiffusionPipelineOutput(images=images, nsfw_content_detected=is_nsfw)

    def _scheduler_settings(self) -> dict[str, str]:
        """The scheduler as fields of a cell; the engine builds its own from them."""
        name = type(self.scheduler).__name__
        try:
            schedulers.class_name(name)
        except UserError as error:
            raise ValueError(str(error).removeprefix("sampling.")) from error
        config = {key: value for key, value in self.scheduler.config.items() if not key.startswith("_")}
        return {"scheduler": name, "scheduler_config": canonical_json(config)}

    def _noise(
        self, networks: _Networks, cells: Sequence[Cell], generator: Generators, latents: Tensor | None
    ) -> Noise:
        """Initial noise as in diffusers: in its dtype, and in one draw where there is one generator."""
        shape = (len(cells), *networks.latent_shape(cells[0].height, cells[0].width))
        if isinstance(generator, list) and len(generator) != len(cells):
            raise ValueError(
                f"generator is a list of {len(generator)}, but there are {len(cells)} images: "
                "give one for each image, or a single one for all"
            )
        if latents is None:
            dtype = self.text_encoder.dtype
            latents = randn_tensor(shape, generator=generator, device=networks.device, dtype=dtype)
        elif latents.shape != shape:
            raise ValueError(f"latents are {tuple(latents.shape)}, but this call needs {shape}")
        return Noise(latents.to(networks.device, networks.latent_dtype), generator)

    def _denoise(
        self,
        networks: _Networks,
        cells: Sequence[Cell],
        noise: Noise,
        sem_guidance: Sequence[Tensor] | None,
        callback_at: tuple[Callable[[int, int, Tensor], None], int] | None,
    ) -> Tensor:
        """Final latents of all images, BCHW; stores their semantic guidance in ``sem_guidance``."""
        first, n = cells[0], count_timesteps(cells[0])
        _check_sem_guidance(sem_guidance, noise.latents_RCHW, first, n)
        steps = max(n, first.num_inference_steps + 1)  # diffusers always allocates one step more
        recorded = noise.latents_RCHW.new_zeros(steps, *noise.latents_RCHW.shape)
        order = getattr(self.scheduler, "order", 1)
        with self.progress_bar(total=n) as bar:

            def on_step(step: Step) -> None:
                recorded[step.index] = step.sem_guidance_RCHW
                if callback_at is not None and step.index % callback_at[1] == 0:
                    callback_at[0](step.index // order, step.timestep, step.latents_RCHW)  # type: ignore[arg-type]
                bar.update()

            final = denoise(
                networks,
                wave_of(cells, n),
                Batching(micro=_micro_batch(len(cells) * (len(base_texts(first, 0)) + len(first.edits)))),
                noise=noise,
                sem_guidance=sem_guidance,
                on_step=on_step,
            ).latents
        self.sem_guidance = recorded.cpu() if first.guidance_scale > 1.0 else None
        return torch.stack([final[image_owner(cell, n)] for cell in cells])

    def _decode_and_check(
        self, latents_BCHW: Tensor, output_type: str | None
    ) -> tuple[Any, list[bool] | None]:
        """Images in the format of ``output_type``, unsafe ones blackened, and whether each is unsafe."""
        if output_type == "latent":
            return latents_BCHW, None
        scaled_BCHW = (latents_BCHW / self.vae.config.scaling_factor).to(self.vae.dtype)
        images_BCHW = self.vae.decode(scaled_BCHW, return_dict=False)[0]
        is_nsfw: list[bool] | None = None
        if self.safety_checker is not None:
            pil_images = self.image_processor.postprocess(images_BCHW, output_type="pil")
            pixels_BCHW = self.feature_extractor(pil_images, return_tensors="pt").pixel_values
            images_BCHW, is_nsfw = self.safety_checker(
                images=images_BCHW, clip_input=pixels_BCHW.to(images_BCHW.device, self.text_encoder.dtype)
            )
        # The checker sets unsafe images to 0, which is black already: denormalising would make them grey.
        do_denormalize = [not flag for flag in is_nsfw or [False] * len(latents_BCHW)]
        images = self.image_processor.postprocess(images_BCHW, output_type, do_denormalize=do_denormalize)
        return images, is_nsfw


class _Networks(StableDiffusion):
    """The pipeline's networks, which also accept the names of given embeddings as texts."""

    def __init__(self, pipeline: SemanticStableDiffusionPipeline, embeddings: Mapping[str, Tensor]) -> None:
        super().__init__([pipeline.tokenizer], [pipeline.text_encoder], pipeline.unet, pipeline.vae)
        self.device = pipeline._execution_device
        self._embeddings = embeddings

    def _encode(self, text: str) -> Conditioning:
        if text in self._embeddings:
            return {
                "encoder_hidden_states": self._embeddings[text].to(self.device, self.text_encoders[0].dtype)
            }
        if warning := self.truncation(text):
            log.warning("%s", warning)
        return super()._encode(text)


def _check_arguments(
    height: int | None, width: int | None, output_type: str | None, callback_steps: int
) -> None:
    if (height or 8) % 8 or (width or 8) % 8:
        raise ValueError(f"height is {height} and width {width}, but they must be multiples of 8")
    if output_type not in ("pil", "np", "pt", "latent"):
        raise ValueError(f"output_type is {output_type!r}, but it must be pil, np, pt or latent")
    if not isinstance(callback_steps, int) or callback_steps < 1:
        raise ValueError(f"callback_steps is {callback_steps!r}, but it must be a whole number from 1")


def _texts(
    prompt: str | list[str], negative_prompt: str | list[str] | None, num_images_per_prompt: int
) -> list[tuple[str, str]]:
    """Prompt and negative prompt of every image, in diffusers' order."""
    if negative_prompt is not None and isinstance(prompt, str) != isinstance(negative_prompt, str):
        raise ValueError("negative_prompt and prompt must both be a text, or both a list of texts")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    negatives = [negative_prompt or ""] if isinstance(negative_prompt, str) else negative_prompt
    negatives = [""] * len(prompts) if negatives is None else negatives
    if not prompts or len(prompts) != len(negatives):
        raise ValueError(
            f"prompt has {len(prompts)} texts, negative_prompt {len(negatives)}: give as many, at least one"
        )
    if not isinstance(num_images_per_prompt, int) or num_images_per_prompt < 1:
        raise ValueError(
            f"num_images_per_prompt is {num_images_per_prompt!r}, but it must be a whole number from 1"
        )
    return [pair for pair in zip(prompts, negatives, strict=True) for _ in range(num_images_per_prompt)]


def _concepts(
    editing_prompt: str | list[str] | None, embeddings_KTC: Tensor | None
) -> tuple[list[str], dict[str, Tensor]]:
    """The concepts' texts; for embeddings instead of texts, generated names and the embeddings by name."""
    if editing_prompt:
        return [editing_prompt] if isinstance(editing_prompt, str) else list(editing_prompt), {}
    if embeddings_KTC is None:
        return [], {}
    # The null character keeps these names apart from any text that a user can write.
    embeddings = {f"\0editing_prompt_embeddings[{k}]": one_TC for k, one_TC in enumerate(embeddings_KTC)}
    return list(embeddings), embeddings


def _edits(concepts: Sequence[str], **settings: Any) -> tuple[Edit, ...]:
    """One edit for each concept; a setting is one value for all concepts, or a list with one for each."""
    columns = {name: per_concept(value, concepts, name) for name, value in settings.items()}
    return tuple(
        Edit(concept, **{name: column[k] for name, column in columns.items()})
        for k, concept in enumerate(concepts)
    )


def _check_sem_guidance(
    sem_guidance: Sequence[Tensor] | None, latents_BCHW: Tensor, cell: Cell, n: int
) -> None:
    if sem_guidance is None:
        return
    if cell.guidance_scale <= 1.0:
        raise ValueError(f"guidance_scale is {cell.guidance_scale}, but sem_guidance needs a value above 1")
    if len(sem_guidance) < n:
        raise ValueError(f"sem_guidance has {len(sem_guidance)} steps, but the scheduler takes {n}")
    if sem_guidance[0].shape != latents_BCHW.shape:
        shape = tuple(latents_BCHW.shape)
        raise ValueError(
            f"sem_guidance is {tuple(sem_guidance[0].shape)} a step, but this call needs {shape}"
        )


def _micro_batch(estimates: int) -> int:
    """The micro-batch size up to ``MAX_MICRO_BATCH`` with the least padding for a step's estimates."""
    return math.ceil(estimates / math.ceil(estimates / MAX_MICRO_BATCH))
