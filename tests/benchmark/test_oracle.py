"""Diffusers' deprecated SEGA pipeline is used by the benchmark and the tests only, and may be missing."""

import subprocess
import sys
from pathlib import Path

import pytest
from support import tiny_sd, without_oracle
from support.small_sweep import overrides

from sega_bench.benchmark import oracle
from sega_bench.errors import UserError
from sega_bench.faces import PIPELINE_DIR, editing

ROOT = Path(__file__).parents[2]

COMMANDS = """
import sys
from sega_bench.cli.main import main

for words in (["+sweep=smoke", "dry_run=true"], {words!r}):
    sys.argv = ["sega_bench", *words]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, (words, ended)
print("modules:", *sys.modules)
"""


def test_a_plan_and_a_sweep_do_not_import_the_pipeline(tmp_path: Path) -> None:
    """In an interpreter of its own: the command plans one sweep and runs another, with scores and views."""
    ended = subprocess.run(
        [sys.executable, "-c", COMMANDS.format(words=overrides(tmp_path))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    modules = ended.stdout.rpartition("modules: ")[2].split()
    assert {"diffusers", "sega_bench.sega.wave", "sega_bench.execution.runner"} <= set(modules)
    assert not [name for name in modules if "semantic_stable_diffusion" in name]
    assert not [
        name
        for name in modules
        if name.startswith(("diffusers.pipelines.deprecated", "sega_bench.benchmark"))
    ]


def test_a_missing_pipeline_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    without_oracle.remove_pipeline(monkeypatch)
    assert not oracle.is_available()
    with pytest.raises(UserError, match="has no SemanticStableDiffusionPipeline"):
        oracle.make_pipeline(tiny_sd.loaded("float64"))
    with pytest.raises(
        UserError, match="SemanticStableDiffusionPipeline, which this diffusers no longer has"
    ):
        editing.load_pipeline(PIPELINE_DIR)
