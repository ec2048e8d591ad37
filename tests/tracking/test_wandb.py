from __future__ import annotations

import json
import logging
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import wandb
from support import stub_sweep, sweeps
from support.command_line import subcommand
from support.wandb_runs import read, updates, without_account
from support.wandb_server import FAULTS, Backend, faulty, serving

import sega_bench
from sega_bench.analysis.claims import claims
from sega_bench.analysis.columns import to_frame
from sega_bench.analysis.frames import load
from sega_bench.analysis.groups import ALL
from sega_bench.analysis.results import Results
from sega_bench.analysis.summary import summarise
from sega_bench.errors import UserError
from sega_bench.store import Record, Store
from sega_bench.tracking import reporter as view
from sega_bench.tracking import wandb_run
from sega_bench.tracking.headline import configuration, headline
from sega_bench.tracking.login import resolve_mode
from sega_bench.tracking.reporter import Reporter
from sega_bench.views.write_all import write_views


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with without_account(tmp_path, monkeypatch):
        yield


def finished(root: Path) -> Store:
    return sweeps.finished(root, axes={"edit_threshold": [0.5, 0.8, 0.9]}, seeds=[0, 1], size=8)


def report(store: Store, mode: view.Mode = "offline") -> str | None:
    results = Results.read(store)
    write_views(results)
    return Reporter(store, results.plan, mode).finish(results)


# --- modes ---


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_a_mode_that_is_asked_for_is_taken(mode: str) -> None:
    assert resolve_mode(mode) == mode


def test_auto_is_offline_for_nobody_and_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a prompt"))
    assert resolve_mode("auto") == "offline"


def test_auto_is_online_for_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert resolve_mode("auto") == "online"


def test_auto_is_online_for_a_netrc_entry_of_the_server_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x")
    (tmp_path / "netrc").chmod(0o600)
    assert resolve_mode("auto") == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.example.org:8080")
    assert resolve_mode("auto") == "offline"
    (tmp_path / "netrc").write_text("machine wandb.example.org login user password x")
    assert resolve_mode("auto") == "online"
    (tmp_path / "netrc").write_text("nonsense")
    assert resolve_mode("auto") == "offline"


def test_wandbs_own_variable_decides_for_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve_mode("auto") == "disabled"
    assert resolve_mode("offline") == "offline"


def test_an_unknown_mode_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"wandb.mode: there is no mode 'on'; use auto"):
        resolve_mode("on")


# --- the run, read back ---


