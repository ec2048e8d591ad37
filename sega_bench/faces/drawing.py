"""Renderer of small faces with known attributes: the training data of the embedded model.

Coordinates are those of a 64x64 image, which is drawn four times larger and box-reduced. Features are large
and of high contrast on purpose: no score can see details that the autoencoder blurs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

SIZE = 64
OVERSAMPLING = 4

Color = tuple[int, int, int]
Point = tuple[float, float]

HAIR: dict[str, Color] = {
    "black": (44, 38, 46),
    "brown": (116, 70, 38),
    "blonde": (232, 184, 66),
    "red": (200, 76, 28),
    "gray": (166, 168, 178),
}
SKIN: tuple[Color, ...] = ((255, 222, 196), (246, 202, 164), (228, 176, 132), (196, 142, 100), (158, 108, 74))
BACKGROUND: dict[str, Color] = {
    "blue": (96, 150, 228),
    "green": (120, 190, 120),
    "yellow": (250, 240, 168),
    "pink": (246, 184, 206),
    "purple": (158, 128, 206),
    "teal": (96, 196, 196),
    "white": (244, 244, 244),
}
HAT: dict[str, Color] = {
    "red": (206, 44, 52),
    "blue": (40, 70, 178),
    "green": (30, 120, 66),
    "black": (34, 34, 40),
}
SHIRT: tuple[Color, ...] = ((236, 236, 236), (70, 92, 142), (150, 60, 66), (84, 122, 92), (70, 70, 78))

BINARY = ("woman", "smile", "glasses", "curls", "beard", "hat", "long_hair")
"""The yes/no attributes, in the order of `Face.labels`."""
LABELS = (*BINARY, "hair", "background", "hat_color")
"""All attributes in captions: yes/no ones, then indices into `HAIR`, `BACKGROUND` and `HAT` (-1: no hat)."""

RATES = {"smile": 0.4, "glasses": 0.3, "curls": 0.35, "hat": 0.15}
BEARD_RATES = {"woman": 0.2, "man": 0.45}
LONG_HAIR_RATES = {"woman": 0.85, "man": 0.08}


@dataclass(frozen=True)
class Jitter:
    """Random variation between drawings of the same attributes, which no caption mentions."""

    dx: float = 0.0
    dy: float = 0.0
    scale: float = 1.0
    skin: int = 1
    shirt: int = 0
    tints: tuple[Color, Color, Color, Color] = ((0, 0, 0),) * 4  # added to hair, skin, background, hat


@dataclass(frozen=True)
class Face:
    """The attributes of one drawing; `render` turns them into pixels."""

    woman: bool = True
    smile: bool = False
    glasses: bool = False
    curls: bool = False
    beard: bool = False
    hat: bool = False
    long_hair: bool = True
    hair: str = "brown"
    background: str = "blue"
    hat_color: str = "red"
    jitter: Jitter = Jitter()

    def labels(self) -> tuple[int, ...]:
        """The attributes as integers, in the order of `LABELS`."""
        bits = [int(getattr(self, name)) for name in BINARY]
        hat = list(HAT).index(self.hat_color) if self.hat else -1
        return (*bits, list(HAIR).index(self.hair), list(BACKGROUND).index(self.background), hat)


def sample_face(rng: np.random.Generator) -> Face:
    """Sample a random face.

    Only long hair and beard depend on woman/man. All other attributes are independent, so that a model
    cannot learn correlations between them.
    """
    woman = bool(rng.random() < 0.5)
    who = "woman" if woman else "man"
    rates = {**RATES, "beard": BEARD_RATES[who], "long_hair": LONG_HAIR_RATES[who]}
    bits = {name: bool(rng.random() < rate) for name, rate in rates.items()}
    names = {
        "hair": str(rng.choice(list(HAIR))),
        "background": str(rng.choice(list(BACKGROUND))),
        "hat_color": str(rng.choice(list(HAT))),
    }
    return Face(woman=woman, jitter=_sample_jitter(rng), **bits, **names)  # type: ignore[arg-type]


def face_of_seed(seed: int, index: int) -> Face:
    """Face number `index` of the infinite sequence of `seed`."""
    return sample_face(np.random.default_rng([seed, index]))


def _sample_jitter(rng: np.random.Generator) -> Jitter:
    tints = rng.integers(-9, 10, size=(4, 3)).tolist()
    return Jitter(
        dx=float(rng.uniform(-1.5, 1.5)),
        dy=float(rng.uniform(-1.2, 1.2)),
        scale=float(rng.uniform(1.02, 1.1)),
        skin=int(rng.integers(len(SKIN))),
        shirt=int(rng.integers(len(SHIRT))),
        tints=tuple((r, g, b) for r, g, b in tints),  # type: ignore[arg-type]
    )


def render(face: Face) -> npt.NDArray[np.uint8]:
    """Render a face, back to front, as RGB bytes (SIZE, SIZE, 3)."""
    hair, skin, background, hat = _colors(face)
    image = Image.new("RGB", (SIZE * OVERSAMPLING, SIZE * OVERSAMPLING), background)
    pen = _Pen(image, face.jitter)
    if face.long_hair:
        _long_hair(pen, hair, face.curls)
    _body(pen, skin, SHIRT[face.jitter.shirt])
    _head(pen, skin, face)
    _crown_hair(pen, hair, face)
    _eyes(pen, hair, face.woman)
    pen.line([(32, 32.5), (30.8, 37), (32.8, 37.2)], _shade(skin, 0.72), 0.9)
    if face.beard:
        _beard(pen, hair, skin)
    (_smile if face.smile else _neutral_mouth)(pen, skin, face.woman)
    if face.glasses:
        _glasses(pen)
    if face.hat:
        _hat(pen, hat)
    return np.asarray(image.reduce(OVERSAMPLING))


def _colors(face: Face) -> tuple[Color, Color, Color, Color]:
    plain = (HAIR[face.hair], SKIN[face.jitter.skin], BACKGROUND[face.background], HAT[face.hat_color])
    hair, skin, background, hat = (_tinted(c, t) for c, t in zip(plain, face.jitter.tints, strict=True))
    return hair, skin, background, hat


def _tinted(color: Color, tint: Color) -> Color:
    r, g, b = (min(255, max(0, c + t)) for c, t in zip(color, tint, strict=True))
    return r, g, b


def _shade(color: Color, factor: float) -> Color:
    r, g, b = (min(255, round(c * factor)) for c in color)
    return r, g, b


class _Pen:
    """Draws on the oversampled image in 64-pixel coordinates, shifted and scaled by a jitter."""

    def __init__(self, image: Image.Image, jitter: Jitter) -> None:
        self._draw = ImageDraw.Draw(image, "RGBA")
        self._zoom = jitter.scale * OVERSAMPLING
        self._x0 = (SIZE / 2 + jitter.dx) * OVERSAMPLING - SIZE / 2 * self._zoom
        self._y0 = (SIZE / 2 + jitter.dy) * OVERSAMPLING - SIZE / 2 * self._zoom

    def _box(self, x: float, y: float, rx: float, ry: float) -> tuple[float, float, float, float]:
        left, top = self._at((x - rx, y - ry))
        right, bottom = self._at((x + rx, y + ry))
        return left, top, right, bottom

    def _at(self, point: Point) -> Point:
        return self._x0 + point[0] * self._zoom, self._y0 + point[1] * self._zoom

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: tuple[int, ...]) -> None:
        self._draw.ellipse(self._box(x, y, rx, ry), fill=fill)

    def ring(self, x: float, y: float, rx: float, ry: float, color: Color, width: float) -> None:
        self._draw.ellipse(self._box(x, y, rx, ry), outline=color, width=round(width * self._zoom))

    def chord(self, x: float, y: float, rx: float, ry: float, start: float, end: float, fill: Color) -> None:
        self._draw.chord(self._box(x, y, rx, ry), start, end, fill=fill)

    def arc(
        self,
        x: float,
        y: float,
        r: float,
        start: float,
        end: float,
        color: Color,
        width: float,
        squash: float = 1.0,
    ) -> None:
        self._draw.arc(
            self._box(x, y, r, r * squash), start, end, fill=color, width=round(width * self._zoom)
        )

    def line(self, points: Sequence[Point], color: Color, width: float) -> None:
        self._draw.line(
            [self._at(p) for p in points], fill=color, width=round(width * self._zoom), joint="curve"
        )

    def polygon(self, points: Sequence[Point], fill: Color) -> None:
        self._draw.polygon([self._at(p) for p in points], fill=fill)

    def curl(self, x: float, y: float, r: float, hair: Color) -> None:
        """One curl: a disc with a dark spiral and a light arc.

        Its mean colour is the hair's, so that curls do not look like another hair colour.
        """
        self.ellipse(x, y, r, r, hair)
        self.arc(x, y, r * 0.98, 20, 200, _shade(hair, 0.58), 0.9)
        self.arc(x, y, r * 0.52, 170, 430, _shade(hair, 0.66), 0.8)
        self.arc(x, y, r * 0.85, 200, 300, _shade(hair, 1.4), 0.8)


def _long_hair(pen: _Pen, hair: Color, curls: bool) -> None:
    """Hair on both sides of the face, with a gap at the neck so that a beard never touches it."""
    for side in (-1, 1):
        if curls:
            for row, y in enumerate((24.0, 30.5, 37.0, 43.5, 50.0)):
                pen.curl(32 + side * (22.2 - row % 2 * 1.4), y, 4.6, hair)
            for y in (27.0, 33.5, 40.0, 46.5, 52.5):
                pen.curl(32 + side * 17.2, y, 4.1, hair)
        else:
            near, far = 32 + side * 12.6, 32 + side * 19.4
            pen.polygon([(32, 14), (far, 22), (far, 56), (near, 56), (near, 30)], hair)
            for x, factor in ((14.6, 0.62), (16.4, 1.35), (18.2, 0.62)):
                pen.line([(32 + side * x, 24), (32 + side * x, 56)], _shade(hair, factor), 0.6)


def _body(pen: _Pen, skin: Color, shirt: Color) -> None:
    pen.ellipse(32, 68, 25, 13.5, shirt)
    pen.polygon([(26.5, 42), (37.5, 42), (37.5, 56), (32, 59), (26.5, 56)], _shade(skin, 0.84))


def _head(pen: _Pen, skin: Color, face: Face) -> None:
    width = 13.4 if face.woman else 14.4
    if not face.long_hair:
        for side in (-1, 1):
            pen.ellipse(32 + side * (width + 0.6), 32.5, 2.4, 3.4, _shade(skin, 0.9))
    pen.ellipse(32, 30.5, width, 18, skin)
    if not face.woman:
        pen.ellipse(32, 37.5, 12.6, 11, skin)


def _crown_hair(pen: _Pen, hair: Color, face: Face) -> None:
    """Hair on top of the head and over the forehead; with a hat, only the part below its brim."""
    if face.curls:
        for angle in range(168, 380, 17):
            x, y = 32 + 17.2 * math.cos(math.radians(angle)), 25 + 15.4 * math.sin(math.radians(angle))
            if not (face.hat and y < 14):
                pen.curl(x, y, 4.5, hair)
        for x in (21.5, 26.7, 32.0, 37.3, 42.5):
            pen.curl(x, 15.8 + abs(x - 32) * 0.22, 3.7, hair)
        return
    width = 14.6 if face.woman else 15.4
    pen.chord(32, 26, width, 17, 203, 337, hair)
    for side in (-1, 1):
        edge = 32 + side * width
        bottom = 30 if face.long_hair else 28.5
        pen.polygon([(edge, 22), (edge, bottom), (edge - side * 2.6, bottom), (edge - side * 3.4, 18)], hair)
    for x, factor in ((23.5, 0.62), (27.5, 1.35), (32.0, 0.62), (36.5, 1.35), (40.5, 0.62)):
        pen.line([(32 + (x - 32) * 0.75, 11.2), (x, 18.6)], _shade(hair, factor), 0.6)


def _eyes(pen: _Pen, hair: Color, woman: bool) -> None:
    brow = _shade(hair, 0.6)
    for side in (-1, 1):
        x = 32 + side * 6.2
        pen.ellipse(x, 30, 2.9, 2.2, (252, 252, 252))
        pen.ellipse(x, 30.1, 1.6, 1.8, (38, 34, 44))
        if woman:
            pen.arc(x, 30.6, 3.5, 195, 345, (30, 22, 30), 1.1, squash=0.95)
            pen.line([(x + side * 2.8, 29.4), (x + side * 4.4, 28)], (30, 22, 30), 0.9)
        pen.line([(x - 3, 25.6), (x, 24.9), (x + 3, 25.6)], brow, 0.8 if woman else 1.7)


def _beard(pen: _Pen, hair: Color, skin: Color) -> None:
    """A full beard and a moustache, separated from the hair by skin, the neck and a dark edge."""
    dark = _shade(hair, 0.78)
    pen.chord(32, 38.2, 10.9, 15.4, -8, 188, _shade(hair, 0.45))
    pen.chord(32, 38.2, 10.0, 14.4, -8, 188, dark)
    pen.ellipse(32, 36.2, 8.0, 4.4, skin)
    pen.line([(32, 32.5), (30.8, 37), (32.8, 37.2)], _shade(skin, 0.72), 0.9)
    pen.polygon([(24.6, 43), (27, 39), (31, 37.9), (33, 37.9), (37, 39), (39.4, 43), (32, 41.6)], dark)
    for x, top in ((25.5, 44.5), (28.7, 47.5), (32.0, 48.5), (35.3, 47.5), (38.5, 44.5)):
        pen.line([(x, top), (32 + (x - 32) * 0.85, top + 3)], _shade(hair, 0.45), 0.7)


def _neutral_mouth(pen: _Pen, skin: Color, woman: bool) -> None:
    if woman:
        pen.ellipse(32, 42.8, 3.9, 1.7, (196, 54, 76))
        pen.line([(28.3, 42.7), (35.7, 42.7)], (120, 26, 44), 0.7)
    else:
        pen.line([(27.8, 42.8), (36.2, 42.8)], (132, 58, 54), 1.5)


def _smile(pen: _Pen, skin: Color, woman: bool) -> None:
    lips = (196, 54, 76) if woman else (150, 66, 60)
    pen.chord(32, 40.4, 7.6, 6.8, -4, 184, lips)
    pen.chord(32, 40.6, 6.6, 5.4, 0, 180, (112, 22, 34))
    pen.chord(32, 40.6, 6.6, 3.7, 0, 180, (255, 255, 255))


def _glasses(pen: _Pen) -> None:
    rim = (22, 22, 30)
    for side in (-1, 1):
        x = 32 + side * 6.4
        pen.ellipse(x, 30.2, 5.0, 4.8, (225, 240, 255, 80))
        pen.ring(x, 30.2, 5.5, 5.2, rim, 1.4)
        pen.line([(x + side * 5.2, 29.6), (32 + side * 15.2, 28.6)], rim, 1.3)
    pen.arc(32, 30.2, 1.6, 180, 360, rim, 1.3)


def _hat(pen: _Pen, color: Color) -> None:
    pen.chord(32, 17, 15.6, 15.5, 180, 360, color)
    pen.polygon([(16.4, 13.4), (47.6, 13.4), (47.8, 17), (16.2, 17)], _shade(color, 0.6))
    pen.ellipse(32, 17.6, 22, 2.7, color)
