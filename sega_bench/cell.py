"""Cells: a cell is one point of a sweep and contains exactly the settings that determine one image.

Settings have the names of diffusers' keyword arguments, so a cell can be pasted into a diffusers call.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

KEY_VERSION = 1
"""Part of every key. Raise it when the same settings yield a different image."""

_MAX_SCALE = 1_000_000
"""Upper bound of scales and weights: values far above it overflow in the networks."""

_MAX_SIDE = 16_384
"""Pixels."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One concept, with how strongly, where and when it acts.

    Args:
        concept: the text to steer towards (diffusers: ``editing_prompt``).
        edit_guidance_scale: strength of the direction, >= 0.
        edit_threshold: quantile in [0, 1] of the direction's magnitude; elements below it are set to zero.
        edit_warmup_steps: first step, an index into ``scheduler.timesteps``, at which the edit acts.
        edit_cooldown_steps: first step at which it no longer acts; None: it acts until the last.
        edit_weights: weight among the cell's concepts, >= 0.
        reverse_editing_direction: steer away from the concept instead of towards it.

    Raises:
        ValueError: a value is out of range; the message begins with the setting's name.
    """

    concept: str
    edit_guidance_scale: float = 5.0
    edit_threshold: float = 0.9
    edit_warmup_steps: int = 10
    edit_cooldown_steps: int | None = None
    edit_weights: float = 1.0
    reverse_editing_direction: bool = False

    def __post_init__(self) -> None:
        _text(self, "concept")
        _real(self, "edit_guidance_scale", hint="use reverse_editing_direction to steer away")
        _real(self, "edit_threshold", high=1)
        _integer(self, "edit_warmup_steps", low=0)
        if self.edit_cooldown_steps is not None:
            _integer(self, "edit_cooldown_steps", low=0)
        _real(self, "edit_weights", hint="use reverse_editing_direction to steer away")
        _boolean(self, "reverse_editing_direction")

    @property
    def acts(self) -> bool:
        """Whether the edit changes the image at any step."""
        return self.edit_guidance_scale != 0.0 and self.edit_weights != 0.0

    def is_live(self, step: int) -> bool:
        """Whether the edit is past its warm-up at a step and has not cooled down."""
        cooldown = self.edit_cooldown_steps
        return self.edit_warmup_steps <= step and (cooldown is None or step < cooldown)


EDIT_SETTINGS: tuple[str, ...] = tuple(f.name for f in fields(Edit) if f.name != "concept")
"""The per-concept settings."""

_ALWAYS_READ = ("edit_warmup_steps", "edit_cooldown_steps", "reverse_editing_direction")
READS: dict[str, tuple[str, ...]] = {
    "sega": (*EDIT_SETTINGS, "edit_momentum_scale", "edit_mom_beta"),
    "composable": ("edit_guidance_scale", "edit_weights", *_ALWAYS_READ),
    "prompt": _ALWAYS_READ,
    "negative": _ALWAYS_READ,
}
"""The edit settings that each method uses. Cells that differ only in an unused setting are equal."""

TEXT_METHODS = ("prompt", "negative")
"""The methods that edit the model's prompts and leave its guidance unchanged."""

_NEUTRAL = {"edit_guidance_scale": 1.0, "edit_threshold": 0.0, "edit_weights": 1.0}
"""Values that replace the settings which a method does not use."""


