"""A byte-pair vocabulary of a few hundred tokens, in the format of transformers' `CLIPTokenizer`.

open_clip reads the same files: it resolves `hf_tokenizer_name` of a `local-dir:` model to that folder.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

CONTEXT = 32
MERGES = 260
_WORD = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]+")
START, END = "<|startoftext|>", "<|endoftext|>"

Pair = tuple[str, str]
Word = tuple[str, ...]


def train_merges(texts: Iterable[str], count: int = MERGES) -> list[Pair]:
    """Merges of the `count` most frequent byte pairs of the lower-case texts, greedily.

    Ties are resolved alphabetically, so that the result is deterministic.
    """
    words = Counter(word for text in texts for word in _WORD.findall(text.lower()))
    split: dict[Word, int] = {(*word[:-1], word[-1] + "</w>"): n for word, n in words.items()}
    merges: list[Pair] = []
    while len(merges) < count and (pairs := _count_pairs(split)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = {_join(word, best): n for word, n in split.items()}
    return merges


def vocabulary(merges: list[Pair]) -> dict[str, int]:
    """Token ids in CLIP's order: bytes, bytes at a word's end, merges, the two special tokens."""
    letters = list(bytes_to_unicode().values())
    tokens = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *("".join(pair) for pair in merges),
        START,
        END,
    ]
    return {token: index for index, token in enumerate(tokens)}


def make_tokenizer(merges: list[Pair]) -> CLIPTokenizer:
    """The tokenizer of pipeline and scorer; it pads with the end token, as in Stable Diffusion 1."""
    return CLIPTokenizer(vocab=vocabulary(merges), merges=merges, pad_token=END, model_max_length=CONTEXT)


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the files that `CLIPTokenizer.from_pretrained` and open_clip's `HFTokenizer` read."""
    tokenizer.save_pretrained(str(folder))


def _count_pairs(split: dict[Word, int]) -> Counter[Pair]:
    pairs: Counter[Pair] = Counter()
    for word, n in split.items():
        for pair in pairwise(word):
            pairs[pair] += n
    return pairs


def _join(word: Word, pair: Pair) -> Word:
    joined: list[str] = []
    for part in word:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return tuple(joined)
