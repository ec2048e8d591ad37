"""The model card: the results of `evaluate` as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .captions import BARE_RATE, CONCEPTS, EMPTY_RATE, MENTION_RATES, TEMPLATES
from .drawing import BACKGROUND, BEARD_RATES, HAIR, HAT, LONG_HAIR_RATES, RATES, SKIN

if TYPE_CHECKING:
    from .measures import EditEffect, Share

INTRODUCTION = """\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# A tiny Stable Diffusion of drawn faces

A latent diffusion model in diffusers' format (AutoencoderKL, CLIPTextModel, UNet2DConditionModel, DDIM)
and a CLIP model in open_clip's format, trained from scratch on images that `sega_bench.faces.drawing`
renders. Its only purpose is to run, test and demonstrate sweeps of semantic guidance (SEGA) on a laptop's
CPU. Its edits can be measured because a classifier recognises every attribute of a face. It was trained
only on drawings, not on photographs of people.

![Contact sheet](contact_sheet.png)

Rows: unedited; {rows}; all four at once. Columns: eight seeds.
"""

LIMITS = """\
## Limitations

- The model generates one cartoon face of 64x64 pixels and nothing else. Words outside its captions have no
  meaning to it.
- The attribute classifier was trained on drawings by the same renderer as the model. No other part was
  trained with it, but its accuracy on drawn faces does not carry over to photographs.
- The scorer's text tower is the pipeline's text encoder, so its CLIP scores are not independent of the
  model. Use them to compare settings, not models.
- "woman" and "man" are the renderer's conventions (eyelashes, lips, brows, mostly long or short hair), not
  a statement about people.
- Curls cover part of the background. The colours that the classifier sees there, and grey hair, are kept
  least. Early and strong edits (see the curves) may change the hair's colour or add a hat.
- A text that the model does not know may add an attribute that it knows (see the control).
- All rates are this model's. The effect of a setting on a large model has to be measured on that model.

## Licence

