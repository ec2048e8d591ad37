"""The command line as a user meets it: real processes for what works, one process for what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from support.command_line import call
from support.small_sweep import overrides

from sega_bench.execution import runner


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sega_bench", *words], capture_output=True, text=True, cwd=cwd, check=False
    )


def test_a_sweep_from_a_command_to_its_files_and_again(tmp_path: Path) -> None:
    words = overrides(tmp_path / "out", "wandb.mode=offline")
    first = command(*words, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "wandb sync" in first.stdout
    assert "★" in first.stdout
    root = tmp_path / "out" / "small-local"
    names = {path.name for path in root.iterdir()}
    assert names == {
        "plan.json",
        "images",
        "records",
        "results.parquet",
        "results.csv",
        "summary.csv",
        "claims.csv",
        "grids",
        "report",
        "wandb",
        "run.log",
    }
    frame = pd.read_parquet(root / "results.parquet")
    assert len(frame) == len(pd.read_csv(root / "results.csv")) == 6
    assert (root / "grids" / "overview.png").exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]  # nothing is left beside it

    again = command(*words, cwd=tmp_path)
    assert again.returncode == 0
    assert "nothing to do: 6 of 6 cells are done" in again.stdout
    assert pd.read_parquet(root / "results.parquet").equals(frame)


def test_termination_keeps_what_is_done_and_exits_130(tmp_path: Path) -> None:
    words = overrides(tmp_path, "seeds=200", "engine.wave_rows=4")
    process = subprocess.Popen(
        [sys.executable, "-m", "sega_bench", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    records = tmp_path / "small-local" / "records" / "0.jsonl"
    while not (records.exists() and records.read_text().count("\n") >= 6) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert "the same command continues it" in stderr
    assert "Traceback" not in stderr
    lines = records.read_text().splitlines()
    assert all(json.loads(line)["status"] == "done" for line in lines)
    assert not list(tmp_path.rglob("*.tmp"))


def mine(folder: Path) -> Path:
    """A folder of one's own with a sweep in it, as ``--config-dir`` takes it."""
    (folder / "sweep").mkdir(parents=True)
    (folder / "sweep" / "mine.yaml").write_text(
        "# @package _global_\nname: mine\nprompts: [a face]\nconcepts: [smile]\n"
    )
    return folder


