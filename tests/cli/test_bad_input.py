"""Whatever is typed wrong is one line that names the key: generated mistakes, and real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
from support.mistakes import (
    Mistake,
    engine,
    file,
    flag,
    group,
    name,
    noise,
    number,
    scheduler,
    seeds,
    steps,
    structure,
    text,
    unknown,
    yaml,
)
from support.study_mistakes import CLUSTER, SEARCH, launch, study

from sega_bench.cli import sweep
from sega_bench.config import compose
from sega_bench.errors import UserError

BASE = ("prompts=[a face]", "concepts=[smile]")


def told(words: tuple[str, ...]) -> str:
    """What a configuration's mistake is told as."""
    try:
        sweep.resolve(compose(*words))
    except UserError as error:
        return str(error)
    except BaseException as error:
        raise AssertionError(f"{words}: {type(error).__name__}: {error}") from error
    raise AssertionError(f"{words} was accepted")


KINDS: tuple[Callable[[Random, Path], Mistake], ...] = (
    number,
    number,
    number,
    number,
    text,
    text,
    engine,
    engine,
    structure,
    structure,
    file,
    file,
    yaml,
    yaml,
    flag,
    scheduler,
    steps,
    name,
    seeds,
    unknown,
    group,
    noise,
    study,
    study,
    study,
    study,
    launch,
    launch,
)


def make(rng: Random, folder: Path) -> Mistake:
    """One mistake in a configuration that is right otherwise."""
    made = rng.choice(KINDS)(rng, folder)
    taken = {word.lstrip("+").partition("=")[0] for word in made.words} | (
        {"prompts", "concepts"} & {made.key}
    )
    if "+sweep=own" in made.words:
        taken |= {"prompts", "concepts"} & {made.key.split("[")[0]}
    base = [word for word in (*BASE, *made.on) if word.lstrip("+").partition("=")[0] not in taken]
    return Mistake((*base, *made.words), made.key)


def check(seed: int, folder: Path) -> None:
    rng = Random(seed)
    for _ in range(10):
        mistake = make(rng, folder)
        message = told(mistake.words)
        assert message.isprintable(), mistake
        assert message.strip(), mistake
        assert len(message) < 1100, mistake
        assert mistake.key in message, (mistake, message)


@pytest.mark.parametrize("seed", range(30))
def test_generated_mistakes_are_one_line_that_names_the_key(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30, 230))
def test_many_more_mistakes_are_too(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)


@pytest.mark.parametrize("words", [(), SEARCH, CLUSTER], ids=["sweep", "study", "slurm"])
def test_what_the_generator_builds_on_is_right(words: tuple[str, ...]) -> None:
    made, searched, _ = sweep.resolve(compose(*BASE, *words))
    assert len(made.cells) == 2
    assert (searched is not None) == (words == SEARCH)


# --- as a user meets them ---

TYPED: dict[str, list[str | bytes]] = {
    "a setting is written key=value": ["thresholds"],
    "'sweeep': did you mean sweep?": ["+sweeep=thresholds"],
    "quote it, 'output_dir=\"~/runs\"'": ["output_dir=~/runs"],
    "concepts nests lists too deeply": [f"concepts={'[' * 300}{']' * 300}"],
    "'seeds=[1' cannot be read": ["seeds=[1"],
    "axes.edit_threshold is 1.5": ["axes.edit_threshold=[1.5]"],
    "engine.threads is 0": ["engine.threads=0"],
    "engine.micro_batch_size is -1": ["engine.micro_batch_size=-1"],
    "sampling.num_inference_steps is 5000": ["sampling.num_inference_steps=5000"],
    "p.jsonl line 2, column s: seed is inf": ["prompts=p.jsonl", "+prompt_file.columns.seed=s"],
    "prompts[0] is '\\x1b[31m'": ["prompts=['\x1b[31m']"],
    "prompts[0] is '\\udcff'": [b"prompts=['\xff']"],
    "prompts[0] has 100,000 characters": [f"prompts=[{'a' * 100_000}]"],
    "name is '../x'": ["name=../x"],
    "seeds is inf": ["seeds=1e999"],
    "wandb.mode is 'ofline': did you mean offline?": ["wandb.mode=ofline"],
}

NOTE_MODULES = """
import atexit, os, sys
atexit.register(lambda: open(os.environ["MODULES"], "w").write(" ".join(sys.modules)))
"""


def typed(words: list[str | bytes], folder: Path) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """A command line run in a folder, and the modules that it had loaded when it ended."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(NOTE_MODULES)
    (folder / "p.jsonl").write_text('{"prompt": "a", "s": 1}\n{"prompt": "b", "s": 1e999}\n')
    path = os.pathsep.join(filter(None, [str(folder / "site"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "sega_bench", "+sweep=smoke", *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "MODULES": str(folder / "modules")},
        check=False,
    )
    return done, (folder / "modules").read_text().split()


def test_typed_mistakes_end_with_one_line_before_weights_are_loaded(tmp_path: Path) -> None:
    folders = [tmp_path / str(i) for i in range(len(TYPED))]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(typed, TYPED.values(), folders))
    for words, folder, (done, modules) in zip(TYPED, folders, ends, strict=True):
        assert (done.returncode, done.stdout) == (2, ""), (words, done)
        assert done.stderr.startswith("error: "), words
        assert (done.stderr.count("\n"), done.stderr[-1]) == (1, "\n"), words
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert "sega_bench.errors" in modules
        assert "sega_bench.scores.loading" not in modules  # what reads weights, first of all the scorers'
        assert sorted(os.listdir(folder)) == ["modules", "p.jsonl", "site"], words
