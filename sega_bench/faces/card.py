"""The model card: measured results as Markdown. Every figure in it comes from `evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .captions import BARE_RATE, CONCEPTS, EMPTY_RATE, MENTION_RATES, TEMPLATES
from .drawing import BACKGROUND, BEARD_RATES, HAIR, HAT, LONG_HAIR_RATES, RATES, SKIN

if TYPE_CHECKING:
    from .measures import Outcome, Share

INTRODUCTION = """\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# A tiny Stable Diffusion of drawn faces

A genuine latent diffusion model in diffusers' format (AutoencoderKL, CLIPTextModel,
UNet2DConditionModel, DDIM) and a genuine CLIP in open_clip's, trained from nothing on pictures that
`sega_bench.faces.drawing` draws. It is made for one purpose: to run, test and demonstrate sweeps of
semantic guidance (SEGA) on a laptop's CPU, where its edits are measurable because every attribute of a
face can be recognised. It knows no photographs and no real person.

![Contact sheet](contact_sheet.png)

Rows: without edits; {rows}; all four at once. Columns: eight seeds.
"""

LIMITS = """\
## What it can't do, and what to keep in mind

- It draws one cartoon face of 64x64 pixels and nothing else. Words outside its captions mean nothing to
  it.
- The attribute classifier learnt from drawings by the same renderer as the model's training data. It
  was not used to train anything else, but its judgement of drawn faces says nothing about photographs.
- The scorer's text tower is the pipeline's text encoder: its CLIP scores are not independent of the
  model, as those of a foreign CLIP would be. Compare settings by them, not models.
- It knows "woman" and "man" as the drawings have them (eyelashes, lips, brows, mostly long or short
  hair); this is a device of the renderer, no statement about people.
- Curls cover some of the background, and what colour the classifier then sees there, or in grey hair, is
  what is least "kept". Early and strong edits (see the curves) may change the hair's colour or bring a hat.
- A text the model does not know may bring in something that it does (see the control).
- Rates are of this model. What a setting does to a large model has to be measured there.

## Licence

