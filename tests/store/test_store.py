from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import sweeps

from sega_bench.cell import Cell, Edit
from sega_bench.errors import UserError
from sega_bench.store import PLAN_VERSION, SCORE_COLUMNS, DamagedPlanError, Record, Store, columns

_COLUMN_NAMES = """
key reference_key is_reference model prompt negative_prompt seed scheduler guidance_scale num_inference_steps
height width concepts reverse_editing_direction edit_guidance_scale edit_threshold edit_warmup_steps
edit_cooldown_steps edit_momentum_scale edit_mom_beta edit_weights eta replay method image image_sha256 status
error
clip_prompt clip_concept clip_concept_delta clip_directional clip_image lpips ssim psnr mse changed_fraction
nsfw
unet_evals seconds worker device dtype versions
"""
CONTRACT = _COLUMN_NAMES.split()

CELL = Cell("a face", 3, (Edit("smile"), Edit("glasses", edit_threshold=0.5)), model="faces@12")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "sweep")
    store.prepare()
    return store


def seeds(*numbers: int) -> list[Record]:
    return [Record(replace(CELL, seed=number), "done") for number in numbers]


def seeds_of(store: Store) -> list[int]:
    return [row["seed"] for row in store.rows()[0]]


# --- a record's row ---


def test_a_row_has_the_contracts_columns_in_order() -> None:
    assert list(Record(CELL, "done").row()) == CONTRACT


def test_per_concept_scores_follow_clip_concept_in_number_order() -> None:
    scores = {f"clip_concept_{k}": 0.1 for k in (10, 2, 1)} | {"aesthetic": 5.0}
    names = list(Record(CELL, "done", scores=scores).row())
    first = names.index("clip_concept")
    assert names[first : first + 5] == [
        "clip_concept",
        "clip_concept_1",
        "clip_concept_2",
        "clip_concept_10",
        "clip_concept_delta",
    ]
    assert names[names.index("nsfw") + 1] == "aesthetic"
    assert names == columns(scores)


def test_per_concept_settings_are_lists() -> None:
    row = Record(CELL, "done").row()
    assert row["concepts"] == ["smile", "glasses"]
    assert row["edit_threshold"] == [0.9, 0.5]
    assert row["edit_cooldown_steps"] == [None, None]
    assert row["edit_momentum_scale"] == 0.1


def test_a_references_edit_columns_are_null() -> None:
    row = Record(CELL.reference(), "done").row()
    assert row["is_reference"]
    assert row["concepts"] == []
    assert row["key"] == row["reference_key"]
    assert {row[name] for name in CONTRACT if "edit" in name} == {None}


def test_a_score_that_is_not_finite_is_null() -> None:
    scores = {"lpips": float("nan"), "psnr": float("inf"), "ssim": np.float32(0.5)}
    row = Record(CELL, "done", scores=scores).row()
    assert row["lpips"] is None
    assert row["psnr"] is None
    assert row["ssim"] == 0.5
    assert row["mse"] is None


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
cells = st.builds(
    Cell,
    prompt=texts,
    seed=st.integers(0, 2**63 - 1),
    negative_prompt=texts,
    edits=st.lists(
        st.builds(
            Edit,
            concept=texts,
            edit_threshold=st.floats(0, 1),
            edit_guidance_scale=st.floats(0, 1e6),
            edit_cooldown_steps=st.none() | st.integers(0, 100),
            reverse_editing_direction=st.booleans(),
        ),
        max_size=3,
    ).map(tuple),
)


@given(cell=cells, score=st.floats(), error=st.none() | texts)
@settings(max_examples=60, deadline=None)
def test_rows_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, cell: Cell, score: float, error: str | None
) -> None:
    store = Store(tmp_path_factory.mktemp("sweep"))
    record = Record(cell, "done", scores={"lpips": score}, error=error, seconds=0.1)
    store.append("w", [record])
    assert store.rows() == ([record.row()], 0)


# --- record files ---


def test_truncation_at_any_byte_loses_only_the_last_record(store: Store) -> None:
    store.append("w", seeds(0, 1))
    path = store.records_dir / "w.jsonl"
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole)):
        path.write_bytes(whole[:length])
        complete = length == len(whole) - 1  # only its newline is missing
        assert seeds_of(store) == ([0, 1] if complete else [0])
        store.append("w", seeds(2))
        rows, malformed = store.rows()
        assert [row["seed"] for row in rows] == ([0, 1, 2] if complete else [0, 2])
        assert malformed == (0 if complete or length == first else 1)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xff\xfe",
        b"[1]",
        b"3",
        b"{}",
        b'{"key":"a"}',
        b'{"key":["a"],"status":"done"}',
        b'{"key":"a","status":1}',
        b'{"key":"a","status":"maybe"}',
        b"[" * 100_000,
        b"null",
    ],
)
def test_malformed_lines_are_skipped_and_counted(store: Store, garbage: bytes) -> None:
    store.append("w", seeds(0))
    with open(store.records_dir / "w.jsonl", "ab") as file:
        file.write(garbage + b"\n")
    store.append("w", seeds(1))
    assert seeds_of(store) == [0, 1]
    assert store.rows()[1] == 1


