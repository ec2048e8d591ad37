"""CUDA without a GPU: tensors with shape, dtype and device but no data, so that reading one raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import CLIPTextConfig, CLIPTextModel

from sega_bench.sega.models import StableDiffusion
from support import tiny_sd, tiny_xl

CUDA = torch.device("cuda", 0)


class WaitedForDeviceError(AssertionError):
    """A copy from the device to the host, which waits for all submitted work."""


class HostAndDevice(TorchDispatchMode):
    """Compute CPU tensors and only trace those of the device; refuse copies back to the CPU."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.fake = fake
        self.waits = 0
        """How often the host waits without reading: it copies from unpinned memory, or solves equations, and
        checks for singular ones."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not any(map(_is_on_device, tree_leaves((args, kwargs)))):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        copies = "copy" in name  # a scalar CPU tensor may be an operand without a copy
        from_host = any(_is_real(x) and (copies or x.dim() > 0) for x in tree_leaves((args, kwargs)))
        self.waits += from_host or "linalg_solve" in name
        args, kwargs = tree_map(self._without_data, (args, kwargs))
        result = func(*args, **kwargs)
        if any(isinstance(x, torch.Tensor) and x.device.type == "cpu" for x in tree_leaves(result)):
            raise WaitedForDeviceError(f"{func} copies to the host")
        return result

    def _without_data(self, value: Any) -> Any:
        return self.fake.from_tensor(value) if _is_real(value) else value


def _is_real(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor)


def _is_on_device(value: Any) -> bool:
    return isinstance(value, FakeTensor) or (isinstance(value, torch.device) and value.type == "cuda")


@contextmanager
def fake_cuda() -> Iterator[HostAndDevice]:
    """A context in which tensors on CUDA can be created and computed."""
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, HostAndDevice(fake) as device:
        yield device


def stable_diffusion(dtype: torch.dtype = torch.float16) -> StableDiffusion:
    """The tiny checkpoint's networks on fake CUDA without weights; call it within :func:`fake_cuda`."""
    folder = tiny_sd.folder()
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with CUDA:
            text = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
            unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
            vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae"))
    finally:
        torch.set_default_dtype(before)
    return StableDiffusion(tiny_sd.loaded("float32").tokenizers, [text.eval()], unet.eval(), vae.eval())


def stable_diffusion_xl() -> StableDiffusion:
    """XL's UNet and VAE on fake CUDA, in float32, without text encoders."""
    folder = tiny_xl.folder()
    with CUDA:
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae"))
    return StableDiffusion((), [None, None], unet.eval(), vae.eval())
