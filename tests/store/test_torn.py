"""Whatever is cut off or changed in a folder is noticed and made again, and nothing else is."""

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
    """All that is not empty."""
    return sorted(path for path in (folder / NAME).rglob("*") if path.is_file() and path.stat().st_size)


def cut(rng: Random, path: Path) -> None:
    """As a disk does that has lost the end of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def change(rng: Random, path: Path) -> None:
    """A few bytes of it, or lines, changed, lost, doubled or moved."""
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
    """results.csv but for what it cost."""
    return pd.read_csv(folder / NAME / "results.csv").drop(columns=["seconds", "unet_evals"])


def mend(finished: Path, folder: Path, damage: Callable[[Random, Path], None], seed: int, among: str) -> None:
    """Damage one file of a finished sweep, and let the same command go on with it."""
    rng = Random(seed)
    shutil.copytree(finished, folder)
    path = rng.choice([path for path in files(folder) if path.match(among)])
    damage(rng, path)
    said = f"{path.relative_to(folder)}, seed {seed}"
    lines = sum(len(file.read_bytes().splitlines()) for file in store(folder).records_dir.iterdir())
    kept = {row["key"] for row in store(folder).rows()[0]}
    assert run_sweep(folder) == 0, said
    assert results(folder) == results(finished), said
    made = store(folder).records_dir / "0.jsonl"
    again = [row["key"] for line in made.read_bytes().splitlines()[lines:] if (row := from_line(line))]
    if among != "*" or path.suffix != ".png":
        assert not kept & set(again), said  # what was whole was not made again
    assert table(folder).equals(table(finished)), said
    assert not [one for one in verify(store(folder))[1] if one.path.parent != store(folder).records_dir], said
    assert {path.name for path in files(folder)} >= {path.name for path in files(finished)}, said


@pytest.mark.parametrize("seed", range(25))
def test_a_file_that_was_cut_off_is_mended_by_the_same_command(
    finished: Path, tmp_path: Path, seed: int
) -> None:
    mend(finished, tmp_path / "copy", cut, seed, "*")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25, 525))
def test_so_are_many_more(finished: Path, tmp_path: Path, seed: int) -> None:
    mend(finished, tmp_path / "copy", cut, seed, "*")


@pytest.mark.parametrize("seed", range(25))
def test_a_changed_record_or_plan_never_gives_another_result(
    finished: Path, tmp_path: Path, seed: int
) -> None:
    mend(finished, tmp_path / "copy", change, seed, ["*.jsonl", "plan.json"][seed % 2])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25, 525))
def test_nor_do_many_more(finished: Path, tmp_path: Path, seed: int) -> None:
    mend(finished, tmp_path / "copy", change, seed, ["*.jsonl", "plan.json"][seed % 2])


# --- python -m sega_bench verify ---


def verified(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, list[str]]:
    code = subcommand("verify", *words)
    return code, capsys.readouterr().out.splitlines()


def test_verify_names_what_is_damaged_and_repair_lets_it_be_made_again(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    root = folder / NAME
    assert verified(capsys, root) == (0, ["6 images are intact, 0 parts are damaged"])

    changed, lost, *_ = store(folder).images_dir.rglob("*.png")
    data = changed.read_bytes()
    changed.write_bytes(data[:60] + bytes([data[60] ^ 1]) + data[61:])
    lost.unlink()
    lines = (root / "records" / "0.jsonl").read_bytes().splitlines(keepends=True)
    torn = next(
        i for i, line in enumerate(lines) if changed.stem not in str(line) and lost.stem not in str(line)
    )
    lines[torn] = lines[torn][:100] + b"\n"
    (root / "records" / "0.jsonl").write_bytes(b"".join(lines))
    (root / "plan.json").write_text("{")
    damaged = {
        f"{root}/plan.json is not what was written",
        f"{root}/records/0.jsonl line {torn + 1} is not what was written",
        f"{changed} is not what was written",
        f"{lost} is lost",
    }
    before = {path: path.read_bytes() for path in files(folder)}
    code, said = verified(capsys, root)
    assert (code, set(said[:-1])) == (1, damaged)
    assert said[-1].startswith("3 images are intact, 4 parts are damaged: --repair drops them")
    assert {path: path.read_bytes() for path in files(folder)} == before

    code, said = verified(capsys, root, "--repair")
    assert (code, set(said[:-1])) == (0, damaged)
    assert "were dropped" in said[-1]
    assert not changed.exists()
    whole = [path for path in before if path not in (changed, lost, root / "plan.json")]
    assert [path for path in whole if path.read_bytes() != before[path]] == [root / "records" / "0.jsonl"]
    assert run_sweep(folder) == 0
    assert results(folder) == results(finished)
    capsys.readouterr()
    assert verified(capsys, root) == (0, ["6 images are intact, 0 parts are damaged"])


def test_verify_refuses_what_holds_no_sweep_and_repair_what_is_in_use(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        for words in ((folder,), (folder, "--repair")):
            assert subcommand("verify", *words) == 2
            assert "holds no sweep" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with lock.held(store(finished)):
        assert verified(capsys, finished / NAME)[0] == 0
        assert subcommand("verify", finished / NAME, "--repair") == 2
        assert "in use by process" in capsys.readouterr().err


def test_verify_is_a_command(finished: Path) -> None:
    command = [sys.executable, "-m", "sega_bench", "verify", str(finished / NAME)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "6 images are intact, 0 parts are damaged\n"


def test_a_view_of_a_damaged_plan_says_what_mends_it(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / NAME, tmp_path / NAME)
    (tmp_path / NAME / "plan.json").write_text("{")
    assert subcommand("grids", tmp_path / NAME) == 2
    assert "the command that made it writes it again" in capsys.readouterr().err
    with pytest.raises(UserError):
        Store(tmp_path / NAME).read_plan()


def test_the_stand_ins_make_every_view(finished: Path) -> None:
    names = {path.name for path in files(finished)}
    assert {"plan.json", "0.jsonl", "results.csv", "summary.csv", "results.parquet", "overview.png"} <= names
    assert len(stub_sweep.results(finished)) == 6
