"""Truncated or changed files are detected, and the same command regenerates them and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pandas as pd
import pytest
from support import stub_sweep
from support.command_line import subcommand
from support.stub_sweep import NAME, results, run_sweep, store

from sega_bench.errors import UserError
from sega_bench.store import Store, lock
from sega_bench.store.records import from_line
from sega_bench.store.verification import verify


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    assert run_sweep(folder) == 0
    return folder


def files(folder: Path) -> list[Path]:
    """All non-empty files of the sweep."""
    return sorted(path for path in (folder / NAME).rglob("*") if path.is_file() and path.stat().st_size)


def cut(rng: Random, path: Path) -> None:
    """Truncate a file at a random byte."""
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def change(rng: Random, path: Path) -> None:
    """Change, delete, duplicate or reorder a few random bytes or the lines of a file."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 3])):
        at = rng.randrange(len(data))
        end = min(len(data), at + rng.choice([1, 1, 8, 300]))
        kind = rng.randrange(7)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at:end] = bytes(end - at)
        elif kind == 2:
            del data[at:end]
        elif kind == 3:
            data[at:at] = data[at:end]
        elif kind == 4:
            data[at : at + 1] = rng.choice(
                [b"\n", b'"', b"}", b"9", b"null", b"\xff", b"[" * 5000, b"-1e999"]
            )
        elif kind == 5:
            lines = data.splitlines(keepends=True)
            rng.shuffle(lines)
            data = bytearray(b"".join(lines))
        else:
            data = bytearray(rng.randbytes(len(data)))
    path.write_bytes(data)


def table(folder: Path) -> pd.DataFrame:
    """results.csv without the columns of cost."""
    return pd.read_csv(folder / NAME / "results.csv").drop(columns=["seconds", "unet_evals"])


def damage_and_resume(
    finished: Path, folder: Path, damage: Callable[[Random, Path], None], seed: int, among: str
) -> None:
    """Damage one random file of a finished sweep, run the same command again, and compare."""
    rng = Random(seed)
    shutil.copytree(finished, folder)
    path = rng.choice([path for path in files(folder) if path.match(among)])
    damage(rng, path)
    case = f"{path.relative_to(folder)}, seed {seed}"
    lines = sum(len(file.read_bytes().splitlines()) for file in store(folder).records_dir.iterdir())
    intact = {row["key"] for row in store(folder).rows()[0]}
    assert run_sweep(folder) == 0, case
    assert results(folder) == results(finished), case
    records = store(folder).records_dir / "0.jsonl"
    regenerated = [
        row["key"] for line in records.read_bytes().splitlines()[lines:] if (row := from_line(line))
    ]
    if among != "*" or path.suffix != ".png":
        assert not intact & set(regenerated), case
    assert table(folder).equals(table(finished)), case
    damages = verify(store(folder))[1]
    assert not [damage for damage in damages if damage.path.parent != store(folder).records_dir], case
    assert {path.name for path in files(folder)} >= {path.name for path in files(finished)}, case


@pytest.mark.parametrize("seed", range(25))
def test_the_same_command_repairs_a_truncated_file(finished: Path, tmp_path: Path, seed: int) -> None:
    damage_and_resume(finished, tmp_path / "copy", cut, seed, "*")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25, 525))
def test_the_same_command_repairs_many_more_truncated_files(
    finished: Path, tmp_path: Path, seed: int
) -> None:
    damage_and_resume(finished, tmp_path / "copy", cut, seed, "*")


@pytest.mark.parametrize("seed", range(25))
def test_a_changed_record_or_plan_never_changes_the_results(
    finished: Path, tmp_path: Path, seed: int
) -> None:
    damage_and_resume(finished, tmp_path / "copy", change, seed, ["*.jsonl", "plan.json"][seed % 2])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25, 525))
def test_many_more_changed_files_never_change_the_results(finished: Path, tmp_path: Path, seed: int) -> None:
    damage_and_resume(finished, tmp_path / "copy", change, seed, ["*.jsonl", "plan.json"][seed % 2])


# --- python -m sega_bench verify ---


def run_verify(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, list[str]]:
    code = subcommand("verify", *words)
    return code, capsys.readouterr().out.splitlines()


def test_verify_names_damages_and_repair_lets_them_be_regenerated(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    root = folder / NAME
    assert run_verify(capsys, root) == (0, ["6 images are intact, 0 parts are damaged"])

    changed, lost, *_ = store(folder).images_dir.rglob("*.png")
    data = changed.read_bytes()
    changed.write_bytes(data[:60] + bytes([data[60] ^ 1]) + data[61:])
    lost.unlink()
    records = (root / "records" / "0.jsonl").read_bytes().splitlines(keepends=True)
    torn = next(
        i for i, line in enumerate(records) if changed.stem not in str(line) and lost.stem not in str(line)
    )
    records[torn] = records[torn][:100] + b"\n"
    (root / "records" / "0.jsonl").write_bytes(b"".join(records))
    (root / "plan.json").write_text("{")
    damaged = {
        f"{root}/plan.json is damaged",
        f"{root}/records/0.jsonl line {torn + 1} is damaged",
        f"{changed} is damaged",
        f"{lost} is missing",
    }
    before = {path: path.read_bytes() for path in files(folder)}
    code, lines = run_verify(capsys, root)
    assert (code, set(lines[:-1])) == (1, damaged)
    assert lines[-1].startswith("3 images are intact, 4 parts are damaged: --repair drops them")
    assert {path: path.read_bytes() for path in files(folder)} == before

    code, lines = run_verify(capsys, root, "--repair")
    assert (code, set(lines[:-1])) == (0, damaged)
    assert "were dropped" in lines[-1]
    assert not changed.exists()
    undamaged = [path for path in before if path not in (changed, lost, root / "plan.json")]
    assert [path for path in undamaged if path.read_bytes() != before[path]] == [root / "records" / "0.jsonl"]
    assert run_sweep(folder) == 0
    assert results(folder) == results(finished)
    capsys.readouterr()
    assert run_verify(capsys, root) == (0, ["6 images are intact, 0 parts are damaged"])


def test_verify_refuses_a_folder_without_a_sweep_and_repair_one_in_use(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        for words in ((folder,), (folder, "--repair")):
            assert subcommand("verify", *words) == 2
            assert "holds no sweep" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with lock.held(store(finished)):
        assert run_verify(capsys, finished / NAME)[0] == 0
        assert subcommand("verify", finished / NAME, "--repair") == 2
        assert "in use by process" in capsys.readouterr().err


def test_verify_is_a_command(finished: Path) -> None:
    command = [sys.executable, "-m", "sega_bench", "verify", str(finished / NAME)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout == "6 images are intact, 0 parts are damaged\n"


def test_a_view_of_a_damaged_plan_names_the_remedy(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / NAME, tmp_path / NAME)
    (tmp_path / NAME / "plan.json").write_text("{")
    assert subcommand("grids", tmp_path / NAME) == 2
    assert "the command that made it writes it again" in capsys.readouterr().err
    with pytest.raises(UserError):
        Store(tmp_path / NAME).read_plan()


def test_the_stub_sweep_writes_every_view(finished: Path) -> None:
    names = {path.name for path in files(finished)}
    assert {"plan.json", "0.jsonl", "results.csv", "summary.csv", "results.parquet", "overview.png"} <= names
    assert len(stub_sweep.results(finished)) == 6
