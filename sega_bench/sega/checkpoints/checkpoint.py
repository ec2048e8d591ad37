"""A checkpoint on this machine: its networks, tokenizers and LoRAs, their validation and loading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sega_bench.cell import abbreviated
from sega_bench.errors import UserError
from sega_bench.sega.checkpoints import original
from sega_bench.sega.checkpoints.layout import Config, Layout, read_object
from sega_bench.sega.checkpoints.lora import Update, fuse, read_updates
from sega_bench.sega.checkpoints.settings import LoraSettings
from sega_bench.sega.checkpoints.tokenizers import load_tokenizer
from sega_bench.sega.checkpoints.weights import empty_network, file_label, fill, fit, read_tensors


@dataclass(frozen=True)
class Part:
    """One network of a checkpoint, not loaded.

    Args:
        name: diffusers' component name, such as ``unet``.
        kind: name of its class.
        config: contents of its config.json.
        files: safetensors with its weights; a file may hold other parts' weights, too.
        is_original: whether the files have the original code's layout.
    """

    name: str
    kind: str
    config: Config
    files: tuple[Path, ...]
    is_original: bool = False

    @property
    def where(self) -> str:
        """The start of an error message about its weights."""
        return f"model.path: {', '.join(map(file_label, self.files))}"

    def empty(self) -> torch.nn.Module:
        """The network with parameters on the meta device."""
        return empty_network(self.kind, self.config, f"model.path: {self.name}")

    def tensors(self, network: torch.nn.Module, *, headers_only: bool = False) -> dict[str, Tensor]:
        """All its tensors, by the network's parameter names.

        Args:
            network: from :meth:`empty`.
            headers_only: give tensors on the meta device, without reading data.

        Raises:
            UserError: the files' tensors do not fit the network exactly.
        """
        tensors = read_tensors(self.files, self.where, headers_only=headers_only)
        if self.is_original:
            tensors = original.convert(self.name, network, tensors, self.where)
        return fit(network, tensors, self.where)

    def load(
        self, device: torch.device, dtype: torch.dtype, updates: Sequence[Update] = ()
    ) -> torch.nn.Module:
        """The network with its weights, into which its own ``updates`` are fused."""
        network = self.empty()
        return fill(network, fuse(self.name, self.tensors(network), updates), device, dtype)


@dataclass(frozen=True)
class SafetyChecker:
    """A checkpoint's own safety checker, not loaded.

    Args:
        part: the network.
        preprocessor: folder of the image processor's configuration.
    """

    part: Part
    preprocessor: Path

    def check(self) -> None:
        """Check that network and preprocessor can be loaded, without loading weights.

        Raises:
            UserError: they cannot.
        """
        self.part.tensors(self.part.empty(), headers_only=True)
        self.load_preprocessor()

    def load_preprocessor(self) -> Any:
        """The image processor that makes the network's input.

        Raises:
            UserError: its configuration is missing or invalid.
        """
        from transformers import CLIPImageProcessor

        where = f"model.safety_checker: {self.preprocessor.name}"
        config = read_object(self.preprocessor / "preprocessor_config.json", where)
        try:
            return CLIPImageProcessor.from_dict(config)
        except Exception as error:  # a wrong value can raise anything in the constructor
            raise UserError(f"{where} makes no preprocessor ({abbreviated(str(error))})") from error


@dataclass(frozen=True)
class Checkpoint:
    """Everything that is needed to load a model.

    Args:
        layout: its configurations.
        parts: its networks, by name.
        tokenizers: for each text encoder a folder, or the padding token for CLIP's own vocabulary.
        loras: fused into the weights, in this order.
        safety_checker: its safety checker, if the settings want one.
    """

    layout: Layout
    parts: Mapping[str, Part]
    tokenizers: tuple[Path | str, ...]
    loras: tuple[LoraSettings, ...] = ()
    safety_checker: SafetyChecker | None = None

    def check(self) -> None:
        """Check that tokenizers load and that files and networks have the same tensors, names and shapes.

        Raises:
            UserError: something is missing, superfluous or of another shape.
        """
        self.load_tokenizers()
        self.lora_updates()
        if self.safety_checker is not None:
            self.safety_checker.check()

    @property
    def folder(self) -> Path:
        """The folder that holds the parts' folders; only for diffusers' format."""
        return self.parts["unet"].files[0].parents[1]

    @property
    def weights_bytes(self) -> int:
        """Total size of the weights' files."""
        files = {path for part in self.parts.values() for path in part.files}
        return sum(path.stat().st_size for path in files)

    def load_tokenizers(self) -> tuple[Any, ...]:
        """Load the tokenizers, one for each text encoder.

        Raises:
            UserError: one cannot be loaded, or two have different text lengths.
        """
        triples = zip(self.layout.tokenizers, self.layout.text_encoders, self.tokenizers, strict=True)
        tokenizers = tuple(
            load_tokenizer(source, self.layout.config(encoder), f"model.path: {name}")
            for name, encoder, source in triples
        )
        lengths = [tokenizer.model_max_length for tokenizer in tokenizers]
        if len(set(lengths)) > 1:
            raise UserError(
                f"model.path: its tokenizers give texts of {lengths} tokens, which must be the same"
            )
        return tokenizers

    def lora_updates(self) -> list[Update]:
        """The weight updates of all LoRAs; reads the networks' tensor headers and the LoRAs' tensors."""
        shapes = {name: part.tensors(part.empty(), headers_only=True) for name, part in self.parts.items()}
        return [update for lora in self.loras for update in read_updates(lora, self.layout, shapes)]