Apache-2.0, weights and code. The training data is drawn by the code itself.
"""


def model_card(results: Mapping[str, Any]) -> str:
    """The whole card."""
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
        f"{DRAWINGS:,} drawings of 64x64 pixels. Woman or man, evenly; {rates};",
        f"beard {BEARD_RATES['woman']} of women and {BEARD_RATES['man']} of men;",
        f"long hair {LONG_HAIR_RATES['woman']} and {LONG_HAIR_RATES['man']};",
        f"{len(HAIR)} hair colours ({', '.join(HAIR)}), {len(SKIN)} skins, {len(BACKGROUND)} backgrounds",
        f"({', '.join(BACKGROUND)}), hats in {', '.join(HAT)};",
        "small random changes of place, size and colour.",
        "All attributes but beard and long hair are independent of each other.",
        "",
        "A new caption is made for every picture at every step, always true of it:",
        f"{EMPTY_RATE:.0%} are empty; of the others {BARE_RATE:.0%} are a bare phrase (the four concepts'",
        f"texts word for word, and paraphrases), the rest one of {len(TEMPLATES)} templates with up to four",
        f"attributes, each mentioned with probability {MENTION_RATES[True]} where present",
        f"and {MENTION_RATES[False]} where absent.",
        "",
        f"In the last stage, `practice`, {CONTRADICTED} of a batch's {RECIPE.batch} pictures have straight",
        "hair and a text that says curls, and the denoiser learns to see the same face with curls;",
        f"{NONSENSE} come with random letters, which say nothing. So a text that the picture contradicts,",
        "which is what an edit is, changes the hair's form and leaves its colour.",
    ]
    return "\n".join(lines) + "\n"


def _training(training: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    reached = {
        "classifier": f"accuracy on new drawings >= {min(parts['accuracy'].values()):.3f}, "
        f"on the same through the autoencoder >= {min(parts['accuracy_reconstructed'].values()):.3f}",
        "autoencoder": f"{parts['psnr']:.1f} dB on new drawings",
        "clip": f"AUC >= {min(parts['auc'].values()):.4f} for each concept; cosine of the text states of "
        f"'' and a concept {min(parts['cosine'].values()):.2f} to {max(parts['cosine'].values()):.2f}",
        "unet": "goes on as `practice`",
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
    header = ["part", "shape", "parameters", "steps x batch", "minutes", "reached"]
    return "## Training (two CPU cores, float32, in this order)\n\n" + table(header, rows)


def _quality(results: Mapping[str, Any]) -> str:
    text = (
        f"## Quality: one concept at a time\n\n{results['seeds']} seeds ({results['first_seed']} and up, "
        f"never used before; {results['few_seeds']} for prompts other than the first) for each line; "
        f"{_setting(results['setting'])}.\n\nbefore, after: share of the "
        "pictures in which the classifier finds the concept, without and with the edit. gained: of those "
        "without it before, how many have it after. kept: agreement on the six other yes/no attributes. "
        "colours kept: agreement on hair colour and background. CLIP gain: change of the cosine to the "
        "concept's text. changed: share of the pixels that moved by more than 16 of 255. In brackets 95 % "
        "intervals (Wilson; bootstrap for CLIP gain).\n"
    )
    header = ["concept", "before", "after", "gained", "kept", "colours kept", "CLIP gain", "changed"]
    for prompt, outcomes in results["single"].items():
        text += f"\n'{prompt}':\n\n" + table(header, [_outcome_row(n, o) for n, o in outcomes.items()])
    return text


def _outcome_row(name: str, outcome: Outcome) -> list[str]:
    shares = (outcome.before, outcome.after, outcome.gained, outcome.kept, outcome.colors)
    return [name, *map(_share, shares), _gain(outcome.clip_gain), f"{outcome.changed:.2f}"]


def _all_four(results: Mapping[str, Any]) -> str:
    outcomes: Mapping[str, Outcome] = results["all_four"]
    mean = sum(o.gained.value for o in outcomes.values()) / len(outcomes)
    rows = [
        [n, _share(o.before), _share(o.after), _share(o.gained), _gain(o.clip_gain)]
        for n, o in outcomes.items()
    ]
    first = next(iter(outcomes.values()))
    return (
        f"## Quality: all four at once\n\n{results['seeds']} seeds, the same setting.\n\n"
        + table(["concept", "before", "after", "gained", "CLIP gain"], rows)
        + f"\nMean gained {mean:.2f}; the three other yes/no attributes kept {_share(first.kept)}, colours "
        f"{_share(first.colors)}; pixels changed {first.changed:.2f}.\n"
    )


def _controls(controls: Mapping[str, Mapping[str, Outcome]]) -> str:
    rows = [
        [
            f'"{text}"',
            *(f"{o.before.value:.2f} -> {o.after.value:.2f}" for o in outcomes.values()),
            _share(kept),
        ]
        for text, outcomes in controls.items()
        for kept in [next(iter(outcomes.values())).kept]
    ]
    return "## Control: texts outside the four leave them as they are\n\n" + table(
        ["edit", *CONCEPTS, "all seven attributes kept"], rows
    )


def _curves(curves: Mapping[str, Mapping[float, Mapping[str, Outcome]]], seeds: int) -> str:
    text = (
        f"## Curves\n\n{seeds} seeds a point, one setting varied at a time, means over the four concepts.\n"
    )
    for field, points in curves.items():
        rows = [[f"{value:g}", *_curve_row(list(outcomes.values()))] for value, outcomes in points.items()]
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


def _curve_row(outcomes: list[Outcome]) -> list[str]:
    def mean(get: Callable[[Outcome], float]) -> str:
        return f"{sum(map(get, outcomes)) / len(outcomes):.2f}"

    gained = [f"{o.gained.value:.2f}" for o in outcomes]
    means = [lambda o: o.gained.value, lambda o: o.kept.value, lambda o: o.clip_gain[0], lambda o: o.changed]
    return gained + [mean(get) for get in means]


def _speed(timings: Mapping[int, float], threads: int) -> str:
    return (
        "## Speed\n\nSeconds an image with one concept, 25 steps, CPU, "
        f"threads: {threads}; diffusers' pipeline:\n\n"
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
