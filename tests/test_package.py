"""The distributions: what the wheel and the sdist contain, and that the wheel runs without the checkout."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
import yaml

from sega_bench import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("distributions")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def wheel(distributions: Path) -> Path:
    (path,) = distributions.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def sdist_names(distributions: Path) -> set[str]:
    """Names of the files in the sdist, without its top folder."""
    (path,) = distributions.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(archive.read(name))


def tracked_files(*folders: str) -> set[str]:
    command = ["git", "ls-files", "--", *folders]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in ended.stdout.splitlines() if (ROOT / name).is_file()}


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


def test_the_wheel_holds_the_package_and_its_metadata_only(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {"sega_bench", f"sega_bench-{__version__}.dist-info"}
    expected = tracked_files("sega_bench")
    expected |= {f"sega_bench/{name}" for name in tracked_files("conf")}
    assert expected <= names


def test_the_sdist_holds_everything_that_tests_and_tools_need(sdist_names: set[str]) -> None:
    folders = ("sega_bench", "conf", "tests", "tools", "outputs/example", ".ci")
    files = (
        "CITATION.cff",
        ".pre-commit-config.yaml",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "README.md",
    )
    assert tracked_files(*folders) | set(files) <= sdist_names
    for name in (
        "tools/freeze_oracle.py",
        "tools/scaling/__main__.py",
        "tests/fixtures/oracle/latents.safetensors",
    ):
        assert name in sdist_names


def test_the_metadata_name_licence_paper_and_valid_classifiers(wheel: Path) -> None:
    from trove_classifiers import classifiers

    headers = metadata(wheel)
    assert headers["License-Expression"] == "Apache-2.0"
    assert headers["Version"] == __version__
    assert headers.get_all("Project-URL") == ["Paper, https://arxiv.org/abs/2301.12247"]
    assert set(headers.get_all("Classifier", [])) <= set(classifiers)
    assert headers.get_all("Classifier") == sorted(PROJECT["classifiers"])


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (__version__, PROJECT["license"])
    (paper,) = citation["references"]
    assert paper["url"] == PROJECT["urls"]["Paper"]
    assert [author["family-names"] for author in paper["authors"]] == [
        "Brack",
        "Friedrich",
        "Hintersdorf",
        "Struppek",
        "Schramowski",
        "Kersting",
    ]


def test_commit_hooks_run_the_checks_of_ci_with_the_installed_tools() -> None:
    configuration = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (repository,) = configuration["repos"]
    assert repository["repo"] == "local"
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    entries = [hook["entry"].replace(" --force-exclude", "") for hook in repository["hooks"]]
    checks = (ROOT / ".ci" / "run").read_text().splitlines()[-3:]
    assert [f".venv/bin/{entry}" for entry in entries] == [check.removesuffix(" .") for check in checks]


def test_the_installed_wheel_plans_a_sweep(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)  # installing a pure wheel does no more
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


def test_the_top_level_holds_no_other_folders() -> None:
    folders = {name.split("/")[0] for name in tracked_files() if "/" in name}
    assert folders <= {"sega_bench", "conf", "docs", "tests", "tools", "outputs", ".ci"}


def test_ci_pins_every_dependency_without_naming_an_index() -> None:
    lines = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    locked = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in locked)
    names = {line.partition("==")[0] for line in locked}
    needed = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    assert {re.match(r"[\w-]+", line)[0].lower() for line in needed} <= names  # type: ignore[index]


REFUSE_CONNECTIONS = """
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise AssertionError(f"{event} {arguments}")

sys.addaudithook(refuse)
"""

IMPORT_ALL = """
import importlib, pkgutil, sega_bench
for module in pkgutil.walk_packages(sega_bench.__path__, "sega_bench."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        print(module.name)
"""


def test_imports_open_no_connection() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", REFUSE_CONNECTIONS + IMPORT_ALL],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
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


def test_help_and_plans_open_no_connection(tmp_path: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "WANDB_"))
    }
    ended = subprocess.run(
        [sys.executable, "-c", REFUSE_CONNECTIONS + COMMANDS],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "160 edited, 4 references" in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_every_dependency_has_a_lower_bound() -> None:
    extras = PROJECT["optional-dependencies"]
    assert {"dev", "slurm", "study"} <= set(extras)
    assert all(">=" in line for lines in (PROJECT["dependencies"], *extras.values()) for line in lines)