def test_an_offline_run_holds_the_sweep(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = finished(tmp_path / "sweep")
    command = report(store)
    assert command is not None
    assert capfd.readouterr() == ("", "")  # no chatter
    folder = Path(command.removeprefix("wandb sync "))
    assert folder.parent == store.wandb_dir
    records = read(folder)

    (run,) = [record["run"] for record in records if record["type"] == "run"]
    assert (run["display_name"], run["run_group"], run["project"]) == ("synthetic", "faces", "sega_bench")
    assert run["config"]["update"]["axes"] == {"edit_threshold": [0.5, 0.8, 0.9]}

    frame, summary = load(store.root), updates(records)
    assert summary["cells.nrows"] == len(frame) == 14
    assert summary["summary.nrows"] == 3 * 3
    assert (summary["cells_in_all"], summary["cells_in_table"], summary["cells_done"]) == (14, 14, 14)
    best = summarise(frame, ["edit_threshold"]).query("best and concepts == 'all'").iloc[0]
    assert summary["best/edit_threshold"] == best["edit_threshold"]
    assert summary["best/lpips"] == pytest.approx(best["lpips_mean"])
    each = summarise(frame, ["edit_threshold"]).query("best and concepts != 'all'").set_index("concepts")
    for label in ("smiling, smile", "glasses, wearing glasses"):
        assert summary[f"best/{label}/edit_threshold"] == each.loc[f'["{label}"]', "edit_threshold"]
    claimed = (
        claims(frame, ["edit_threshold"]).query("concepts == 'all' and measure == 'changed_fraction'").iloc[0]
    )
    assert summary["claims/added/isolation/changed_fraction"] == pytest.approx(claimed["value"])
    assert summary["grids/overview.caption"].startswith("edit_threshold across, concept down; ")
    assert {name for name in summary if name.endswith("._type") and name.startswith("grids/")} == {
        f"grids/{path.stem}._type" for path in store.grids_dir.iterdir()
    }
    for name in ("overview", "002-seed-1"):
        logged = folder / "files" / summary[f"grids/{name}.path"]
        assert logged.read_bytes() == (store.grids_dir / f"{name}.png").read_bytes()
    artifacts = [record["artifact"] for record in records if record["type"] == "artifact"]
    (results,) = [found for found in artifacts if found["type"] == "results"]
    paths = {entry["path"] for entry in results["manifest"]["contents"]}
    tables = {"results.parquet", "summary.csv", "claims.csv"}
    assert {path for path in paths if not path.startswith("report/")} == tables
    assert {"report/index.html", "report/data/sweep.js", "report/assets/report.css"} <= paths


def test_each_row_of_the_table_has_its_own_images(tmp_path: Path) -> None:
    store = finished(tmp_path / "sweep")
    command = report(store)
    assert command is not None
    records = read(Path(command.removeprefix("wandb sync ")))
    (artifact,) = [
        record["artifact"]
        for record in records
        if record["type"] == "artifact" and record["artifact"]["name"].endswith("cells")
    ]
    staged = {entry["path"]: Path(entry["local_path"]) for entry in artifact["manifest"]["contents"]}
    assert all(path.is_relative_to(store.root) for path in staged.values())
    table = json.loads(staged["cells.table.json"].read_bytes())
    columns = table["columns"]
    for row in (dict(zip(columns, values, strict=True)) for values in table["data"]):
        for column, key in (("image", row["key"]), ("reference", row["reference_key"])):
            assert staged[row[column]["path"]].read_bytes() == store.image_path(key).read_bytes()
    assert {"edit_threshold", "clip_concept_delta", "seed", "status"} < set(columns)
    images = [path for path in staged if path.startswith("media/images")]
    assert len(images) == 14  # a reference is logged once, however many cells have it


def test_every_picture_is_in_the_run_once(tmp_path: Path) -> None:
    """In the table alone: not in the sheets' place, and the artifact's report has small ones of its own."""
    store = sweeps.finished(tmp_path / "sweep", axes={"edit_threshold": [0.5, 0.9]}, seeds=[0, 1], size=200)
    command = report(store)
    assert command is not None
    folder = Path(command.removeprefix("wandb sync "))
    artifacts = [record["artifact"] for record in read(folder) if record["type"] == "artifact"]
    staged = [entry for found in artifacts for entry in found["manifest"]["contents"]]
    sent = [Path(entry["local_path"]) for entry in staged if entry["path"].endswith((".png", ".webp"))]
    sent += (folder / "files" / "media" / "images").rglob("*.png")
    files = Counter(path.read_bytes() for path in sent)
    pictures = {path.read_bytes() for path in store.images_dir.rglob("*.png")}
    sheets = {path.read_bytes() for path in store.grids_dir.iterdir()}
    small = {path.read_bytes() for path in store.report_dir.rglob("*.webp")}
    assert len(pictures) == len(small) == 2 + 8
    assert files == Counter({*pictures, *sheets, *small})


def test_the_summary_has_every_claim_with_its_interval() -> None:
    measures = ("monotonicity", "isolation", "robustness", "uniqueness")
    columns = ["claim", "measure", "direction", "concepts", "at", "value", "low", "high", "n"]
    rows = [
        [claim, "gain replayed / own", "added", concepts, "", i + gap, i - 0.5, math.nan, 8]
        for i, claim in enumerate(measures)
        for concepts, gap in ((ALL, 0.0), ('["a"]', 0.25))
    ]
    results = sweeps.results_of(to_frame([]), [])
    results.__dict__["claims"] = pd.DataFrame(rows, columns=columns)
    assert headline(results) == {
        f"claims/added/{claim}/gain replayed over own{end}": value
        for i, claim in enumerate(measures)
        for end, value in (("", i), ("/low", i - 0.5), ("/high", None))
    }


def test_of_many_cells_the_table_has_some_and_says_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "MOST_ROWS", 5)
    command = report(finished(tmp_path / "sweep"))
    assert command is not None
    summary = updates(read(Path(command.removeprefix("wandb sync "))))
    assert (summary["cells.nrows"], summary["cells_in_table"], summary["cells_in_all"]) == (5, 5, 14)


