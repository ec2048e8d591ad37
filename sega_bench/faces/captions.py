"""Random captions that are true of their drawing, with the attribute values that they claim.

The claims tell the scorer's loss for which other images of a batch a caption is true as well. About half of
the captions are bare phrases, because SEGA needs noise estimates for bare concepts.
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
"""The four concepts the model is trained for: attribute name to edit prompt."""


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
"""Probability that a bare phrase is an attribute's first text, which is the one in `CONCEPTS`."""
MENTION_RATES = {True: 0.55, False: 0.1}
"""Probability that a full caption mentions a present (True) or absent (False) attribute.

The first is well above the second, so that images without an edit rarely show an unmentioned attribute.
"""
_LETTERS = list("abcdefghijklmnopqrstuvwxyz")


def _phrases() -> dict[str, dict[str, int]]:
    """Every comma-separated phrase of the captions, and its claims."""
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
        """The claims as a row (len(LABELS),), with -9 for an attribute that the text does not mention."""
        return np.array([self.claims.get(name, -9) for name in LABELS], dtype=np.int8)


def caption(face: Face, rng: np.random.Generator) -> Caption:
    """A random true caption of a face: empty, a bare phrase or a full caption."""
    if rng.random() < EMPTY_RATE:
        return Caption("")
    return _bare(face, rng) if rng.random() < BARE_RATE else _full(face, rng)


def bare_phrase(name: str, rng: np.random.Generator) -> str:
    """A random phrase that claims the attribute `name`, often the concept's edit prompt."""
    return _one_of(PRESENT[name], rng, first=OWN_TEXT_RATE)


def nonsense(rng: np.random.Generator) -> str:
    """One to three words of random letters, which claim nothing."""
    words = ["".join(rng.choice(_LETTERS, size=rng.integers(3, 11))) for _ in range(rng.integers(1, 4))]
    return " ".join(words)


def is_true(claims_BL: npt.NDArray[np.int8], labels_NL: npt.NDArray[np.int8]) -> npt.NDArray[np.bool_]:
    """Whether each caption is true of each image, (B, N): all of its claims hold.

    Args:
        claims_BL: rows of `Caption.claimed`.
        labels_NL: rows of `Face.labels`.
    """
    unmentioned_BNL = claims_BL[:, None, :] == -9
    result: npt.NDArray[np.bool_] = (unmentioned_BNL | (claims_BL[:, None, :] == labels_NL[None])).all(-1)
    return result


def claims_of(text: str) -> dict[str, int] | None:
    """The claims of a text, by the names in `LABELS`.

    Returns:
        None if a comma-separated phrase of the text occurs in no caption, or if phrases contradict each
        other: the text's meaning is then unknown.
    """
    claims: dict[str, int] = {}
    for phrase in (part.strip().lower() for part in text.split(",")):
        for name, value in _PHRASES.get(phrase, {"": 0}).items():
            if not name or claims.setdefault(name, value) != value:
                return None
    return claims


def corpus(seed: int, count: int) -> list[str]:
    """The texts of `count` random captions, to train the tokenizer."""
    rng = np.random.default_rng([seed, 1])
    return [caption(face_of_seed(seed, i), rng).text for i in range(count)]


def _bare(face: Face, rng: np.random.Generator) -> Caption:
    """A single phrase; present attributes are mentioned more often than absent ones."""
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
    is_present = bool(getattr(face, name))
    texts = (PRESENT if is_present else ABSENT)[name]
    return Caption(_one_of(texts, rng, first), {name: int(is_present)})


def _one_of(phrases: tuple[str, ...], rng: np.random.Generator, first: float) -> str:
    return phrases[0] if rng.random() < first else phrases[rng.integers(len(phrases))]


def _color(face: Face, rng: np.random.Generator) -> Caption:
    candidates = [
        Caption(f"{face.hair} hair", {"hair": list(HAIR).index(face.hair)}),
        Caption(f"{face.background} background", {"background": list(BACKGROUND).index(face.background)}),
    ]
    if face.hat:
        color = list(HAT).index(face.hat_color)
        candidates.append(Caption(f"{face.hat_color} hat", {"hat": 1, "hat_color": color}))
    return candidates[rng.integers(len(candidates))]


def _subject(face: Face, rng: np.random.Generator) -> str:
    words = ("woman", "female") if face.woman else ("man", "male")
    return words[int(rng.random() < 0.15)]


def _full(face: Face, rng: np.random.Generator) -> Caption:
    """A template with woman, man or person, followed by up to four attributes in random order."""
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
