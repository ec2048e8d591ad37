"""The tokenizers of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sega_bench.cell import shown
from sega_bench.errors import UserError
from sega_bench.sega.checkpoints.layout import Config


def load_tokenizer(folder: Path, encoder: Config, where: str) -> Any:
    """The tokenizer of one text encoder.

    Args:
        folder: where it is.
        encoder: configuration of the text encoder.
        where: begins an error message, and names the tokenizer.

    Raises:
        UserError: something is missing or damaged, or it does not belong to this text encoder.
    """
    tokenizer = _read(folder, where)
    if len(tokenizer) != encoder["vocab_size"]:
        raise UserError(
            f"{where} has {len(tokenizer)} tokens, but its text encoder knows {encoder['vocab_size']}: "
            "a file of the tokenizer is missing, or of another model"
        )
    length, longest = tokenizer.model_max_length, encoder["max_position_embeddings"]
    if type(length) is not int or not 2 < length <= longest:
        raise UserError(
            f"{where} gives texts of {shown(length)} tokens, but its text encoder reads {longest}: see "
            "model_max_length in tokenizer_config.json"
        )
    try:
        tokenizer("a text", padding="max_length", max_length=length, truncation=True)
    except Exception as error:  # it raises whatever a damaged file makes it run into
        raise _unreadable(where, error) from error
    return tokenizer


def _read(folder: Path, where: str) -> Any:
    from transformers import CLIPTokenizer

    files = {path.name for path in folder.glob("*")}
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= files:
        raise UserError(f"{where} has neither tokenizer.json nor vocab.json and merges.txt")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as above
        raise _unreadable(where, error) from error


def _unreadable(where: str, error: Exception) -> UserError:
    reason = shown(" ".join(str(error).split()))
    return UserError(f"{where} cannot be read ({type(error).__name__}: {reason})")