def test_live_curves_go_on_where_an_earlier_run_stopped(tmp_path: Path) -> None:
    store = finished(tmp_path / "sweep")
    results = Results.read(store)
    cells = sweeps.cells({"edit_threshold": [0.5]}, ["p"], [["a"]], [0])
    ids = []
    for already in (0, 14):
        reporter = Reporter(store, results.plan, "offline", already=already)
        reporter.log([Record(cells[0], "done", scores={"clip_prompt": 0.3}), Record(cells[1], "failed")])
        reporter.log([Record(cells[1], "done", scores={"clip_concept_delta": 0.25, "lpips": 0.5})])
        command = reporter.finish(results)
        assert command is not None
        records = read(Path(command.removeprefix("wandb sync ")))
        points = [record["history"]["item"] for record in records if record["type"] == "history"][:2]
        assert [point["cells_done"] for point in points] == [already + 1, already + 2]
        assert [point["cells_failed"] for point in points] == [1, 1]
        assert all(point["cells_per_second"] > 0 for point in points)
        assert [point.get("clip_concept_delta_so_far") for point in points] == [None, 0.25]
        assert [point.get("lpips_so_far") for point in points] == [None, 0.5]
        ids += [record["run"]["run_id"] for record in records if record["type"] == "run"]
        time.sleep(1)  # W&B names an offline run by the second
    assert len(set(ids)) == 1


# --- a server ---


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with serving(Backend) as address:
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", address)
        yield address


def test_an_online_run_is_sent_and_says_where(
    tmp_path: Path, server: str, capfd: pytest.CaptureFixture[str]
) -> None:
    store = finished(tmp_path / "sweep")
    address = report(store, mode=resolve_mode("auto"))
    assert address is not None
    assert re.fullmatch(rf"{server}/me/sega_bench/runs/[0-9a-f]{{8}}", address)
    sheets = {path.stem: path.read_bytes() for path in store.grids_dir.iterdir()}
    sent = {name: data for name, data in Backend.uploads.items() if name.startswith("media/images/grids/")}
    assert sorted(sent.values()) == sorted(sheets.values())
    assert b'\\"cells_done\\":14' in Backend.uploads["file_stream"]
    config = Backend.uploads["config.yaml"].decode()
    assert "synthetic" in config
    assert str(tmp_path) not in config
    assert capfd.readouterr() == ("", "")


# --- whatever goes wrong ---