def test_the_latest_row_is_current_but_failed_never_replaces_done(store: Store) -> None:
    store.append("a", [Record(CELL, "failed", error="first")])
    store.append("a", [Record(CELL, "failed", error="second")])
    assert [row["error"] for row in store.rows()[0]] == ["second"]
    store.append("b", [Record(CELL, "done", seconds=1.0)])
    store.append("b", [Record(CELL, "done", seconds=2.0)])
    store.append("c", [Record(CELL, "failed")])
    assert [(row["status"], row["seconds"]) for row in store.rows()[0]] == [("done", 2.0)]


def test_a_row_appended_after_reading_is_current_whatever_its_file(store: Store) -> None:
    """Files are read in alphabetical order, whichever was written first."""
    for early, late in (("0", "1"), ("1", "0")):
        cell = Cell("a face", int(early))
        Store(store.root).append(early, [Record(cell, "done", seconds=1.0)])
        resumed = Store(store.root)
        resumed.rows()
        resumed.append(late, [Record(cell, "done", seconds=2.0)])
    assert [row["seconds"] for row in store.rows()[0]] == [2.0, 2.0]
    assert [store.journal.read(place)["seconds"] for place in store.places().values()] == [2.0, 2.0]
    assert "turn" not in store.rows()[0][0]


def test_failed_replaces_done_if_the_image_is_lost(store: Store) -> None:
    image, digest = store.write_image(CELL, sweeps.draw_face(CELL))
    store.append("w", [Record(CELL, "done", image, digest), Record(CELL, "failed")])
    assert [row["status"] for row in store.rows()[0]] == ["done"]
    (store.root / image).unlink()
    assert [row["status"] for row in store.rows()[0]] == ["failed"]


def test_a_missing_folder_has_no_rows_and_no_plan(tmp_path: Path) -> None:
    store = Store(tmp_path / "none")
    assert store.rows() == ([], 0)
    assert store.done_keys([]) == set()
    assert store.read_plan() is None
    assert not store.root.exists()


def test_appending_no_rows_creates_no_file(store: Store) -> None:
    store.append("w", [])
    assert list(store.records_dir.iterdir()) == []


# --- images ---


def test_an_image_is_read_back_with_its_settings(store: Store) -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    path, digest = store.write_image(CELL, image)
    assert path == f"images/{CELL.key[:2]}/{CELL.key}.png"
    assert hashlib.sha256((store.root / path).read_bytes()).hexdigest() == digest
    for name in (path, CELL.key):
        np.testing.assert_array_equal(store.read_image(name), image)
    with Image.open(store.root / path) as png:
        metadata = json.loads(png.text["sega_bench"])  # type: ignore[attr-defined]
    row = Record(CELL, "done").row()
    assert {name: metadata[name] for name in CONTRACT[:22]} == {name: row[name] for name in CONTRACT[:22]}
    assert metadata["scheduler_config"] == CELL.scheduler_config


def test_an_image_path_never_leaves_the_folder(store: Store) -> None:
    for name in ("../../secret.png", "/etc/secret.png"):
        assert store.image_file(name).is_relative_to(store.images_dir)


def test_done_keys_need_a_done_row_and_its_image(store: Store) -> None:
    done, lost, failed, shared = (replace(CELL, seed=seed) for seed in range(4))
    image, _ = store.write_image(done, sweeps.draw_face(done))
    store.append("w", [Record(done, "done", image), Record(lost, "done", store.image_path(lost.key).name)])
    store.append("w", [Record(failed, "failed"), Record(shared, "done", image), Record(done, "failed")])
    assert store.done_keys(store.rows()[0]) == {done.key, shared.key}


def test_an_image_is_intact_if_its_hash_matches(store: Store) -> None:
    image, digest = store.write_image(CELL, sweeps.draw_face(CELL))
    row = Record(CELL, "done", image, digest).row()
    assert store.is_intact(row)
    path = store.root / image
    path.write_bytes(path.read_bytes()[:-1])
    assert not store.is_intact(row)
    path.unlink()
    assert not store.is_intact(row)


def test_refresh_nfs_touches_only_existing_folders(store: Store) -> None:
    store.refresh_nfs()
    store.records_dir.mkdir(parents=True, exist_ok=True)
    os.utime(store.records_dir, (0, 0))
    store.refresh_nfs()
    assert store.records_dir.stat().st_mtime > 0
    assert not store.launch_dir.exists()


