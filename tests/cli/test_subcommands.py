"""Sub-commands beside Hydra's command line: dispatch, help, mistakes, tab completion."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import sweeps
from support.command_line import call, subcommand

from sega_bench.cli import completion, overview, subcommands
from sega_bench.config import Config, options

HYDRAS = ("+sweep=smoke", "~axes.edit_threshold", "--cfg", "-m", "seeds=2", "model=faces")


@pytest.mark.parametrize("word", HYDRAS)
def test_flags_and_settings_go_to_hydra(word: str) -> None:
    assert not subcommands.is_subcommand([word, "report"])


@pytest.mark.parametrize("name", subcommands.SUBCOMMANDS)
def test_every_subcommand_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert subcommand(name, "--help") == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: python -m sega_bench {name} ")
    summary = (subcommands.load(name).__doc__ or "").splitlines()[0]
    assert summary.split()[0] in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reprot", "outputs"], "'reprot' is no sub-command: did you mean report? there are report, figures"),
        (["thresholds"], "'thresholds' is a sweep: a setting is written key=value, as in +sweep=thresholds"),
        (["pareto"], "as in +study=pareto"),
        (["seeds", "4"], "a setting is written key=value, as in seeds=4"),
        (["report"], "the following arguments are required: folder"),
        (["report", "{}", "more"], "unrecognized arguments: more"),
        (["report", "grids", "{}"], "report grids: one sub-command at a time"),
        (["report", "{}"], "holds no sweep (no plan.json)"),
        (["verify", "{}/none"], "holds no sweep"),
        (["study", "{}"], "holds no study"),
        (["grids", "{}", "--limt", "3"], "unrecognized arguments: --limt 3"),
        (["wandb", "{}", "--mode", "ofline"], "invalid choice: 'ofline'"),
        (["compare", "{}"], "the following arguments are required: sweep"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, *(word.format(tmp_path) for word in words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_may_bear_a_subcommands_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweeps.finished(tmp_path / "report", seeds=[0], size=8)
    monkeypatch.chdir(tmp_path)
    assert subcommand("report", "report") == 0


def test_the_overview_lists_every_key_with_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(overview.ROOT_KEYS) == set(Config.__dataclass_fields__)
    assert call(monkeypatch, "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    first = [line.split()[0] for line in lines if line.split()]
    for name in (*overview.ROOT_KEYS, *subcommands.SUBCOMMANDS):
        assert name in first, name
    for group, prefix in (("sweep", "+sweep="), ("study", "+study="), ("model", "model=")):
        assert {f"{prefix}{name}" for name in options(group)} <= set(first)


# --- tab completion ---


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rep", ["replay=", "report"]),
        ("mod", ["model.", "model=faces", "model=local", "model=sd15", "model=sd21", "model=sdxl"]),
        ("+study=", ["+study=momentum", "+study=pareto", "+study=per_concept"]),
        ("sampling.h", ["sampling.height="]),
        ("+sweep=smoke axes.edit_th", ["axes.edit_threshold="]),
        ("+axes.edit_mom", ["+axes.edit_mom_beta=", "+axes.edit_momentum_scale="]),
        ("+zip.sch", ["+zip.scheduler="]),
        ("grids --l", ["--limit"]),
        ("grids outputs/x --", ["--help", "--limit", "--x", "--y"]),
        ("nothing such --", []),
        ("+sweep=smoke rep", ["replay="]),
    ],
)
def test_candidates(line: str, expected: list[str]) -> None:
    assert completion.candidates(line.split(" ")) == expected


def test_an_empty_word_offers_subcommands_groups_and_keys() -> None:
    candidates = completion.candidates([""])
    assert {"report", "model=faces", "seeds=", "sampling.", "axes.edit_threshold="} <= set(candidates)
    assert not [word for word in candidates if "_stable_diffusion" in word]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_printed_script_is_valid(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert subcommand("completion", shell) == 0
    script = capsys.readouterr().out
    if program := shutil.which(shell):
        done = subprocess.run([program, "-n"], input=script, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    assert "sega-bench completion candidates" in script


def test_bash_completes_a_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real bash, with ``=`` among the characters that break words, as it is by default."""
    if not (bash := shutil.which("bash")):
        pytest.skip("bash is not installed")
    assert subcommand("completion", "bash") == 0
    program = tmp_path / "sega-bench"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m sega_bench "$@"\n')
    program.chmod(0o755)
    line = "sega-bench +sweep=thr"
    script = (
        capsys.readouterr().out
        + f"""
COMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDS=(sega-bench +sweep = thr) COMP_CWORD=3
_sega_bench; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    )
    done = subprocess.run(
        [bash, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(Path(sweeps.__file__).parents[2])},
    )
    assert (done.stdout, done.stderr) == ("thresholds\n", "")
