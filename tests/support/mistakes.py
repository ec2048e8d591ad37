"""Random mistakes in a command line's overrides, each with the key that its error message must name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

from sega_bench.cell import EDIT_SETTINGS


@dataclass(frozen=True)
class Mistake:
    """Overrides with a mistake.

    Args:
        overrides: the command line.
        key: the key that the error message must name; empty if there is none.
        base: valid overrides that precede it, except those of the same keys.
    """

    overrides: tuple[str, ...]
    key: str
    base: tuple[str, ...] = ()


# --- values as written on a command line ---

NOT_NUMBERS = ("abc", "''", "true", "{a: 1}", "[[1]]", "nan", "inf", "-inf", "1e999", "'1'", "no", "x" * 500)
NEGATIVE = ("-1", "-0.5", "-1e300", "-" + "9" * 40)
HUGE = ("1e7", "1e300", "9" * 40, "9" * 400, "9" * 5000)
BROKEN = ("2.5", "1e-3")

REALS = {
    "edit_guidance_scale": (*NEGATIVE, *HUGE),
    "edit_threshold": (*NEGATIVE, *HUGE, "1.0001"),
    "edit_weights": (*NEGATIVE, *HUGE),
    "edit_momentum_scale": (*NEGATIVE, *HUGE),
    "edit_mom_beta": (*NEGATIVE, *HUGE, "1.5"),
    "guidance_scale": (*NEGATIVE, *HUGE, "1", "0.5"),
    "eta": (*NEGATIVE, *HUGE, "1.5"),
}
WHOLES = {
    "edit_warmup_steps": (*NEGATIVE, *HUGE, *BROKEN, "26"),
    "edit_cooldown_steps": (*NEGATIVE, *BROKEN),
    "num_inference_steps": (*NEGATIVE, *HUGE, *BROKEN, "0", "1001"),
    "height": (*NEGATIVE, *HUGE, *BROKEN, "0", "8", "12", "30"),
    "width": (*NEGATIVE, *HUGE, *BROKEN, "0", "8", "12", "30"),
}
SIZES = ("0", "-1", "1.5", "abc", "true", "1e3", "nan", "[1]", "{a: 1}", "9" * 30, "10000000")
NULL_IS_A_VALUE = ("edit_cooldown_steps", "height", "width")
GOOD = {
    "edit_threshold": "0.5",
    "edit_mom_beta": "0.5",
    "eta": "0",
    "height": "64",
    "width": "64",
    "num_inference_steps": "25",  # at least the warm-up
}

NOT_TEXTS = ("true", "null", "3", "1.5", "[]", "{a: b}", "[[a]]")
BAD_TEXTS = (
    "a\0b",
    "\x1b[31m",
    "\x7f",
    "\x9b",
    "a\ud800",
    "\udfff\ud800",
    "a" * 10_001,
    "${nope}",
    "${",
    "???",
)
NOT_A_SEED = ("-1", "1.5", "true", "null", "abc", "[1]", "nan", "1e999", str(2**63), "{a: 1}")
NOT_SEEDS = (
    *("0", "-1", "true", "abc", "''", "1.5", "[]", "{a: 1}", "1e999", "nan", "10000000", "9" * 99),
    *(f"[1,{value}]" for value in NOT_A_SEED),
)
NAMES = (
    "''",
    "..",
    ".",
    ".hidden",
    "a/b",
    "../x",
    "/etc",
    "'a b'",
    "'a\nb'",
    "x" * 101,
    "ü",
    "-x",
    "a\\b",
    "[a]",
)


def quoted(text: str) -> str:
    return f"'{text}'"


def section(name: str) -> str:
    return "edit" if name.startswith(("edit_", "reverse_")) else "sampling"


def number(rng: Random, folder: Path) -> Mistake:
    """A number of the wrong type or out of range, in one of the places that can set it."""
    name, bad = rng.choice([*REALS.items(), *WHOLES.items()])
    value = rng.choice([*bad, *NOT_NUMBERS, *([] if name in NULL_IS_A_VALUE else ["null"])])
    place = rng.choice(["shared", "axes", "zip", "concept"])
    if place == "shared":
        return Mistake((f"{section(name)}.{name}={value}",), f"{section(name)}.{name}")
    if place == "concept" and name in EDIT_SETTINGS:
        i = rng.randrange(3)
        concepts = ["a"] * i + [f"{{text: b, {name}: {value}}}"]
        key = (
            f"concepts[{i}].{name}" if len(value) < 4300 else "concepts"
        )  # Python does not parse more digits
        return Mistake((f"concepts=[{','.join(concepts)}]",), key)
    place = "zip" if place == "zip" else "axes"
    values = [value, GOOD.get(name, "5")]
    rng.shuffle(values)
    return Mistake((f"+{place}.{name}=[{','.join(values)}]",), f"{place}.{name}")


def flag(rng: Random, folder: Path) -> Mistake:
    """An invalid boolean."""
    value = rng.choice(["0", "1", "null", "'true'", "no", "[[true]]", "{a: true}"])
    key, word = rng.choice(
        [
            ("edit.reverse_editing_direction", "edit.reverse_editing_direction={}"),
            ("axes.reverse_editing_direction", "+axes.reverse_editing_direction=[true,{}]"),
            (
                "concepts[0].reverse_editing_direction",
                "concepts=[{{text: a, reverse_editing_direction: {}}}]",
            ),
        ]
    )
    return Mistake((word.format(value),), key)


def text(rng: Random, folder: Path) -> Mistake:
    """A value that is not a text, or a text with invalid characters."""
    i = rng.randrange(3)
    good = "a," * i
    bad = rng.choice([*NOT_TEXTS, *map(quoted, BAD_TEXTS)])
    key, word = rng.choice(
        [
            (f"prompts[{i}]", f"prompts=[{good}{bad}]"),
            (f"concepts[{i}]", f"concepts=[{good}{{text: {bad}}}]"),
            (f"concepts[0][{i}]", f"concepts=[[{good}{bad}]]"),
            ("negative_prompt", f"negative_prompt={bad}"),
            ("axes.negative_prompt", f"+axes.negative_prompt=[{good}{bad}]"),
        ]
    )
    return Mistake((word,), key.split("[")[0])


def scheduler(rng: Random, folder: Path) -> Mistake:
    """An unknown scheduler."""
    value = rng.choice(["ddimm", "''", "3", "true", "DPMSolverSDEScheduler", "__init__", "x" * 300, "'a\0'"])
    if rng.random() < 0.5:
        return Mistake((f"sampling.scheduler={value}",), "sampling.scheduler")
    return Mistake((f"+axes.scheduler=[euler,{value}]",), "axes.scheduler")


def steps(rng: Random, folder: Path) -> Mistake:
    """More steps than a scheduler accepts."""
    name, too_many = rng.choice(
        [("ddim", 1000), ("euler", 1001), ("lcm", 51), ("pndm", 1001), ("unipc", 1001)]
    )
    value = rng.choice([too_many, too_many + 1, 5000, 10**9, 10**30])
    overrides = (f"sampling.scheduler={name}", "edit.edit_warmup_steps=1")
    key = rng.choice(["sampling", "+axes"])
    value_list = f"[25,{value}]" if key == "+axes" else value
    return Mistake(
        (*overrides, f"{key}.num_inference_steps={value_list}"), f"{key.strip('+')}.num_inference_steps"
    )


def name(rng: Random, folder: Path) -> Mistake:
    """A name that is not fit for a folder."""
    key = rng.choice(["name", "model.name"])
    return Mistake((f"{key}={rng.choice([*NAMES, 'null', quoted('a' + chr(0))])}",), key)


def seeds(rng: Random, folder: Path) -> Mistake:
    """Invalid seeds."""
    return Mistake((f"seeds={rng.choice([*NOT_SEEDS, 'null'])}",), "seeds")


def engine(rng: Random, folder: Path) -> Mistake:
    """An invalid value of a setting that no cell depends on, or of the model."""
    key, values = rng.choice(
        [
            ("engine.micro_batch_size", SIZES),
            ("engine.decode_batch_size", SIZES),
            ("engine.wave_rows", [*SIZES, "null"]),
            ("engine.threads", SIZES),
            ("engine.device", ["gpu", "cuda:99", "''", "[cpu]", "cpu:x", "'cpu\0'", "x" * 300]),
            ("engine.dtype", ["int8", "float", "''", "[float32]", "Float32", "torch.float32"]),
            ("scores.batch_size", [*SIZES, "null"]),
            ("scores.perceptual", ["lpips", "''", "null", "[alex]", "'alex\0'"]),
            (
                "scores.clip_model",
                ["local-dir:/no/such", "null", "[a]", "'local-dir:\0'", "'local-dir:~nobody-x/a'"],
            ),
            ("scores.clip_pretrained", ["openai", "''", "[a]"]),
            ("wandb.mode", ["on", "''", "ONLINE", "null", "[online]", "true"]),
            ("wandb.project", ["null", "[a]", quoted("a\x1b[2J")]),
            ("dry_run", ["maybe", "null", "[true]", "1.5"]),
            ("fail_fast", ["''", "null", "{a: 1}"]),
            ("output_dir", ["null", "[a]", quoted("a\0"), quoted("~nobody-x/a"), quoted("\ud800")]),
            ("model.path", ["null", "/no/such", "[a]", "''", quoted("a\0b")]),
            (
                "model.lora",
                [
                    "3",
                    "null",
                    "abc",
                    "[3]",
                    "[null]",
                    "[{path: 3}]",
                    "[{scale: 1}]",
                    "[/no/such.safetensors]",
                ],
            ),
            ("model.safety_checker", ["maybe", "null", "true", "[true]"]),
            ("model.config", ["sd15", "[sd15]", quoted("a\0b")]),
            ("replay", ["[]", "true", "3", "[a,3]", "[true]", "{a: b}", quoted("a\0"), "[[a]]"]),
            ("method", ["promt", "null", "3", "[sega]", "true", "{a: b}", quoted("a\0"), "negative"]),
            ("prompt_file.limit", ["0", "-1", "abc", "1.5", "[1]"]),
            ("prompt_file.column", ["null", "[a]"]),
        ]
    )
    overrides = (f"{key}={rng.choice(values)}",)
    if key == "prompt_file.limit":
        (folder / "good.txt").write_text("a face")
        overrides = (*overrides, f"prompts={folder / 'good.txt'}")
    return Mistake(overrides, key)


def structure(rng: Random, folder: Path) -> Mistake:
    """Lists and mappings where they are invalid, or of the wrong length."""
    deep = rng.choice([11, 50, 300, 990, 3000])
    return rng.choice(
        [
            Mistake(("+axes.edit_threshold=0.5",), "axes.edit_threshold"),
            Mistake(("+axes.edit_threshold=[]",), "axes.edit_threshold"),
            Mistake(("+axes.edit_threshold={a: 1}",), "axes.edit_threshold"),
            Mistake(("+axes.edit_threshold=null",), "axes.edit_threshold"),
            Mistake(("+axes.edit_threshold=[[0.5,0.6]]",), "axes.edit_threshold"),
            Mistake(("+axes.edit_threshold=[[]]",), "axes.edit_threshold"),
            Mistake(("+axes.edit_threshold=[0.5]", "concepts=[]"), "axes.edit_threshold"),
            Mistake(("+axes.edit_momentum_scale=[[0.5]]",), "axes.edit_momentum_scale"),
            Mistake(("+axes.nose=[1]",), "axes.nose"),
            Mistake(("+zip.seed=[1]",), "zip.seed"),
            Mistake(("+axes={null: [1]}",), "axes"),
            Mistake(("axes=3",), "axes"),
            Mistake(("axes=null",), "axes"),
            Mistake(("+zip.eta=[0,1]", "+zip.guidance_scale=[3]"), "zip"),
            Mistake(("+zip.eta=[0]", "+axes.eta=[1]"), "eta"),
            Mistake(("concepts=null",), "concepts"),
            Mistake(("concepts=3",), "concepts"),
            Mistake(("concepts=[[]]",), "concepts[0]"),
            Mistake(("concepts=[{edit_threshold: 1}]",), "concepts[0]"),
            Mistake(("concepts=[a,{text: a, nose: 1}]",), "concepts[1].nose"),
            Mistake(("concepts=[{text: a, edit_mom_beta: 1}]",), "concepts[0].edit_mom_beta"),
            Mistake(("concepts=[{text: a, 3: 1}]",), "concepts[0].3"),
            Mistake(("edit.edit_threshold=[0.1,0.2]",), "edit.edit_threshold"),
            Mistake(("edit.edit_threshold=[]",), "edit.edit_threshold"),
            Mistake(("prompts=null",), "prompts"),
            Mistake(("prompts=[]",), "prompts"),
            Mistake(("prompts=a cat",), "prompts"),
            Mistake((f"prompts=['{'a' * 10_000_000}']",), "prompts"),
            Mistake((f"prompts={'a' * 500_000}",), "prompts"),
            Mistake(("prompts={a: b}",), "prompts"),
            Mistake(("seeds=1000000", "+axes.eta=[0,1]"), "seeds"),
            Mistake((f"concepts={'[' * deep}a{']' * deep}",), "concepts"),
            Mistake((f"+axes.eta=[{'{a: ' * deep}1{'}' * deep}]",), "axes.eta"),
            Mistake((f"prompts={'[' * deep}",), "prompts"),
        ]
    )


def unknown(rng: Random, folder: Path) -> Mistake:
    """A key with a letter missing or added, overridden or appended."""
    known = rng.choice(
        [
            "seeds",
            "prompts",
            "edit.edit_threshold",
            "sampling.eta",
            "engine.threads",
            "wandb.mode",
            "prompt_file.limit",
        ]
    )
    place = rng.randrange(known.rfind(".") + 1, len(known))
    key = rng.choice(
        [known[:place] + known[place + 1 :], known[:place] + rng.choice("xyzq_0") + known[place:]]
    )
    return Mistake((f"{rng.choice(['', '+', '++'])}{key}=1",), key.rpartition(".")[2])


def group(rng: Random, folder: Path) -> Mistake:
    """An invalid option of a config group."""
    override = rng.choice(["+sweep", "+study", "model", "scores", "launch"])
    value = rng.choice(
        ["null", "''", "3", "true", "[3]", "[null]", "nose", "../smoke", "/etc/passwd", "1.5", "{a: 1}"]
    )
    return Mistake((f"{override}={value}",), override.strip("+"))


def noise(rng: Random, folder: Path) -> Mistake:
    """A word that is not an override."""
    letters = "abcdefseed=[]{}()'\",:~+@!#$%^&*?/\\| \t\n\0\x1bé\ud800中"
    word = "".join(rng.choice(letters) for _ in range(rng.randrange(12)))
    return Mistake(
        (rng.choice(["", "=", "+", "~", "+=", "@", "seeds", "smoke", f"?{word}", f"={word}"]),), ""
    )


FILES = [
    ("x.txt", "\n\n", {}, "prompts: there are none"),
    ("x.txt", "a\0b", {}, "x.txt line 1"),
    ("x.csv", "", {}, "prompts"),
    ("x.csv", "prompt\n", {}, "prompts"),
    ("x.csv", "text\na\n", {}, "x.csv line 2"),
    ("x.csv", "prompt\na\nb, c\n", {}, "x.csv line 3"),
    ("x.csv", 'prompt\n"a\n', {}, "x.csv line 2"),
    ("x.csv", "prompt,s\na,-1\n", {"seed": "s"}, "x.csv line 2, column s: seed"),
    ("x.csv", "prompt,s\na,1\nb,\n", {"seed": "s"}, "x.csv line 3, column s: seed"),
    ("x.csv", "prompt,g\na,inf\n", {"guidance_scale": "g"}, "x.csv line 2, column g: guidance_scale"),
    ("x.csv", "prompt,g\na,0.5\n", {"guidance_scale": "g"}, "x.csv line 2, column g: guidance_scale"),
    (
        "x.csv",
        "prompt,n\na,9999\n",
        {"num_inference_steps": "n"},
        "x.csv line 2, column n: num_inference_steps",
    ),
    ("x.csv", "prompt,n\na,\x1b\n", {"negative_prompt": "n"}, "x.csv line 2, column n: negative_prompt"),
    ("x.jsonl", '{"prompt": "a", "s": 7.9}', {"seed": "s"}, "x.jsonl line 1, column s: seed"),
    ("x.jsonl", '{"prompt": "a", "s": true}', {"seed": "s"}, "x.jsonl line 1, column s: seed"),
    ("x.jsonl", '{"prompt": "a", "s": 1e999}', {"seed": "s"}, "x.jsonl line 1, column s: seed"),
    ("x.jsonl", '{"prompt": "a", "s": NaN}', {"seed": "s"}, "x.jsonl line 1, column s: seed"),
    ("x.jsonl", '{"prompt": "a", "s": ' + "9" * 5000 + "}", {"seed": "s"}, "x.jsonl line 1"),
    ("x.jsonl", '{"prompt": null}', {}, "x.jsonl line 1"),
    ("x.jsonl", '{"prompt": false}', {}, "x.jsonl line 1, column prompt"),
    ("x.jsonl", '\n\n{"prompt": "\\ud800"}', {}, "x.jsonl line 3, column prompt"),
    ("x.jsonl", '{"a": ' * 2000, {}, "x.jsonl line 1"),
    ("x.jsonl", "3\n", {}, "x.jsonl line 1"),
]


def file(rng: Random, folder: Path) -> Mistake:
    """A prompt file that cannot be read or that has values out of range."""
    if rng.random() < 0.2:
        (folder / "folder.csv").mkdir(exist_ok=True)
        (folder / "latin.txt").write_bytes(b"zw\xf6lf")
        path = rng.choice(
            ["no/such.csv", "../../etc/passwd", "folder.csv", "latin.txt", "x.parquet", "a\0.csv"]
        )
        return Mistake((f"prompts={quoted(f'{folder}/{path}')}",), "prompts")
    file_name, content, columns, key = rng.choice(FILES)
    (folder / file_name).write_text(content, encoding="utf-8", newline="")
    own = (f"+prompt_file.columns.{setting}={column}" for setting, column in columns.items())
    return Mistake((f"prompts={folder / file_name}", *own), key)


HEADER = "# @package _global_\n"
YAML = [
    ("prompts: [no]", "prompts[0]"),
    ("prompts: [a, yes]", "prompts[1]"),
    ("concepts: [on, off]", "concepts[0]"),
    ("negative_prompt: off", "negative_prompt"),
    ("prompts: [!!binary aGVsbG8=]", "prompts"),
    ("prompts: [~]", "prompts[0]"),
    ("prompts: [a: b]", "prompts[0]"),
    ("prompts: [a", ""),
    ("prompts:\n\t- a", ""),
    ("prompts: &a [*a]", ""),
    ("prompts: !!python/object/apply:os.system [ls]", ""),
    ("seeds: 1\nseeds: 2", ""),
    ("seeds: .inf", "seeds"),
    ("seeds: [.nan]", "seeds"),
    ("seeds: 1_000_000_000_000", "seeds"),
    ("axes: {edit_threshold: [.nan]}", "axes.edit_threshold"),
    ("axes: {edit_threshold: 0.5}", "axes.edit_threshold"),
    ("axes: [edit_threshold]", "sweep/own"),
    ("axes: {no: [1]}", "axes"),
    ("edit: {edit_threshold: '0.9'}", "edit.edit_threshold"),
    ("edit: {edit_treshold: 0.9}", "edit.edit_treshold"),
    ("sampling: {height: 6:40:0}", "sampling.height"),
    ("axis: {}", "axis"),
    ("- a", ""),
    ("just a text", ""),
    ('name: "a\\0b"', "name"),
    ("concepts: " + "[" * 200 + "]" * 200, ""),
    ("defaults: [nowhere]", "nowhere"),
    ("prompts: ['${name']", "prompts[0]"),
    ("prompts: ['${nose}']", "prompts[0]"),
]


def yaml(rng: Random, folder: Path) -> Mistake:
    """A mistake in a sweep's YAML file."""
    (folder / "sweep").mkdir(exist_ok=True)
    content, key = rng.choice(YAML)
    (folder / "sweep" / "own.yaml").write_text(HEADER + content + "\n")
    return Mistake(("+sweep=own", f"hydra.searchpath=['file://{folder}']"), key)
