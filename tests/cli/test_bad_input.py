"""Every mistake in a command line yields one line that names the key: random mistakes, and real processes."""

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


def error_message(overrides: tuple[str, ...]) -> str:
    """The user error of an invalid configuration."""
    try:
        sweep.resolve(compose(*overrides))
    except UserError as error:
        return str(error)
    except BaseException as error:
        raise AssertionError(f"{overrides}: {type(error).__name__}: {error}") from error
    raise AssertionError(f"{overrides} was accepted")


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
    """One mistake in an otherwise valid configuration."""
    mistake = rng.choice(KINDS)(rng, folder)
    own_keys = {override_key(override) for override in mistake.overrides} | (
        {"prompts", "concepts"} & {mistake.key}
    )
    if "+sweep=own" in mistake.overrides:
        own_keys |= {"prompts", "concepts"} & {mistake.key.split("[")[0]}
    base = [override for override in (*BASE, *mistake.base) if override_key(override) not in own_keys]
    return Mistake((*base, *mistake.overrides), mistake.key)


def override_key(override: str) -> str:
    return override.lstrip("+").partition("=")[0]


def check(seed: int, folder: Path) -> None:
    rng = Random(seed)
    for _ in range(10):
        mistake = make(rng, folder)
        message = error_message(mistake.overrides)
        assert message.isprintable(), mistake
        assert message.strip(), mistake
        assert len(message) < 1100, mistake
        assert mistake.key in message, (mistake, message)


@pytest.mark.parametrize("seed", range(30))
def test_generated_mistakes_are_one_line_that_names_the_key(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30, 230))
def test_many_more_generated_mistakes_are_one_line(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)


@pytest.mark.parametrize("overrides", [(), SEARCH, CLUSTER], ids=["sweep", "study", "slurm"])
def test_the_overrides_without_a_mistake_are_valid(overrides: tuple[str, ...]) -> None:
    plan, study, _ = sweep.resolve(compose(*BASE, *overrides))
    assert len(plan.cells) == 2
    assert (study is not None) == (overrides == SEARCH)


# --- in a real process ---

COMMAND_LINES: dict[str, list[str | bytes]] = {
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


def run_command(
    overrides: list[str | bytes], folder: Path
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run a command line in a folder; also returns the modules that its process had loaded."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(NOTE_MODULES)
    (folder / "p.jsonl").write_text('{"prompt": "a", "s": 1}\n{"prompt": "b", "s": 1e999}\n')
    path = os.pathsep.join(filter(None, [str(folder / "site"), os.environ.get("PYTHONPATH")]))
    completed = subprocess.run(
        [sys.executable, "-m", "sega_bench", "+sweep=smoke", *overrides],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "MODULES": str(folder / "modules")},
        check=False,
    )
    return completed, (folder / "modules").read_text().split()


def test_a_mistake_ends_the_command_with_one_line_before_weights_are_loaded(tmp_path: Path) -> None:
    folders = [tmp_path / str(i) for i in range(len(COMMAND_LINES))]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(run_command, COMMAND_LINES.values(), folders))
    for expected, folder, (completed, modules) in zip(COMMAND_LINES, folders, results, strict=True):
        assert (completed.returncode, completed.stdout) == (2, ""), (expected, completed)
        assert completed.stderr.startswith("error: "), expected
        assert (completed.stderr.count("\n"), completed.stderr[-1]) == (1, "\n"), expected
        assert expected in completed.stderr
        assert "Traceback" not in completed.stderr
        assert "sega_bench.errors" in modules
        assert "sega_bench.scores.loading" not in modules  # the first module to read weights
        assert sorted(os.listdir(folder)) == ["modules", "p.jsonl", "site"], expected