@dataclass(frozen=True)
class Cell:
    """Everything that determines one image.

    Args:
        prompt: the text of the image.
        seed: of the cell's own generator, which draws its latents and then its step noise.
        edits: the concepts applied together; empty for an unedited image.
        negative_prompt: the text of the unconditional estimate.
        scheduler: diffusers' class name.
        scheduler_config: canonical JSON of the scheduler's configuration (see :func:`canonical_json`).
        num_inference_steps, guidance_scale, eta: as in diffusers.
        height, width: of the image in pixels.
        edit_momentum_scale, edit_mom_beta: momentum of the whole edit, shared by its concepts; 0 if unused.
        model: ``name@hash``; only the hash enters the key, so that a model may be renamed.
        dtype: precision of the networks.
        replay: a prompt whose edit guidance, computed step by step, is applied to ``prompt``; None, or the
            prompt itself, is the usual edit. See :meth:`source`.
        method: how the concepts steer. ``sega``: semantic guidance (Brack et al. 2023). ``composable``: the
            sum of guidances of Composable Diffusion (Liu et al. 2022), scale times weight for each warm
            concept, without threshold or momentum. ``prompt``: the concepts are appended to the prompt;
            ``negative``: to the negative prompt. See :meth:`reads`.

    Raises:
        ValueError: a value is out of range; the message begins with the setting's name.
    """

    prompt: str
    seed: int
    edits: tuple[Edit, ...] = ()
    negative_prompt: str = ""
    scheduler: str = "DDIMScheduler"
    scheduler_config: str = "{}"
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    eta: float = 0.0
    height: int = 512
    width: int = 512
    edit_momentum_scale: float = 0.1
    edit_mom_beta: float = 0.4
    model: str = ""
    dtype: str = "float32"
    replay: str | None = None
    method: str = "sega"

    def __post_init__(self) -> None:
        for name in ("prompt", "negative_prompt"):
            _text(self, name)
        self._check_method()
        self._check_replay()
        _integer(self, "seed", low=0, high=2**63 - 1)
        _integer(self, "num_inference_steps", low=1)
        _real(self, "guidance_scale")
        _real(self, "eta", high=1)
        for name in ("height", "width"):
            _integer(self, name, low=8, high=_MAX_SIDE)
        _real(self, "edit_momentum_scale")
        _real(self, "edit_mom_beta", high=1)
        if not self.edits or self.method != "sega":  # unused momentum must not distinguish equal cells
            _set(self, "edit_momentum_scale", 0.0)
            _set(self, "edit_mom_beta", 0.0)
        if self.edits and self.method != "prompt" and self.guidance_scale <= 1.0:
            method = "SEGA" if self.method == "sega" else f"method={self.method}"
            raise ValueError(
                f"guidance_scale is {self.guidance_scale}, but {method} needs classifier-free guidance: "
                "use a value above 1, or no concepts"
            )

    def _check_method(self) -> None:
        check_method(self.method)
        if not self.edits:
            _set(self, "method", "sega")
            return
        is_reversed = [edit.reverse_editing_direction for edit in self.edits]
        if self.method == "prompt" and any(is_reversed):
            raise ValueError(
                "method is 'prompt', but what is appended to the prompt is added: for a concept with "
                "reverse_editing_direction use negative, composable or sega"
            )
        if self.method == "negative" and not all(is_reversed):
            raise ValueError(
                "method is 'negative', but what a negative prompt names is removed: give the concept "
                "reverse_editing_direction=true, or use prompt, composable or sega"
            )
        unread = {name: value for name, value in _NEUTRAL.items() if name not in READS[self.method]}
        if unread:
            _set(self, "edits", tuple(replace(edit, **unread) for edit in self.edits))  # type: ignore[arg-type]

    def _check_replay(self) -> None:
        if self.replay is None:
            return
        _text(self, "replay")
        if not self.edits:
            raise ValueError(
                f"replay is {abbreviated(self.replay)}, but there is no edit to replay: "
                "give concepts, or no replay"
            )
        if self.method in TEXT_METHODS:
            raise ValueError(
                f"replay is {abbreviated(self.replay)}, but method={self.method} has no guidance to replay: "
                "use sega or composable"
            )
        if self.replay == self.prompt:
            _set(self, "replay", None)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:  # cached because planning and scheduling look cells up in sets and dicts
        return hash(tuple(getattr(self, name) for name in _FIELDS))

    def __getstate__(self) -> dict[str, Any]:
        """The fields without cached values: hashes of strings differ between processes."""
        return {name: getattr(self, name) for name in _FIELDS}

    @cached_property
    def key(self) -> str:
        """16 hex digits that identify the cell's image in the store, equal on every machine."""
        return hashlib.sha256(canonical_json(self._identity()).encode()).hexdigest()[:16]

    def _identity(self) -> dict[str, Any]:
        identity: dict[str, Any] = {name: getattr(self, name) for name in _FIELDS}
        identity["edits"] = [
            {name: getattr(edit, name) for name in ("concept", *EDIT_SETTINGS)} for edit in self.edits
        ]
        identity["model"] = self.model.rpartition("@")[2]
        for name, unused in (("replay", None), ("method", "sega")):
            if identity[name] == unused:  # keys from before this field existed stay valid
                del identity[name]
        identity["key_version"] = KEY_VERSION
        return identity

    def reference(self) -> Cell:
        """The same cell without concepts: the edit is scored against it, and shares its first steps."""
        return self if self.is_reference else self._reference

    @cached_property
    def _reference(self) -> Cell:
        return _unedited(*(getattr(self, name) for name in _UNEDITED))

    @property
    def is_reference(self) -> bool:
        """Whether the cell has no concepts."""
        return not self.edits

    def source(self) -> Cell:
        """The cell whose guidance this one uses: itself, or the same edit of the replayed prompt."""
        return self if self.replay is None else replace(self, prompt=self.replay, replay=None)

    def reads(self, step: int) -> tuple[str, str]:
        """The negative prompt and the prompt of a step, which is an index into the timesteps.

        These are the cell's own, except that the methods ``negative`` and ``prompt`` append to one of them
        each concept that is live at the step, separated by commas. Without warm-up and cool-down the text is
        the same at all steps.
        """
        if self.method not in TEXT_METHODS:
            return self.negative_prompt, self.prompt
        live = [edit.concept for edit in self.edits if edit.is_live(step)]
        texts = {"negative": self.negative_prompt, "prompt": self.prompt}
        texts[self.method] = ", ".join(text for text in (texts[self.method], *live) if text)
        return texts["negative"], texts["prompt"]

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts to encode for this cell: negative prompt, prompt, concepts, replayed prompt.

        For a method that appends concepts to a prompt: each distinct text of any step.
        """
        if self.method in TEXT_METHODS:
            steps = {edit.edit_warmup_steps for edit in self.edits}
            steps |= {edit.edit_cooldown_steps or 0 for edit in self.edits}
            # The text changes only at these steps.
            combined = [text for step in sorted(steps) for text in self.reads(step)]
            return tuple(dict.fromkeys((self.negative_prompt, self.prompt, *combined)))
        replayed = () if self.replay is None else (self.replay,)
        return (self.negative_prompt, self.prompt, *(edit.concept for edit in self.edits), *replayed)


_FIELDS = tuple(field.name for field in fields(Cell))
_EDITED = ("edits", "edit_momentum_scale", "edit_mom_beta", "replay", "method")
_UNEDITED = tuple(name for name in _FIELDS if name not in _EDITED)


@lru_cache(maxsize=4096)
def _unedited(*values: Any) -> Cell:
    """The reference with these values, as one object that all its edits share to save memory."""
    return Cell(**dict(zip(_UNEDITED, values, strict=True)))


def broadcast(value: Any, count: int) -> list[Any]:
    """A setting's values for ``count`` concepts: a list as it is, whatever its length, else copies of one."""
    return value if isinstance(value, list) else [value] * count


