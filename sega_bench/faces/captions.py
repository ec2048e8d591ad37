"""Captions that are always true of their drawing, with the attribute values they claim.

A caption carries its claims, so that the scorer's loss can ask of every picture in a batch whether the
caption happens to be true of it as well. About a half of them are bare phrases: SEGA needs the noise
estimate of a bare concept.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .drawing import BACKGROUND, HAIR, HAT, LABELS, Face, face_of_seed

CONCEPTS: dict[str, str] = {
    "smile": "smiling, smile",
    "glasses": "glasses, wearing glasses",
    "curls": "curls, wavy hair, curly hair",
    "beard": "beard, full beard, mustache",
}
"""The four concepts the model is made for: attribute and edit prompt, word for word."""

PRESENT: dict[str, tuple[str, ...]] = {
    "smile": (CONCEPTS["smile"], "smile", "smiling", "a big smile", "happy, smiling", "a smiling face"),
    "glasses": (
        CONCEPTS["glasses"],
        "glasses",
        "wearing glasses",
        "with glasses",
        "round glasses",
        "eyeglasses",
    ),
    "curls": (CONCEPTS["curls"], "curls", "curly hair", "wavy hair", "with curly hair", "curly"),
    "beard": (CONCEPTS["beard"], "beard", "full beard", "a beard and a mustache", "bearded", "with a beard"),
    "hat": ("hat, wearing a hat", "hat", "wearing a hat", "with a hat"),
    "long_hair": ("long hair", "with long hair"),
}
ABSENT: dict[str, tuple[str, ...]] = {
    "smile": ("not smiling", "neutral expression", "serious"),
    "glasses": ("no glasses", "without glasses"),
    "curls": ("straight hair", "with straight hair"),
    "beard": ("clean shaven", "no beard"),
    "hat": ("no hat", "without a hat"),
    "long_hair": ("short hair", "with short hair"),
}
TEMPLATES: tuple[str, ...] = (
    "a photo of the face of a {}",
    "a photo of a {}",
    "a portrait of a {}",
    "a picture of the face of a {}",
    "the face of a {}",
    "a close-up photo of a {}",
    "an image of a {}",
    "a drawing of a {}",
    "a painting of the face of a {}",
    "a portrait photo of a {}",
    "a headshot of a {}",
    "a {}",
)

EMPTY_RATE = 0.12
BARE_RATE = 0.5
OWN_TEXT_RATE = 0.45
"""How often a bare phrase is an attribute's first text: that of `CONCEPTS`, word for word."""
MENTION_RATES = {True: 0.55, False: 0.1}
"""How often a full caption mentions an attribute that is there or not: the first keeps unedited rates low."""
_LETTERS = list("abcdefghijklmnopqrstuvwxyz")


def _phrases() -> dict[str, dict[str, int]]:
    """Every phrase of a caption that stands between commas, and what it claims."""
    known = {"woman": {"woman": 1}, "female": {"woman": 1}, "man": {"woman": 0}, "male": {"woman": 0}}
    for value, texts_of in enumerate((ABSENT, PRESENT)):
        for name, texts in texts_of.items():
            known |= {part.strip(): {name: value} for text in texts for part in text.split(",")}
    known |= {f"{color} hair": {"hair": index} for index, color in enumerate(HAIR)}
    known |= {f"{color} background": {"background": index} for index, color in enumerate(BACKGROUND)}
    return known | {f"{color} hat": {"hat": 1, "hat_color": index} for index, color in enumerate(HAT)}


_PHRASES = _phrases()


@dataclass(frozen=True)
class Caption:
    """A text and the attribute values it claims, by the names in `LABELS`."""

    text: str
    claims: dict[str, int] = field(default_factory=dict)

    def claimed(self) -> npt.NDArray[np.int8]:
        """The claims as a row (len(LABELS),), with -9 where the text says nothing."""
        return np.array([self.claims.get(name, -9) for name in LABELS], dtype=np.int8)


def caption(face: Face, rng: np.random.Generator) -> Caption:
    """A random caption of a face: empty, a bare phrase or a full sentence."""
    if rng.random() < EMPTY_RATE:
        return Caption("")
    return _bare(face, rng) if rng.random() < BARE_RATE else _full(face, rng)


def bare_phrase(name: str, rng: np.random.Generator) -> str:
    """A phrase that says that a face has the attribute `name`, often the concept's own text."""
    return _one_of(PRESENT[name], rng, first=OWN_TEXT_RATE)


