"""The way through CUDA on a machine without it: devices, precisions, and that no step waits for the GPU."""

from collections.abc import Callable

import fake_cuda
import pytest
import tiny_sd
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from sega_bench.benchmark.peak import PeakBytes
from sega_bench.cell import Cell, Edit
from sega_bench.sega import batching, memory, schedulers, wave
from sega_bench.sega.batching import Batching
from sega_bench.sega.schedule import form_waves

EDITS = (Edit("smile", 5, 0.9, 1), Edit("glasses", 4, 0.8, 2, 5)), (Edit("beard", 6, 0.95, 3),)
COPIES_EVERY_STEP = {
    "DDPMScheduler": "noise is drawn on the CPU",
    "EulerAncestralDiscreteScheduler": "noise is drawn on the CPU",
    "KDPM2AncestralDiscreteScheduler": "noise is drawn on the CPU",
    "LCMScheduler": "noise is drawn on the CPU",
    "UniPCMultistepScheduler": "diffusers builds its coefficients on the device and solves for them there",
}


def cells(scheduler: str, steps: int = 6, dtype: str = "float16") -> list[Cell]:
    """A reference and two cells that leave it at different steps."""
    shared = {"scheduler": scheduler, "num_inference_steps": steps, "edit_momentum_scale": 0.3}
    edited = [tiny_sd.cell(dtype, edits=edits, **shared) for edits in EDITS]
    return [edited[0].reference(), *edited]


def denoise(wanted: list[Cell], dtype: torch.dtype = torch.float16) -> tuple[Tensor, int]:
    """Final latents on fake CUDA, and how often something was copied to it while they were made."""
    (whole,) = form_waves(wanted, 64, wave.count_timesteps)
    with fake_cuda.fake_cuda() as device, torch.inference_mode():
        denoiser = fake_cuda.stable_diffusion(dtype)
        before = device.copies
        rows, evaluations = wave._denoise(denoiser, whole, Batching(micro=4), lambda count: None)
        copies = device.copies - before
        image_BHW3 = denoiser.decode(rows.latents_RCHW)
    assert dict(evaluations) == whole.count_evaluations()
    assert (image_BHW3.dtype, image_BHW3.device) == (torch.uint8, fake_cuda.CUDA)
    assert image_BHW3.shape == (3, tiny_sd.SIZE, tiny_sd.SIZE, 3)
    return rows.latents_RCHW, copies


@pytest.mark.parametrize("scheduler", sorted(schedulers._ROW_STATE))
def test_every_scheduler_runs_on_the_device_and_is_never_waited_for(scheduler: str) -> None:
    """A copy to the host raises; a copy to the device makes its stream wait, so there is none in a step."""
    latents_RCHW, copies = denoise(cells(scheduler))
    assert (latents_RCHW.device, latents_RCHW.dtype) == (fake_cuda.CUDA, torch.float32)
    _, copies_of_more_steps = denoise(cells(scheduler, steps=9))
    assert (copies_of_more_steps > copies) == (scheduler in COPIES_EVERY_STEP)


def test_bfloat16_runs_too() -> None:
    latents_RCHW, _ = denoise(cells("DDIM", dtype="bfloat16"), torch.bfloat16)
    assert latents_RCHW.dtype == torch.float32


@pytest.mark.parametrize(
    "reads",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x.sum().tolist(),
        lambda x: x.cpu(),
        lambda x: torch.zeros(4).copy_(x),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: float(x[0]),
        lambda x: x.numpy(),
    ],
)
def test_reading_from_the_device_is_noticed(reads: Callable[[Tensor], object]) -> None:
    """That the tests above can fail."""
    with fake_cuda.fake_cuda():
        values = torch.ones(4, device=fake_cuda.CUDA)
        with pytest.raises(Exception, match=r"(?i)host|data|shape|fake|numpy"):
            reads(values)


@pytest.mark.parametrize("other", [torch.ones(4), torch.ones(4, dtype=torch.float16).double()])
def test_a_tensor_of_the_cpu_among_those_of_the_device_is_noticed(other: Tensor) -> None:
    with fake_cuda.fake_cuda():
        values = torch.ones(4, device=fake_cuda.CUDA)
        with pytest.raises(RuntimeError, match="device"):
            values + other


def test_another_precision_than_the_networks_is_noticed() -> None:
    with fake_cuda.fake_cuda(), torch.inference_mode():
        denoiser = fake_cuda.stable_diffusion()
        latents_BCHW = torch.zeros(2, 4, 16, 16, device=fake_cuda.CUDA)
        with pytest.raises(RuntimeError, match="(?i)dtype|type"):
            denoiser.unet(latents_BCHW, 3, torch.zeros(2, 8, 16, device=fake_cuda.CUDA))


def test_texts_are_encoded_on_the_device_in_the_networks_precision() -> None:
    with fake_cuda.fake_cuda():
        encoded = batching.encode(fake_cuda.stable_diffusion(), ["a face", "smile"])
    assert {(value.device, value.dtype) for value in encoded.values()} == {(fake_cuda.CUDA, torch.float16)}


UNET = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


@pytest.mark.parametrize(("batch", "side"), [(1, 512), (4, 512), (2, 768)])
def test_memory_is_what_the_networks_of_stable_diffusion_take(batch: int, side: int) -> None:
    """Elements that live at once, counted on networks of full size without weights."""
    pixels = batch * side * side

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, device=fake_cuda.CUDA)

    with fake_cuda.fake_cuda(), torch.inference_mode():
        with fake_cuda.CUDA:
            unet, vae = UNet2DConditionModel(**UNET).eval(), AutoencoderKL(**VAE).eval()
        latents_BCHW, timestep = zeros(batch, 4, side // 8, side // 8), zeros()
        texts_BTD = zeros(batch, 77, 768)
        with PeakBytes() as of_unet:
            unet(latents_BCHW, timestep, texts_BTD, return_dict=False)
        with PeakBytes() as of_vae:
            vae.decode(latents_BCHW, return_dict=False)
    assert of_unet.peak / (4 * pixels) == pytest.approx(memory.UNET_ELEMENTS_PER_PIXEL, rel=0.01)
    assert of_vae.peak / (4 * pixels) == pytest.approx(memory.VAE_ELEMENTS_PER_PIXEL, rel=0.01)
