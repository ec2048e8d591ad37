"""What is shipped: the wheel brings its configuration and runs away from the checkout."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_configuration_weights_and_types(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "sega_bench/conf/config.yaml",
        "sega_bench/conf/sweep/thresholds.yaml",
        "sega_bench/faces/weights/pipeline/model_index.json",
        "sega_bench/faces/weights/scorer/open_clip_config.json",
        "sega_bench/views/assets/report/index.html",
        "sega_bench/views/assets/vendor/plot-LICENSE.txt",
        "sega_bench/py.typed",
    ):
        assert name in names
    assert not [
        name for name in names if name.startswith(("tests/", "outputs/")) or name.endswith((".bin", ".pt"))
    ]


def test_the_installed_wheel_plans_a_sweep(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)  # which is all that installing a pure wheel does
    program = f"""if True:
        import runpy, sys
        sys.path.insert(0, {str(site)!r})
        import sega_bench
        assert sega_bench.__file__.startswith({str(site)!r})
        sys.argv[1:] = ["+sweep=thresholds", "dry_run=true"]
        runpy.run_module("sega_bench", run_name="__main__")
    """
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "160 edited, 4 references" in ended.stdout


def test_the_top_level_is_what_was_agreed() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    folders = {name.split("/")[0] for name in tracked if "/" in name}
    assert folders <= {"sega_bench", "conf", "docs", "tests", "tools", "outputs", ".ci"}


def test_every_dependency_of_ci_is_locked_and_comes_from_no_particular_index() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    locked = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in locked)
    names = {line.partition("==")[0] for line in locked}
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert {re.match(r"[\w-]+", line)[0].lower() for line in needed} <= names  # type: ignore[index]


REFUSED = """
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise AssertionError(f"{event} {arguments}")

sys.addaudithook(refuse)
"""

OFFLINE = """
import importlib, pkgutil, sega_bench
for module in pkgutil.walk_packages(sega_bench.__path__, "sega_bench."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        print(module.name)
"""


def test_importing_asks_no_network() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", REFUSED + OFFLINE], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert {"sega_bench.execution.runner", "sega_bench.tracking.reporter", "sega_bench.scores.clip"} <= set(
        ended.stdout.split()
    )


COMMANDS = """
from sega_bench.cli.main import main

PLAN = "dry_run=true"
for words in ([], ["--help"], ["+sweep=thresholds", PLAN], ["+sweep=faces_example", PLAN]):
    sys.argv = ["sega_bench", *words]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, (words, ended)
"""


def test_help_and_plans_ask_no_network(tmp_path: Path) -> None:
    asked = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "WANDB_"))}
    ended = subprocess.run(
        [sys.executable, "-c", REFUSED + COMMANDS],
        env={**asked, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "160 edited, 4 references" in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_lower_bounds_are_given_for_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert {"dev", "slurm", "study"} <= set(extras)
    assert all(">=" in line for lines in (project["dependencies"], *extras.values()) for line in lines)
