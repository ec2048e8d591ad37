"""Load CLIP tokenizers, from a checkpoint's folder or from CLIP's own vocabulary."""

from __future__ import annotations

import gzip
import importlib.util
import json
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sega_bench.cell import abbreviated
from sega_bench.errors import UserError
from sega_bench.faces.tokenizer import vocabulary
from sega_bench.sega.checkpoints.layout import Config

_CLIP_MERGES = 49152 - 256 - 2
"""Number of merges that CLIP uses; OpenAI's file has more."""


def load_tokenizer(source: Path | str, encoder: Config, where: str) -> Any:
    """Load the tokenizer of one text encoder.

    Args:
        source: its folder; or the padding token, for CLIP's own vocabulary.
        encoder: configuration of the text encoder.
        where: start of an error message, which names the tokenizer.

    Raises:
        UserError: a file is missing or damaged, or the tokenizer does not fit the text encoder.
    """
    if isinstance(source, str):
        tokenizer = _clip_tokenizer(source, encoder["max_position_embeddings"])
    else:
        tokenizer = _read(source, where)
    if len(tokenizer) != encoder["vocab_size"]:
        raise UserError(
            f"{where} has {len(tokenizer)} tokens, but its text encoder knows {encoder['vocab_size']}: "
            "a file of the tokenizer is missing, or of another model"
        )
    length, longest = tokenizer.model_max_length, encoder["max_position_embeddings"]
    if type(length) is not int or not 2 < length <= longest:
        raise UserError(
            f"{where} gives texts of {abbreviated(length)} tokens, but its text encoder reads {longest}: see "
            "model_max_length in tokenizer_config.json"
        )
    try:
        tokenizer("a text", padding="max_length", max_length=length, truncation=True)
    except Exception as error:  # a damaged file can raise anything
        raise _unreadable(where, error) from error
    return tokenizer


def _read(folder: Path, where: str) -> Any:
    from transformers import CLIPTokenizer

    files = {path.name for path in folder.glob("*")}
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= files:
        raise UserError(f"{where} has neither tokenizer.json nor vocab.json and merges.txt")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise _unreadable(where, error) from error


def _unreadable(where: str, error: Exception) -> UserError:
    reason = abbreviated(" ".join(str(error).split()))
    return UserError(f"{where} cannot be read ({type(error).__name__}: {reason})")


@lru_cache(maxsize=4)
def _clip_tokenizer(pad_token: str, length: int) -> Any:
    """A tokenizer with the vocabulary of OpenAI's CLIP, from the byte pairs that open_clip ships."""
    from transformers import CLIPTokenizer

    spec = importlib.util.find_spec("open_clip")
    assert spec is not None
    assert spec.origin is not None
    packed = Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(packed.read_bytes()).decode().split("\n")[1 : 1 + _CLIP_MERGES]
    merges = [(first, second) for first, second in (line.split() for line in lines)]
    # transformers reads vocabularies only from files.
    with TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps(vocabulary(merges)), encoding="utf-8")
        Path(folder, "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder, pad_token=pad_token, model_max_length=length)
