"""The tutorial notebook, executed as it stands."""

from pathlib import Path

import nbclient
import nbformat

import sega_bench

TUTORIAL = Path(__file__).parents[2] / "outputs" / "example" / "tutorial.ipynb"


def test_the_tutorial_runs_and_shows_what_it_says(tmp_path: Path) -> None:
    notebook = nbformat.read(TUTORIAL, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # raises what a cell raises
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    frame = sega_bench.load(tmp_path / "outputs" / "tutorial")
    assert len(frame) == 10
    assert (frame["status"] == "done").all()
    assert (tmp_path / "outputs" / "tutorial" / "report" / "index.html").exists()