def test_a_failure_is_a_line_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = finished(tmp_path / "sweep")
    monkeypatch.setattr(wandb, "init", lambda **_: (_ for _ in ()).throw(wandb.Error("broken\npipe")))
    with caplog.at_level(logging.WARNING):
        assert report(store) is None
    assert caplog.messages == ["W&B: Error: broken pipe"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, ...]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert stub_sweep.run_sweep(folder) == 0
    return stub_sweep.results(folder)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_dead_server_changes_nothing_of_a_sweep_and_is_told(
    fault: str,
    tmp_path: Path,
    undisturbed: dict[str, tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    limits = {"init_timeout": 2.0, "finish_timeout": 4.0}
    monkeypatch.setattr(wandb_run, "_SETTINGS", wandb_run._SETTINGS.model_copy(update=limits))
    with faulty(fault) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert stub_sweep.run_sweep(tmp_path, "wandb.mode=online") == 0
    assert stub_sweep.results(tmp_path) == undisturbed
    out, err = capfd.readouterr()
    again = r"python -m sega_bench wandb \S+ --mode online"
    if "W&B: no online run" in err:
        assert re.search(r"W&B +wandb sync \S+offline-run-\S+", out)
    else:  # it had not given up when the sweep was done, or had begun
        assert re.search(f"its server does not answer; once it does: {again}", err)
        assert re.search(f"W&B +{again}", out)
        assert fault != "no key"
    # These would hold up the program's end until the server answers.
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("Otel")]


def test_a_sender_that_is_stuck_is_never_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stuck, release = threading.Event(), threading.Event()

    def start(*_: Any) -> None:
        stuck.set()
        release.wait()

    monkeypatch.setattr(wandb_run, "_start", start)
    monkeypatch.setattr(wandb_run, "PATIENCE_SECONDS", 0.1)
    store = finished(tmp_path / "sweep")
    results = Results.read(store)
    record = Record(sweeps.cells({}, ["p"], [["a"]], [0])[0], "done")
    reporter = Reporter(store, results.plan, "online")
    stuck.wait()
    for _ in range(wandb_run.MOST_BEHIND + 500):  # returns, though nothing is ever sent
        reporter.log([record])
    assert reporter.behind == wandb_run.MOST_BEHIND
    command = reporter.finish(results)
    assert command == f"python -m sega_bench wandb {store.root} --mode online"
    assert view.read_digest(store) is None  # so the same command tries again
    release.set()


def test_an_sdk_that_cannot_be_abandoned_costs_time_and_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the private function that stops the SDK from waiting at exit, the sweep still goes on."""
    release = threading.Event()
    monkeypatch.setattr(wandb_run, "_start", lambda *_: release.wait())
    monkeypatch.setattr(wandb_run, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(wandb, "setup", lambda: object())
    store = finished(tmp_path / "sweep")
    results = Results.read(store)
    with caplog.at_level(logging.WARNING, "sega_bench"):
        command = Reporter(store, results.plan, "online").finish(results)
    assert command == f"python -m sega_bench wandb {store.root} --mode online"
    assert [message for message in caplog.messages if "cannot be abandoned" in message]
    release.set()


def test_the_configuration_has_no_paths_secrets_or_endless_lists(tmp_path: Path) -> None:
    plan = sweeps.write_plan(Store(tmp_path), sweeps.cells({}, ["p"], [["a"]], [0]), {})
    plan["settings"] = {
        "output_dir": "/home/me/outputs",
        "prompts": str(tmp_path),
        "lora": [str(tmp_path)],
        "wandb": {"api_key": "s3cret", "project": "p"},
        "model": {"path": "/models/sd", "name": "local"},
    }
    plan["model"]["path"] = "/models/sd"
    plan["prompts"] = ["/imagine a cat"] * 5000
    shown = configuration(plan)
    text = json.dumps(shown)
    for private in ("s3cret", "/home/me", "/models", str(tmp_path)):
        assert private not in text
    assert shown["settings"]["wandb"] == {"project": "p"}
    assert shown["prompts"] == ["/imagine a cat"] * 100
    assert "keys" not in shown


@pytest.mark.parametrize(
    ("words", "project", "entity"),
    [([], "ours", "team"), (["--project", "other", "--entity", "me"], "other", "me")],
)
def test_the_command_logs_where_the_sweep_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], project: str, entity: str
) -> None:
    store = finished(tmp_path)
    plan = store.read_plan()
    assert plan is not None
    plan["settings"]["wandb"] = {"mode": "auto", "project": "ours", "entity": "team"}
    store.write_plan(plan)
    asked: list[Any] = []

    class Asked(Reporter):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            asked.append((options["project"], options["entity"]))
            super().__init__(*arguments, **options)

    monkeypatch.setattr("sega_bench.cli.wandb.Reporter", Asked)
    assert subcommand("wandb", tmp_path, "--mode", "offline", *words) == 0
    assert asked == [(project, entity)]


def test_the_command_makes_the_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path / "sweep")
    assert subcommand("wandb", tmp_path / "sweep", "--mode", "offline") == 0
    command = capsys.readouterr().out.strip()
    assert updates(read(Path(command.removeprefix("wandb sync "))))["cells.nrows"] == 14
    assert subcommand("wandb", tmp_path) == 2


WITHOUT_ITS_PROCESS = """
import os, signal, sys
from pathlib import Path
from sega_bench.store import Store
from sega_bench.tracking.wandb_run import WandbRun

store = Store(Path(sys.argv[1]))
run = WandbRun(store, store.read_plan(), "offline")
assert run._run.result() is not None
children = [pid for one in Path("/proc/self/task").glob("*/children") for pid in one.read_text().split()]
of_wandb = {int(pid) for pid in children if b"wandb" in Path(f"/proc/{pid}/cmdline").read_bytes()}
assert of_wandb
for pid in of_wandb:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
import xgboost
print("imported", flush=True)
os._exit(0)
"""


def test_what_is_imported_once_wandbs_process_is_gone_is_imported(tmp_path: Path) -> None:
    """A pre-empted job's processes get SIGTERM, on which the SDK's own ends."""
    (tmp_path / "xgboost.py").write_text("")  # a library that the SDK wants to hear of
    command = [sys.executable, "-c", WITHOUT_ITS_PROCESS, str(finished(tmp_path / "sweep").root)]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(sega_bench.__file__).parents[1]}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "imported\n", done.stderr