def nonsense(rng: np.random.Generator) -> str:
    """One to three words of random letters: they say nothing, so they are true of every picture."""
    words = ["".join(rng.choice(_LETTERS, size=rng.integers(3, 11))) for _ in range(rng.integers(1, 4))]
    return " ".join(words)


def is_true(claims_BL: npt.NDArray[np.int8], labels_NL: npt.NDArray[np.int8]) -> npt.NDArray[np.bool_]:
    """Which caption is true of which picture, (B, N): all that it claims holds."""
    silent_BNL = claims_BL[:, None, :] == -9
    result: npt.NDArray[np.bool_] = (silent_BNL | (claims_BL[:, None, :] == labels_NL[None])).all(-1)
    return result


def claims_of(text: str) -> dict[str, int] | None:
    """What a caption's phrases claim: attributes, by the names in `LABELS`, and their values.

    None for a text that is not wholly made of phrases (between commas) of which the captions are made, or
    that contradicts itself: what it means to a picture is then not known.
    """
    claims: dict[str, int] = {}
    for phrase in (part.strip().lower() for part in text.split(",")):
        for name, value in _PHRASES.get(phrase, {"": 0}).items():
            if not name or claims.setdefault(name, value) != value:
                return None
    return claims


def corpus(seed: int, count: int) -> list[str]:
    """The texts of `count` captions, for the tokenizer."""
    rng = np.random.default_rng([seed, 1])
    return [caption(face_of_seed(seed, i), rng).text for i in range(count)]


def _bare(face: Face, rng: np.random.Generator) -> Caption:
    """A phrase by itself: what is there more often than what is not, each concept's own text most often."""
    present = [name for name in PRESENT if getattr(face, name)]
    choice = rng.random()
    if present and choice < 0.7:
        return _phrase(face, present[rng.integers(len(present))], rng, first=OWN_TEXT_RATE)
    if choice < 0.85:
        return _color(face, rng)
    if choice < 0.93:
        return Caption(_subject(face, rng), {"woman": int(face.woman)})
    names = list(ABSENT)
    return _phrase(face, names[rng.integers(len(names))], rng, first=OWN_TEXT_RATE)


def _phrase(face: Face, name: str, rng: np.random.Generator, first: float) -> Caption:
    here = bool(getattr(face, name))
    return Caption(_one_of((PRESENT if here else ABSENT)[name], rng, first), {name: int(here)})


def _one_of(phrases: tuple[str, ...], rng: np.random.Generator, first: float) -> str:
    return phrases[0] if rng.random() < first else phrases[rng.integers(len(phrases))]


def _color(face: Face, rng: np.random.Generator) -> Caption:
    kinds = [
        Caption(f"{face.hair} hair", {"hair": list(HAIR).index(face.hair)}),
        Caption(f"{face.background} background", {"background": list(BACKGROUND).index(face.background)}),
    ]
    if face.hat:
        color = list(HAT).index(face.hat_color)
        kinds.append(Caption(f"{face.hat_color} hat", {"hat": 1, "hat_color": color}))
    return kinds[rng.integers(len(kinds))]


def _subject(face: Face, rng: np.random.Generator) -> str:
    words = ("woman", "female") if face.woman else ("man", "male")
    return words[int(rng.random() < 0.15)]


def _full(face: Face, rng: np.random.Generator) -> Caption:
    """A template with woman, man or person, and up to four attributes in random order."""
    parts = [
        _phrase(face, name, rng, first=0.1)
        for name in PRESENT
        if rng.random() < MENTION_RATES[getattr(face, name)]
    ]
    parts += [_color(face, rng)] if rng.random() < 0.3 else []
    order = rng.permutation(len(parts))[: rng.integers(2, 5)]
    person = rng.random() < 0.12
    subject = "person" if person else ("woman" if face.woman else "man")
    claims = {} if person else {"woman": int(face.woman)}
    texts = [TEMPLATES[rng.choice(len(TEMPLATES), p=_template_weights())].format(subject)]
    for index in order:
        texts.append(parts[index].text)
        claims |= parts[index].claims
    return Caption(", ".join(texts), claims)


def _template_weights() -> npt.NDArray[np.float64]:
    weights = np.ones(len(TEMPLATES))
    weights[0] = 4.0
    normal: npt.NDArray[np.float64] = weights / weights.sum()
    return normal