def test_hydras_own_flags_do_what_hydras_users_expect(tmp_path: Path) -> None:
    home = tmp_path / "empty"
    home.mkdir()
    for words, said in (
        (["--help"], "+sweep=thresholds"),
        (["--hydra-help"], "--config-dir"),
        (["--version"], "Hydra 1.3"),
        (["--cfg", "job", "+sweep=smoke"], "edit_threshold:\n  - 0.75"),
        (["+sweep=smoke", "-p", "axes", "-c", "job", "--resolve"], "# @package axes\nedit_threshold:"),
        (["--info", "searchpath"], "Config search path"),
        (["-sc", "install=bash"], "complete"),
        (
            ["-cd", str(mine(tmp_path / "conf")), "+sweep=mine", "dry_run=true"],
            "mine: the plan; nothing was run",
        ),
        (["-m", "+sweep=smoke,scales", "dry_run=true"], "scales: the plan; nothing was run"),
    ):
        done = command(*words, cwd=home)
        assert (done.returncode, done.stderr) == (0, ""), words
        assert said in done.stdout
        assert os.listdir(home) == [], words


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--bogus", "+sweep=smoke"], "--bogus"),
        (["--cfg", "jobs"], "--cfg"),
        (["--cfg", "job", "-m"], "--cfg"),
        (["--cfg", "job", "-p", "nose"], "'nose'"),
        (["--resolve"], "--resolve"),
        (["+sweep=smoke", "--cfg", "job", "seeds=2"], "seeds=2"),
        (["-cn", "nowhere"], "'nowhere'"),
        (["-cd", "/no/where"], "/no/where"),
        (["-m", "+sweep=smoke,null"], "sweep is None"),
        (["--experimental-rerun", "x.pickle"], "--experimental-rerun"),
        (["+sweep=null"], "sweep is None"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_flags_are_refused_in_one_line(words: list[str], key: str, tmp_path: Path) -> None:
    done = command(*words, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert key in done.stderr
    assert done.stdout == ""
    assert os.listdir(tmp_path) == []


def test_a_multirun_is_several_whole_sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    varied = ("name=g${sampling.guidance_scale}", "sampling.guidance_scale=3,5")
    assert call(monkeypatch, "--multirun", *overrides(tmp_path, *varied)) == 0
    assert sorted(os.listdir(tmp_path)) == ["g3-local", "g5-local"]
    for scale in (3, 5):
        assert set(pd.read_parquet(tmp_path / f"g{scale}-local" / "results.parquet")["guidance_scale"]) == {
            scale
        }


MISTAKES = [
    (["-m", "+sweep=smoke", "seeds=1,2"], "--multirun: 2 sweeps would share the folder smoke"),
    (["-m", "+sweep=smoke", "name=a,b", "edit.edit_threshold=0.5,7"], "edit.edit_threshold is 7"),
    (["+sweep=treshold"], "sweep=treshold"),
    (["+sweeep=thresholds"], "sweeep"),
    (["model=sd14", "+sweep=smoke"], "model=sd14"),
    (["+sweep=smoke", "+axes.nose=[1]"], "axes.nose"),
    (["+sweep=smoke", "concepts=[[a,b]]", "axes.edit_threshold=[[0.5]]"], "axes.edit_threshold"),
    (["+sweep=smoke", "axes.edit_threshold=[1.5]"], "axes.edit_threshold"),
    (["+sweep=smoke", "edit.edit_warmup_steps=26"], "edit.edit_warmup_steps"),
    (["+sweep=smoke", "prompts=[]"], "prompts"),
    (["+sweep=smoke", "concepts=[false]"], "concepts[0]"),
    (["+sweep=smoke", "sampling.guidance_scale=1"], "sampling.guidance_scale"),
    (["+sweep=smoke", "model=local", "model.path=/no/such/folder"], "model.path"),
    (["+sweep=smoke", "model=local", "model.path=nobody/nothing"], "model.path"),
    (["+sweep=smoke", "name=a/b"], "name"),
    (["+sweep=smoke", "name=.."], "name"),
    (["+sweep=smoke", "scores.perceptual=lpips"], "scores.perceptual"),
    (["+sweep=smoke", "engine.device=cuda:9"], "engine.device"),
    (["+sweep=smoke", "wandb.mode=ofline"], "wandb.mode"),
    (["+sweep=smoke", "verdict.cost=lpip"], "verdict.cost is 'lpip': did you mean lpips?"),
    (["+sweep=smoke", "verdict.success=ssim"], "verdict.success is 'ssim'"),
    (["+sweep=smoke", "verdict.margin=-1"], "verdict.margin is -1, but it must lie between 0 and 1"),
    (["+sweep=smoke", "output_dir=/proc/no"], "output_dir"),
    (["+sweep=smoke", "launch.workers=2"], "launch.workers is 2, but launch=inline is one process"),
    (["+sweep=smoke", "launch=local", "launch.workers=0"], "launch.workers is 0, but it must be at least 1"),
    (["+sweep=smoke", "launch=local", "launch.workers=-2"], "launch.workers is -2"),
    (["+sweep=smoke", "launch=local", "launch.workers=all"], "launch.workers is 'all'"),
    (["+sweep=smoke", "launch=local", "engine.device=cuda:1"], "engine.device"),
    (["+sweep=smoke", "launch=local", "+launch.nodes=2"], "launch.nodes"),
    (["+sweep=smoke", "launch=locl"], "launch=locl"),
    (["+sweep=smoke", "launch=local", "launch.workers=2", "output_dir=/proc/no"], "output_dir"),
    (["+sweep=smoke", "launch=slurm"], "launch.workers"),
    (["+sweep=smoke", "launch=slurm", "launch.workers=0"], "launch.workers is 0, but it must be at least 1"),
    (["+sweep=smoke", "launch=slurm", "launch.workers=-1"], "launch.workers is -1"),
    (["+sweep=smoke", "launch=slurm", "launch.workers=2", "launch.gpus_per_worker=-1"], "gpus_per_worker"),
    (["+sweep=smoke", "launch=slurm", "launch.workers=2", "engine.device=''"], "engine.device is ''"),
]


@pytest.mark.parametrize(
    ("words", "key"), MISTAKES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_mistakes_are_one_line_and_exit_2_before_a_model_loads(
    words: list[str],
    key: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load(*arguments: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(runner, "load", load)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *words) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert key in shown.err
    assert "Traceback" not in shown.err + shown.out


def test_a_cluster_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert call(monkeypatch, "+sweep=smoke", "launch=slurm", "launch.workers=2") == 2
    said = "run it where jobs are submitted, or launch=local"
    assert capsys.readouterr().err == f"error: launch=slurm: there is no sbatch here: {said}\n"
    assert os.listdir(tmp_path) == []


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert call(monkeypatch, "+sweep=thresholds", "model=sd15", "dry_run=true") == 0
    shown = capsys.readouterr().out
    assert "160 edited, 4 references" in shown
    assert "UNet evaluations" in shown
    assert os.listdir(tmp_path) == []


def test_nothing_says_what_there_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch) == 0
    shown = capsys.readouterr().out
    for word in ("+sweep=thresholds", "+sweep=combinations", "model=faces", "model=sd15", "dry_run=true"):
        assert word in shown
