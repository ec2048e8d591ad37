"""A checkpoint on this machine: its parts, how each is read, and whether all of it fits together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sega_bench.cell import shown
from sega_bench.errors import UserError
from sega_bench.sega.checkpoints import original
from sega_bench.sega.checkpoints.layout import Config, Layout, read_object
from sega_bench.sega.checkpoints.lora import Update, fuse, read_updates
from sega_bench.sega.checkpoints.settings import LoraSettings
from sega_bench.sega.checkpoints.tokenizers import load_tokenizer
from sega_bench.sega.checkpoints.weights import empty_network, fill, fit, read_tensors, shown_file


@dataclass(frozen=True)
class Part:
    """One network of a checkpoint, not loaded.

    Args:
        name: diffusers' component name, such as ``unet``.
        kind: its class.
        config: as in its config.json.
        files: safetensors that hold its weights, and perhaps other parts'.
        is_original: whether they are in the layout of the original code.
    """

    name: str
    kind: str
    config: Config
    files: tuple[Path, ...]
    is_original: bool = False

    @property
    def where(self) -> str:
        """Begins an error message about its weights."""
        return f"model.path: {', '.join(map(shown_file, self.files))}"

    def empty(self) -> torch.nn.Module:
        """The network without weights."""
        return empty_network(self.kind, self.config, f"model.path: {self.name}")

    def tensors(self, network: torch.nn.Module, *, headers_only: bool = False) -> dict[str, Tensor]:
        """All its tensors by the names that the network has for them.

        Raises:
            UserError: they do not fit the network exactly.
        """
        tensors = read_tensors(self.files, self.where, headers_only=headers_only)
        if self.is_original:
            tensors = original.convert(self.name, network, tensors, self.where)
        return fit(network, tensors, self.where)

    def load(
        self, device: torch.device, dtype: torch.dtype, updates: Sequence[Update] = ()
    ) -> torch.nn.Module:
        """The network with its weights and the updates that are for it."""
        network = self.empty()
        return fill(network, fuse(self.name, self.tensors(network), updates), device, dtype)


@dataclass(frozen=True)
class SafetyChecker:
    """The network that came with a checkpoint to judge its images.

    Args:
        part: the network.
        preprocessor: folder of the preprocessor's configuration.
    """

    part: Part
    preprocessor: Path

    def check(self) -> None:
        """See that network and preprocessor can be loaded.

        Raises:
            UserError: they cannot.
        """
        self.part.tensors(self.part.empty(), headers_only=True)
        self.load_preprocessor()

    def load_preprocessor(self) -> Any:
        """What makes the network's input of a picture.

        Raises:
            UserError: its configuration is missing or makes none.
        """
        from transformers import CLIPImageProcessor

        where = f"model.safety_checker: {self.preprocessor.name}"
        config = read_object(self.preprocessor / "preprocessor_config.json", where)
        try:
            return CLIPImageProcessor.from_dict(config)
        except Exception as error:  # constructors raise whatever a wrong value runs into
            raise UserError(f"{where} makes no preprocessor ({shown(str(error))})") from error


@dataclass(frozen=True)
class Checkpoint:
    """All that is needed to load a model, found and checked.

    Args:
        layout: its configurations.
        parts: its networks by name.
        tokenizers: one for each text encoder: a folder, or the padding token of one with CLIP's vocabulary.
        loras: to be fused, in this order.
        safety_checker: if it was asked for.
    """

    layout: Layout
    parts: Mapping[str, Part]
    tokenizers: tuple[Path | str, ...]
    loras: tuple[LoraSettings, ...] = ()
    safety_checker: SafetyChecker | None = None

    def check(self) -> None:
        """See that every tensor that will be loaded has its place and shape, and every place its tensor.

        Raises:
            UserError: it is not so.
        """
        self.load_tokenizers()
        self.updates()
        if self.safety_checker is not None:
            self.safety_checker.check()

    @property
    def folder(self) -> Path:
        """Of a checkpoint in diffusers' format: the folder that holds its parts' folders."""
        return self.parts["unet"].files[0].parents[1]

    @property
    def weights_bytes(self) -> int:
        """Size of the files that hold its networks' weights."""
        files = {path for part in self.parts.values() for path in part.files}
        return sum(path.stat().st_size for path in files)

    def load_tokenizers(self) -> tuple[Any, ...]:
        """Its tokenizers, one for each text encoder.

        Raises:
            UserError: one cannot be loaded, or two do not give texts of one length.
        """
        names = zip(self.layout.tokenizers, self.layout.text_encoders, self.tokenizers, strict=True)
        loaded = tuple(
            load_tokenizer(source, self.layout.config(encoder), f"model.path: {name}")
            for name, encoder, source in names
        )
        lengths = [tokenizer.model_max_length for tokenizer in loaded]
        if len(set(lengths)) > 1:
            raise UserError(
                f"model.path: its tokenizers give texts of {lengths} tokens, which must be the same"
            )
        return loaded

    def updates(self) -> list[Update]:
        """What its LoRAs change, each update with the weight that it belongs to."""
        shapes = {name: part.tensors(part.empty(), headers_only=True) for name, part in self.parts.items()}
        return [update for one in self.loras for update in read_updates(one, self.layout, shapes)]