def collapse(value: Any) -> Any:
    """The inverse of :func:`broadcast`: the common item of a list whose items are equal, else the value."""
    if isinstance(value, list) and value and all(item == value[0] for item in value):
        return value[0]
    return value


def per_concept(value: Any, concepts: Sequence[str], name: str) -> list[Any]:
    """Broadcast a setting to a cell's concepts and check the length of a list.

    Raises:
        ValueError: a list has another length; the message begins with ``name``.
    """
    values = broadcast(value, len(concepts))
    if concepts and len(values) != len(concepts):
        texts = ", ".join(repr(concept) for concept in concepts)
        raise ValueError(
            f"{name} gives {len(values)} values, but the cell has {len(concepts)} concepts ({texts}): "
            "give one value for each concept, or a single one for all"
        )
    return values[: len(concepts)]  # without concepts a list is unused, not wrong


def check_method(value: object) -> None:
    """Check that a value is the name of a method.

    Raises:
        ValueError: it is not; the message begins with ``method``.
    """
    if not isinstance(value, str) or value not in READS:
        raise ValueError(f"method is {abbreviated(value)}, but it must be one of {', '.join(READS)}")


def canonical_json(value: object) -> str:
    """The one JSON text of a value that keys are computed from: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def abbreviated(value: object) -> str:
    """A value's repr for an error message: one line, cut where it is long."""
    return reprlib.repr(value)


# A key is the hash of a JSON text, where 3 and 3.0 differ: the checks below convert to the field's type.


def _set(owner: object, name: str, value: object) -> None:
    object.__setattr__(owner, name, value)


def _real(owner: object, name: str, *, high: int = _MAX_SCALE, hint: str = "") -> None:
    value = getattr(owner, name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {abbreviated(value)}, but it must be a number")
    if not 0 <= value <= high:  # NaN fails every comparison
        hint = f"; {hint}" if hint and value < 0 else ""
        raise ValueError(f"{name} is {abbreviated(value)}, but it must be between 0 and {high:,}{hint}")
    _set(owner, name, float(value) + 0.0)  # + 0.0 turns -0.0, whose JSON differs, into 0.0


def _integer(owner: object, name: str, *, low: int, high: int | None = None) -> None:
    value = getattr(owner, name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is {abbreviated(value)}, but it must be a whole number")
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{name} is {abbreviated(value)}, but it must be {bounds}")
    _set(owner, name, value)


def _boolean(owner: object, name: str) -> None:
    value = getattr(owner, name)
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {abbreviated(value)}, but it must be true or false")


def _text(owner: object, name: str) -> None:
    value = getattr(owner, name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is {abbreviated(value)}, but it must be a text: put it in quotes")