def test_threads_can_write_images_concurrently(store: Store) -> None:
    small = [replace(CELL, seed=seed, height=8, width=8) for seed in range(24)]
    threads = [
        threading.Thread(target=store.write_image, args=(cell, sweeps.draw_face(cell))) for cell in small
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for cell in small:
        np.testing.assert_array_equal(store.read_image(cell.key), sweeps.draw_face(cell))


# --- atomic writes ---


def test_a_failed_write_leaves_the_old_file_and_no_other(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.root / "file"
    store.write_text(path, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        store.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(store.root.rglob("*.tmp")) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_user_error(store: Store, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def full(file: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    for write in (lambda: store.write_text(store.root / "file", "x"), lambda: store.append("w", seeds(0))):
        with pytest.raises(UserError, match=r"output_dir: there is no space left for .*: free some") as error:
            write()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.ESTALE])
def test_a_failing_disk_is_a_user_error(store: Store, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(file: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    for write in (lambda: store.write_text(store.root / "file", "x"), lambda: store.append("w", seeds(0))):
        with pytest.raises(
            UserError, match=r"output_dir: .* can't be written any more \(.*\): repair it, and the"
        ):
            write()


def test_a_file_is_flushed_before_it_is_renamed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    flush, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: calls.append("fsync") or flush(file))
    monkeypatch.setattr(os, "replace", lambda *names: calls.append("replace") or rename(*names))
    store.write_bytes(store.root / "deep" / "file", b"x")
    assert calls == ["fsync", "replace"]


WRITER = """
import itertools, sys
from dataclasses import replace
from pathlib import Path
from support import sweeps
from sega_bench.cell import Cell, Edit
from sega_bench.store import Store
store = Store(Path(sys.argv[1]))
store.prepare()
for seed in itertools.count():
    cell = Cell("a face", seed, (Edit("smile"),), height=128, width=128)
    store.append("w", [sweeps.record(store, cell)])
    print(seed, flush=True)
"""


def test_a_killed_writer_leaves_a_readable_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "sweep")
    for _ in range(3):
        path = os.pathsep.join([str(Path(sweeps.__file__).parents[1]), str(Path(__file__).parents[2])])
        command = [sys.executable, "-c", WRITER, str(store.root)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
        ) as writer:
            assert writer.stdout is not None
            last_printed = [int(writer.stdout.readline()) for _ in range(5)][-1]
            time.sleep(0.01)
            writer.send_signal(signal.SIGKILL)
        rows, _ = store.rows()
        assert len(rows) > last_printed
        for row in rows:
            assert store.read_image(row["image"]).shape == (128, 128, 3)
            assert row["key"] in store.done_keys(rows)
    store.prepare()
    assert list(store.root.rglob("*.tmp")) == []


def test_prepare_removes_only_temporary_files_of_dead_writers(store: Store) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = os.uname().nodename
    names = {
        "left": f"a.png.{host}-{dead.pid}-1.tmp",
        "mine": f"a.png.{host}-{os.getpid()}-1.tmp",
        "elsewhere": "a.png.another-host-1-1.tmp",
        "old": "b.png.another-host-1-1.tmp",
        "foreign": "notes.tmp",
    }
    paths = {kind: store.images_dir / name for kind, name in names.items()}
    for path in paths.values():
        path.touch()
    for kind in ("old", "foreign"):
        os.utime(paths[kind], (0, 0))
    store.prepare()
    assert {kind for kind, path in paths.items() if path.exists()} == {"mine", "elsewhere", "foreign"}


# --- the plan, and user errors ---


def test_prepare_reports_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"output_dir: .* can't be written .*output_dir="):
        Store(tmp_path / "file" / "sweep").prepare()


def test_a_plan_is_read_as_it_was_written(store: Store) -> None:
    document = {"plan_version": PLAN_VERSION, "prompts": ["ein süßes Gesicht", "a\n0"]}
    store.write_plan(document)
    assert store.read_plan() == document


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", "\x00", '{"plan_version": 1}', '{"plan_version": 1, "checksum": 3}', "[" * 9999],
)
def test_the_error_for_a_damaged_plan_names_the_remedy(store: Store, text: str) -> None:
    store.plan_path.write_text(text)
    with pytest.raises(
        DamagedPlanError, match=r"plan.json: it is damaged: the command that made it"
    ) as error:
        store.read_plan()
    assert "\n" not in str(error.value)


@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_a_changed_byte_of_a_plan_or_a_line_is_detected(
    tmp_path_factory: pytest.TempPathFactory, at: float, byte: int
) -> None:
    store = Store(tmp_path_factory.mktemp("sweep"))
    document = {"plan_version": PLAN_VERSION, "name": "mine", "engine": {"threads": 2, "wave_rows": 64}}
    store.write_plan(document)
    store.append("w", seeds(0))
    for path in (store.plan_path, store.records_dir / "w.jsonl"):
        data = bytearray(path.read_bytes())
        data[int(at * len(data))] = byte
        path.write_bytes(data)
    rows = store.rows()[0]
    assert rows in ([], [seeds(0)[0].row()])
    with suppress(UserError):
        assert store.read_plan() == document


@pytest.mark.parametrize("text", ['{"plan_version": 0}', '{"plan_version": 2}', '{"plan_version": [1]}'])
def test_a_plan_of_another_version_is_refused_with_a_remedy(store: Store, text: str) -> None:
    store.plan_path.write_text(text)
    with pytest.raises(UserError, match=r"plan.json: .*another name=, or remove the folder") as error:
        store.read_plan()
    assert "\n" not in str(error.value)


def test_every_score_has_a_column() -> None:
    assert [name for name in CONTRACT if name in SCORE_COLUMNS] == list(SCORE_COLUMNS)
