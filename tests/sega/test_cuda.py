"""CUDA code paths on a machine without CUDA: devices, precisions, and no step that waits for the GPU."""

from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from support import fake_cuda, tiny_sd, tiny_xl
from torch import Tensor

from sega_bench.benchmark.peak import PeakBytes
from sega_bench.cell import Cell, Edit
from sega_bench.sega import batching, memory, schedulers, wave
from sega_bench.sega.batching import Batching
from sega_bench.sega.denoiser import Conditioning, Denoiser
from sega_bench.sega.schedule import form_waves

EDITS = (Edit("smile", 5, 0.9, 1), Edit("glasses", 4, 0.8, 2, 5)), (Edit("beard", 6, 0.95, 3),)
WAITS_IN_EVERY_STEP = {
    "DDPMScheduler": "noise is drawn on the CPU",
    "EulerAncestralDiscreteScheduler": "noise is drawn on the CPU",
    "KDPM2AncestralDiscreteScheduler": "noise is drawn on the CPU",
    "LCMScheduler": "noise is drawn on the CPU",
    "UniPCMultistepScheduler": "diffusers computes its coefficients on the device",
}


def cells(scheduler: str, steps: int = 6, dtype: str = "float16") -> list[Cell]:
    """A reference and two cells that fork from it at different steps."""
    shared = {"scheduler": scheduler, "num_inference_steps": steps, "edit_momentum_scale": 0.3}
    edited = [tiny_sd.cell(dtype, edits=edits, **shared) for edits in EDITS]
    return [edited[0].reference(), *edited]


class Contraction:
    """A cheap denoiser on the device: elementwise, without a network."""

    device, latent_dtype = fake_cuda.CUDA, torch.float32

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return 4, height // 8, width // 8

    def encode(self, text: str) -> Conditioning:
        return {"pattern": torch.full((4, 1, 1), float(len(text)), device=self.device)}

    def predict(self, latents_BCHW: Tensor, timestep_B: Tensor, conditioning: Conditioning) -> Tensor:
        return 0.3 * latents_BCHW + (conditioning["pattern"] * timestep_B[:, None, None, None]).sin()


def denoise(denoiser: Denoiser, requested: list[Cell]) -> Tensor:
    """Final latents on fake CUDA."""
    (whole,) = form_waves(requested, 64, wave.count_timesteps)
    with torch.inference_mode():
        latents, evaluations, _ = wave.denoise(denoiser, whole, Batching())
    assert {cell.key: evaluations[cell.key] for cell in requested} == whole.count_evaluations()
    latents_RCHW = torch.stack(list(latents.values()))
    assert (latents_RCHW.device, latents_RCHW.dtype) == (fake_cuda.CUDA, torch.float32)
    return latents_RCHW


@pytest.mark.parametrize("scheduler", sorted(schedulers._ROW_STATE))
def test_no_step_waits_for_the_device(scheduler: str) -> None:
    """Reading from the device raises here, and copying to it, which also waits, is counted."""
    waits = []
    for steps in (6, 9):
        with fake_cuda.fake_cuda() as device:
            denoise(Contraction(), cells(scheduler, steps))
        waits.append(device.waits)
    assert (waits[1] > waits[0]) == (scheduler in WAITS_IN_EVERY_STEP)


def test_xls_network_waits_for_the_device_once() -> None:
    """The numbers of an image's size are copied to it only the first time."""
    with fake_cuda.fake_cuda() as device:
        denoiser = fake_cuda.stable_diffusion_xl()
        states_BTD = torch.zeros(2, 77, tiny_xl.WIDTH + tiny_xl.WIDTH_2, device=fake_cuda.CUDA)
        pooled_BD = torch.zeros(2, tiny_xl.PROJECTION, device=fake_cuda.CUDA)
        latents_BCHW = torch.zeros(2, 4, 8, 8, device=fake_cuda.CUDA)
        timestep = torch.zeros((), device=fake_cuda.CUDA)
        conditioning = {"encoder_hidden_states": states_BTD, "text_embeds": pooled_BD}
        waits = []
        for _ in range(3):
            before = device.waits
            assert denoiser.predict(latents_BCHW, timestep, conditioning).shape == latents_BCHW.shape
            waits.append(device.waits - before)
    assert waits == [1, 0, 0]


@pytest.mark.parametrize(("dtype", "scheduler"), [("float16", "DDIM"), ("bfloat16", "Euler")])
def test_the_networks_run_on_the_device_in_half_precision(dtype: str, scheduler: str) -> None:
    with fake_cuda.fake_cuda():
        denoiser = fake_cuda.stable_diffusion(getattr(torch, dtype))
        encoded = batching.encode(denoiser, ["a face", "smile"])
        assert {(value.device, value.dtype) for value in encoded.values()} == {
            (fake_cuda.CUDA, getattr(torch, dtype))
        }
        image_BHW3 = denoiser.decode(denoise(denoiser, cells(scheduler, dtype=dtype)))
    assert (image_BHW3.dtype, image_BHW3.device) == (torch.uint8, fake_cuda.CUDA)
    assert image_BHW3.shape == (3, tiny_sd.SIZE, tiny_sd.SIZE, 3)


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
def test_reading_from_the_device_is_detected(reads: Callable[[Tensor], object]) -> None:
    """The tests above can fail."""
    with fake_cuda.fake_cuda():
        values = torch.ones(4, device=fake_cuda.CUDA)
        with pytest.raises(Exception, match=r"to the host|_local_scalar_dense|nonzero|numpy"):
            reads(values)


@pytest.mark.parametrize("other", [torch.ones(4), torch.ones(4, dtype=torch.float16).double()])
def test_a_cpu_tensor_among_those_of_the_device_is_detected(other: Tensor) -> None:
    with fake_cuda.fake_cuda():
        values = torch.ones(4, device=fake_cuda.CUDA)
        with pytest.raises(RuntimeError, match="device"):
            values + other


def test_another_precision_than_the_networks_is_detected() -> None:
    with fake_cuda.fake_cuda(), torch.inference_mode():
        denoiser = fake_cuda.stable_diffusion()
        latents_BCHW = torch.zeros(2, 4, 16, 16, device=fake_cuda.CUDA)
        with pytest.raises(RuntimeError, match=r"(?i)dtype|type"):
            denoiser.unet(latents_BCHW, 3, torch.zeros(2, 8, 16, device=fake_cuda.CUDA))


UNET = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


@pytest.mark.parametrize(("batch", "side"), [(1, 512), (4, 512), (2, 768)])
def test_the_memory_constants_equal_the_peak_of_stable_diffusions_networks(batch: int, side: int) -> None:
    """Counts the elements that live at once, on networks of full size without weights."""
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
