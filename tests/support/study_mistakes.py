"""Random mistakes in the ``study`` and ``launch`` sections of a command line."""

from __future__ import annotations

from pathlib import Path
from random import Random

from support.mistakes import (
    BAD_TEXTS,
    GOOD,
    NOT_NUMBERS,
    NOT_SEEDS,
    NOT_TEXTS,
    REALS,
    SIZES,
    WHOLES,
    Mistake,
    quoted,
)

SEARCH = ("+study.space.edit_threshold={low: 0.5, high: 0.9}",)
"""A valid study of one setting."""

CLUSTER = ("launch=slurm", "launch.workers=2", "dry_run=true")
"""A valid job array, as a dry run that submits nothing."""

RANGES = {
    "edit_guidance_scale": ("3", "7"),
    "guidance_scale": ("3", "7"),
    "height": ("64", "128"),
    "width": ("64", "128"),
    "num_inference_steps": ("20", "30"),
    "edit_warmup_steps": ("2", "12"),
    "edit_cooldown_steps": ("10", "20"),
}
"""Legal ranges of settings; all others range from 0 to 1."""


def study(rng: Random, folder: Path) -> Mistake:
    """A mistake anywhere in the ``study`` section, or in a key that a study excludes."""
    mistake = rng.choice([bounds, space, objectives, options, held_out, excluded])(rng)
    return Mistake(mistake.overrides, mistake.key, SEARCH)


def bounds(rng: Random) -> Mistake:
    """An illegal number at an end of a setting's range, or among its choices."""
    name, bad = rng.choice([*REALS.items(), *WHOLES.items()])
    key = f"study.space.{name}"
    value = rng.choice([*bad, *NOT_NUMBERS])
    low, high = RANGES.get(name, ("0", "1"))
    described = rng.choice(
        [
            f"{{low: {value}, high: {high}}}",
            f"{{low: {low}, high: {value}}}",
            f"[{value},{GOOD.get(name, '5')}]",
            f"{{choices: [{GOOD.get(name, '5')},{value}]}}",
        ]
    )
    return Mistake((f"+{key}={described}",), key)


def space(rng: Random) -> Mistake:
    """An invalid entry of the search space."""
    key = "study.space.edit_threshold"
    odd = rng.choice([*NOT_NUMBERS, "0", "-0.1", "0.6", "1e300"])
    described = rng.choice(
        [
            *("3", "abc", "''", "true", "null", "[]", "[0.5]", "[0.5,0.5]", "[0.5,[0.6]]", "{}", "[[[0.5]]]"),
            *("{low: 0.5}", "{high: 0.5}", "{low: 0.9, high: 0.5}", "{low: 0.5, high: 0.5}"),
            *("{low: 0.5, hihg: 0.9}", "{low: 0.5, high: 0.9, 3: 4}", "{low: 0.5, high: 0.9, null: 4}"),
            *("{choices: 3}", "{choices: [0.5]}", "{choices: [0,1], low: 0.5}", "{choices: [0,{a: 1}]}"),
            *("{low: 0, high: 0.9, log: true}", "{low: 0.1, high: 0.9, log: true, step: 0.1}"),
            *("{low: 0.1, high: 0.9, log: 1}", "{low: 0.1, high: 0.9, log: null}"),
            *("{low: 0.5, high: 0.9, per_concept: true}", "{low: 0.5, high: 0.9, per_concept: 1}"),
            f"{{low: 0.5, high: 0.9, step: {odd}}}",
            f"[{','.join(str(i / 4000) for i in range(2000))}]",
        ]
    )
    return rng.choice(
        [
            Mistake((f"+{key}={described}",), key),
            Mistake((f"+{key}={described}",), key),
            Mistake(("+study.space.nose=[1,2]",), "study.space.nose"),
            Mistake(("+study.space.seed=[1,2]",), "study.space.seed"),
            Mistake(("+study.space.prompt=[a,b]",), "study.space.prompt"),
            Mistake(("study.space=3",), "study.space"),
            Mistake(("study.space=null",), "study"),
            Mistake(("+study.space={null: [1,2]}",), "study.space"),
            Mistake(("+study.space={'../x': [1,2]}",), "study.space"),
            Mistake(("+study.space.scheduler={low: 0, high: 1}",), "study.space.scheduler"),
            Mistake(("+study.space.scheduler=[ddim,dimm]",), "study.space.scheduler"),
            Mistake(("+study.space.method=[sega,negative]",), "study.space.method"),
            Mistake(("+study.space.negative_prompt=[a,'b\0']",), "study.space.negative_prompt"),
            Mistake(("+study.space.height={low: 64, high: 128, step: 4}",), "study.space.height.step"),
            Mistake(("+study.space.width={low: 64, high: 128, log: true}",), "study.space.width.log"),
            Mistake((f"+study.space.eta={'{a: ' * 3000}1{'}' * 3000}",), "study.space.eta"),
        ]
    )


def objectives(rng: Random) -> Mistake:
    """An unknown score, direction or constraint."""
    which = rng.choice(["objectives", "direction", "constraints"])
    if which == "objectives":
        name = rng.choice(["beauty", "nsfw", "lipps", "LPIPS", "clip_concept_x", "error", "__class__"])
        return Mistake((f"+study.objectives.{name}=maximize",), f"study.objectives.{name}")
    if which == "direction":
        value = rng.choice(["down", "''", "null", "3", "true", "[maximize]", "{a: 1}", "MAXIMIZE", "x" * 500])
        return Mistake((f"+study.objectives.lpips={value}",), "study.objectives.lpips")
    bounds = ["lpips = 3", "lpips <= x", "lpips", "<= 3", "lipps <= 3", "lpips <= nan", "lpips <= 1e999", ""]
    bounds += ["a\0b", "lpips <= .", "lpips <= 1 and ssim >= 1", "x" * 500, "lpips <= " + "9" * 400]
    lists = [f"['ssim >= 0.1','{bound}']" for bound in bounds]
    value = rng.choice([*lists, "3", "null", "{a: 1}", "[[lpips]]", "[3]", "lpips"])
    return Mistake((f"study.constraints={value}",), "study.constraints")