Apache-2.0, for weights and code. The code renders the training data.
"""


def model_card(results: Mapping[str, Any]) -> str:
    """Format the card from the results that `evaluate.main` collects."""
    sections = [
        INTRODUCTION.format(rows=", ".join(f'"{text}"' for text in CONCEPTS.values())),
        _data(),
        _training(results["training"], results["parts"]),
        _quality(results),
        _all_four(results),
        _controls(results["controls"]),
        _curves(results["curves"], results["few_seeds"]),
        _speed(results["timings"], results["threads"]),
        LIMITS,
        _reproduce(results),
    ]
    return "\n".join(sections)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _share(share: Share) -> str:
    if not share.of:
        return "-"
    low, high = share.interval()
    return f"{share.value:.2f} ({low:.2f}-{high:.2f})"


def _gain(gain: tuple[float, float, float]) -> str:
    mean, low, high = gain
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


def _setting(setting: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {list(value) if isinstance(value, tuple) else value}" for key, value in setting.items()
    )


def _data() -> str:
    from .practice import CONTRADICTED, NONSENSE, RECIPE
    from .train import DRAWINGS

    rates = ", ".join(f"{name} {rate}" for name, rate in RATES.items())
    lines = [
        "## Data",
        "",
        f"{DRAWINGS:,} drawings of 64x64 pixels. Half of the faces are women, half are men.",
        f"Rates of attributes: {rates};",
        f"beard {BEARD_RATES['woman']} of women and {BEARD_RATES['man']} of men;",
        f"long hair {LONG_HAIR_RATES['woman']} of women and {LONG_HAIR_RATES['man']} of men.",
        f"There are {len(HAIR)} hair colours ({', '.join(HAIR)}), {len(SKIN)} skin tones,",
        f"{len(BACKGROUND)} backgrounds ({', '.join(BACKGROUND)}),",
        f"and hats in {', '.join(HAT)}. Position, size and colours vary slightly at random.",
        "All attributes except beard and long hair are independent of each other.",
        "",
        "Every image gets a new caption at every step, and the caption is always true of it.",
        f"{EMPTY_RATE:.0%} are empty. Of the others, {BARE_RATE:.0%} are a bare phrase (the edit prompt of",
        f"a concept, or a paraphrase), and the rest use one of {len(TEMPLATES)} templates with up to four",
        f"attributes. These mention a present attribute with probability {MENTION_RATES[True]},",
        f"and an absent one with probability {MENTION_RATES[False]}.",
        "",
        f"In the last stage, `practice`, {CONTRADICTED} of a batch's {RECIPE.batch} images show straight",
        "hair with a text that says curls, and the denoiser is trained towards the same face with curls.",
        f"{NONSENSE} come with random letters, which have no meaning. An edit's text contradicts the image",
        "in the same way: after this stage it changes the form of the hair and keeps its colour.",
    ]
    return "\n".join(lines) + "\n"


def _training(training: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    reached = {
        "classifier": f"accuracy on new drawings >= {min(parts['accuracy'].values()):.3f}, "
        f"on reconstructed ones >= {min(parts['accuracy_reconstructed'].values()):.3f}",
        "autoencoder": f"{parts['psnr']:.1f} dB on new drawings",
        "clip": f"AUC >= {min(parts['auc'].values()):.4f} for each concept; cosine of the text states of "
        f"'' and a concept {min(parts['cosine'].values()):.2f} to {max(parts['cosine'].values()):.2f}",
        "unet": "continued in `practice`",
        "practice": "the tables below",
    }
    shapes = {
        "classifier": "four strided convolutions",
        "autoencoder": "channels 16, 32, 64; latents 4x16x16",
        "clip": "ResNet (1, 1, 1, 1) of width 16; text: 3 layers of 128",
        "unet": "channels 48, 96, 96; cross-attention to the text at 8x8 and 4x4",
        "practice": "the same UNet",
    }
    rows = [
        [
            part,
            shapes[part],
            f"{f['parameters']:,}",
            f"{f['steps']:,} x {f['batch']}",
            f"{f['minutes']}",
            reached[part],
        ]
        for part, f in training.items()
    ]
    header = ["part", "shape", "parameters", "steps x batch", "minutes", "result"]
    return "## Training (two CPU cores, float32, in this order)\n\n" + table(header, rows)


def _quality(results: Mapping[str, Any]) -> str:
    text = (
        f"## Quality: one concept at a time\n\nEach line is measured on {results['seeds']} seeds "
        f"({results['first_seed']} and up, not used before), or {results['few_seeds']} for prompts other "
        f"than the first, with {_setting(results['setting'])}.\n\n"
        "before, after: share of images in which the classifier finds the concept, without and with the "
        "edit. gained: share of the images without the concept that have it after the edit. kept: agreement "
        "on the six other yes/no attributes. colours kept: agreement on hair colour and background. CLIP "
        "gain: change of the cosine to the concept's text. changed: share of pixels that changed by more "
        "than 16 of 255. Brackets: 95 % intervals (Wilson; bootstrap for CLIP gain).\n"
    )
    header = ["concept", "before", "after", "gained", "kept", "colours kept", "CLIP gain", "changed"]
    for prompt, effects in results["single"].items():
        text += f"\n'{prompt}':\n\n" + table(
            header, [_effect_row(n, effect) for n, effect in effects.items()]
        )
    return text


def _effect_row(name: str, effect: EditEffect) -> list[str]:
    shares = (effect.before, effect.after, effect.gained, effect.kept, effect.colors)
    return [name, *map(_share, shares), _gain(effect.clip_gain), f"{effect.changed:.2f}"]


def _all_four(results: Mapping[str, Any]) -> str:
    effects: Mapping[str, EditEffect] = results["all_four"]
    mean = sum(effect.gained.value for effect in effects.values()) / len(effects)
    rows = [
        [n, _share(effect.before), _share(effect.after), _share(effect.gained), _gain(effect.clip_gain)]
        for n, effect in effects.items()
    ]
    first = next(iter(effects.values()))
    return (
        f"## Quality: all four at once\n\n{results['seeds']} seeds, with the same settings.\n\n"
        + table(["concept", "before", "after", "gained", "CLIP gain"], rows)
        + f"\nMean of gained: {mean:.2f}. Kept: {_share(first.kept)} of the three other yes/no attributes, "
        f"{_share(first.colors)} of the colours. Pixels changed: {first.changed:.2f}.\n"
    )


def _controls(controls: Mapping[str, Mapping[str, EditEffect]]) -> str:
    rows = [
        [
            f'"{text}"',
            *(f"{effect.before.value:.2f} -> {effect.after.value:.2f}" for effect in effects.values()),
            _share(kept),
        ]
        for text, effects in controls.items()
        for kept in [next(iter(effects.values())).kept]
    ]
    return "## Control: edits with other texts\n\n" + table(
        ["edit", *CONCEPTS, "all seven attributes kept"], rows
    )


def _curves(curves: Mapping[str, Mapping[float, Mapping[str, EditEffect]]], seeds: int) -> str:
    text = (
        f"## Curves\n\nOne setting varied at a time, {seeds} seeds a point, means over the four concepts.\n"
    )
    for field, points in curves.items():
        rows = [[f"{value:g}", *_curve_row(list(effects.values()))] for value, effects in points.items()]
        header = [
            f"`{field}`",
            *(f"gained: {name}" for name in CONCEPTS),
            "gained",
            "kept",
            "CLIP gain",
            "changed",
        ]
        text += "\n" + table(header, rows)
    return text


def _curve_row(effects: list[EditEffect]) -> list[str]:
    def mean(get: Callable[[EditEffect], float]) -> str:
        return f"{sum(map(get, effects)) / len(effects):.2f}"

    gained = [f"{effect.gained.value:.2f}" for effect in effects]
    means = [
        lambda effect: effect.gained.value,
        lambda effect: effect.kept.value,
        lambda effect: effect.clip_gain[0],
        lambda effect: effect.changed,
    ]
    return gained + [mean(get) for get in means]


def _speed(timings: Mapping[int, float], threads: int) -> str:
    return (
        "## Speed\n\nSeconds an image with one concept and 25 steps, with diffusers' pipeline on the CPU "
        f"(threads: {threads}):\n\n"
        + table([f"batch {batch}" for batch in timings], [[f"{seconds:.2f}" for seconds in timings.values()]])
    )


def _reproduce(results: Mapping[str, Any]) -> str:
    counts = f"--seeds {results['seeds']} --few-seeds {results['few_seeds']}"
    return f"""\
## Reproduce

    python -m sega_bench.faces.train --out DIR    # all stages; the same command resumes after a kill
    python -m sega_bench.faces.evaluate --weights DIR/weights {counts}

The second command writes this card and the contact sheet.
"""