def options(rng: Random) -> Mistake:
    """An invalid number of trials, sampler, seed or storage."""
    samplers = ["tpee", "''", "null", "3", "[tpe]", "TPE", "../tpe", "x" * 300, quoted("tpe\0")]
    key, values = rng.choice(
        [
            ("study.trials", [*SIZES, "null", "10001"]),
            ("study.batch", SIZES),
            ("study.min_resource", [*SIZES, "2"]),
            ("study.sampler_seed", ["-1", "1.5", "abc", "null", "true", "nan", str(2**31), "9" * 40, "[1]"]),
            ("study.sampler", samplers),
            ("study.storage", ["[a]", "{a: 1}", *map(quoted, BAD_TEXTS)]),
        ]
    )
    return Mistake((f"{key}={rng.choice(values)}",), key)


def held_out(rng: Random) -> Mistake:
    """Held-out prompts or seeds that are invalid, or that the search uses too."""
    prompts = [f"[a house,{bad}]" for bad in (*NOT_TEXTS, *map(quoted, BAD_TEXTS))]
    word = rng.choice(
        [
            f".seeds={rng.choice([*NOT_SEEDS, '1', '[0]'])}",
            f".prompts={rng.choice([*prompts, '[]', '3', 'no/such.csv', 'a cat', '[a face]'])}",
            f"={rng.choice(['3', '[1]', 'abc'])}",
        ]
    )
    return Mistake((f"study.held_out{word}",), "study.held_out")


def excluded(rng: Random) -> Mistake:
    """A key that a study excludes, or that does not exist."""
    return rng.choice(
        [
            Mistake(("+axes.eta=[0,1]",), "axes"),
            Mistake(("+zip.eta=[0,1]",), "zip"),
            Mistake(("concepts=[]",), "concepts"),
            Mistake(("replay=[null,a dog]",), "replay"),
            Mistake((*CLUSTER, "launch.wait=false"), "launch.wait"),
            Mistake(("study.sampler=grid",), "study.space.edit_threshold"),
            Mistake(("study.sampler=grid", "+study.space.edit_threshold.step=1e-9"), "study.sampler"),
            Mistake(("+study.trails=3",), "study.trails"),
            Mistake(("+study.held_out.seed=3",), "study.held_out.seed"),
            Mistake(("+study.spaces.eta=[0,1]",), "study.spaces"),
            Mistake(("~study.space", "study.trials=3"), "study"),
        ]
    )


def launch(rng: Random, folder: Path) -> Mistake:
    """An invalid launcher or number of workers, or a key of another launcher."""
    launcher = rng.choice(["inline", "local", "slurm", "slurm"])
    if launcher == "slurm":
        return Mistake(*cluster(rng), CLUSTER)
    if launcher == "inline" and rng.random() < 0.4:
        name = rng.choice(["launch=nowhere", "launch.name=nowhere", "launch.name=null", "launch.name=''"])
        return Mistake((name,), name.partition("=")[0])
    cluster_only = ["partition=a", "account=a", "timeout_min=5", "setup=[ls]", "wait=false"]
    workers = [*SIZES, "null", *(["2"] if launcher == "inline" else ["''", "all", "5000"])]
    words = [f"launch.workers={rng.choice(workers)}", f"launch.{rng.choice(cluster_only)}", "+launch.nodes=2"]
    word = rng.choice([*words, "engine.device=cuda:1"])
    return Mistake((f"launch={launcher}", word), word.strip("+").partition("=")[0])


def cluster(rng: Random) -> tuple[tuple[str, ...], str]:
    """An invalid option of a job array, as a word of the command line and its key."""
    extra = [*("mem=null", "mem=[1]", "mem=false", "mem={a: 1}", "mem=''"), f"mem={quoted('a' + chr(0))}"]
    extra += [f"cpus_per_task={value}" for value in (*SIZES, "null", "'4'", "1025")]
    key, values = rng.choice(
        [
            ("launch.workers", [*SIZES, "null", "auto", "5000"]),
            ("launch.timeout_min", [*SIZES, "null"]),
            ("launch.gpus_per_worker", ["-1", "65", "abc", "1.5", "[1]", "{a: 1}", "nan", "9" * 30]),
            ("launch.partition", ["[a]", "''", quoted("a\n#SBATCH --x"), *map(quoted, BAD_TEXTS)]),
            ("launch.account", ["{a: 1}", "''", quoted("a\tb"), *map(quoted, BAD_TEXTS)]),
            ("launch.setup", ["3", "null", "abc", "{a: b}", *(f"[ls,{bad}]" for bad in NOT_TEXTS)]),
            ("launch.setup", [f"[{quoted(bad)}]" for bad in BAD_TEXTS]),
            ("launch.wait", ["maybe", "null", "[true]", "1.5"]),
            ("launch.extra", ["3", "null", "[1]", "abc"]),
            ("engine.device", ["gpu", "''", "cuda:1", "[cpu]", "x" * 300, quoted("cpu\0")]),
        ]
    )
    if key == "launch.extra" and rng.random() < 0.8:
        return (f"+launch.extra.{rng.choice(extra)}",), key
    return (f"{key}={rng.choice(values)}",), key
