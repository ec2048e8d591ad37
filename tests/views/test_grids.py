from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from support import small_sweep, sweeps
from support.command_line import subcommand

import sega_bench
from sega_bench import compose
from sega_bench.analysis.frames import load
from sega_bench.analysis.results import Results
from sega_bench.analysis.table_files import write_tables
from sega_bench.errors import UserError
from sega_bench.planning import manifest
from sega_bench.planning.planner import plan
from sega_bench.store import Store
from sega_bench.views.image_grid import write
from sega_bench.views.image_grid.draw import Layout, Sheet, Tile, lay_out, wrap
from sega_bench.views.image_grid.write import write_grids
from sega_bench.views.report import thumbnails


class Drawn:
    """Sheets as they were asked for, with the files they became."""

    def __init__(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, frame: pd.DataFrame | None = None, **options: Any
    ):
        sheets: list[Sheet] = []
        draw = write.draw
        monkeypatch.setattr(write, "draw", lambda sheet: sheets.append(sheet) or draw(sheet))
        results = Results.read(store)
        self.paths = write_grids(results if frame is None else replace(results, frame=frame), **options)
        self.sheets = dict(zip((path.stem for path in self.paths), sheets, strict=True))

    def first(self) -> Sheet:
        """The first sheet; the overview where that shows all there is."""
        return list(self.sheets.values())[:2][-1]


def notes(sheet: Sheet) -> list[list[str | None]]:
    """For each row what stands in the place of its images; None for an image."""
    return [
        [None if tile and tile.path else tile.note if tile else "" for tile in row.tiles]
        for row in sheet.rows
    ]


def small(root: Path, **changes: Any) -> Store:
    options: dict[str, Any] = {
        "axes": {"edit_threshold": [0.5, 0.9]},
        "concepts": [["smile"]],
        "seeds": [0],
        "size": 8,
    }
    return sweeps.finished(root, **(options | changes))


TWO = {"edit_threshold": [0.5, 0.9], "edit_guidance_scale": [2.0, 8.0]}


def pixels(image: Image.Image, at: Layout, corner: tuple[int, int]) -> np.ndarray[Any, Any]:
    (x, y), (width, height) = corner, at.tile
    return np.asarray(image)[y : y + height, x : x + width]


def enlarged(path: Path, size: tuple[int, int]) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


def test_every_image_stands_where_its_labels_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = sweeps.finished(tmp_path, concepts=[["smile"]], seeds=[0])
    drawn = Drawn(store, monkeypatch)
    sheet, at = drawn.first(), lay_out(drawn.first())
    assert (sheet.x_name, list(sheet.columns)) == ("edit_threshold", ["0.5", "0.8", "0.9", "0.95"])
    assert (sheet.y_name, [row.label for row in sheet.rows]) == ("edit_guidance_scale", ["2", "5", "8"])
    cells = load(store.root).set_index(["edit_threshold", "edit_guidance_scale"])
    with Image.open(drawn.paths[1]) as image:
        assert image.size == at.size
        for x, column in zip(at.xs, sheet.columns, strict=True):
            for y, row in zip(at.ys, sheet.rows, strict=True):
                path = store.root / cells.loc[(float(column), float(row.label)), "image"]
                np.testing.assert_array_equal(pixels(image, at, (x, y)), enlarged(path, at.tile))
        reference = store.root / load(store.root).query("is_reference")["image"].iloc[0]
        np.testing.assert_array_equal(pixels(image, at, (at.margin, at.ys[0])), enlarged(reference, at.tile))


def test_a_sheet_for_each_prompt_concept_and_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = small(tmp_path, axes=TWO, prompts=["a", "b"], concepts=[["x"], ["y", "z"]], seeds=[0, 1, 2])
    drawn = Drawn(store, monkeypatch)
    assert len(drawn.paths) == 1 + 2 * 2 * 3
    assert drawn.paths[0] == store.grids_dir / "overview.png"
    assert len({(s.title, s.notes[0]) for s in list(drawn.sheets.values())[1:]}) == 12
    assert any(note == "y + z \N{MIDDLE DOT} seed 2" for s in drawn.sheets.values() for note in s.notes)


def test_sheets_are_capped_evenly_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = small(tmp_path, axes=TWO, seeds=range(9))
    with caplog.at_level(logging.WARNING):
        drawn = Drawn(store, monkeypatch, limit=3)
    assert [path.name[:3] for path in drawn.paths[1:]] == ["001", "005", "009"]
    assert "3 of 9 sheets drawn" in caplog.text


def test_an_older_plans_sheets_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = small(tmp_path)
    store.write_bytes(store.grids_dir / "009-old.png", b"")
    assert sorted(store.grids_dir.iterdir()) != sorted(paths := Drawn(store, monkeypatch).paths)
    assert sorted(store.grids_dir.iterdir()) == sorted(paths)


def test_missing_and_failed_cells_are_hatched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = small(tmp_path, axes={"edit_threshold": [0.5, 0.8, 0.9, 0.95]})
    frame = load(tmp_path)
    frame.loc[frame["edit_threshold"] == 0.8, "status"] = "failed"
    store.image_file(frame.set_index("edit_threshold").loc[0.9, "image"]).unlink()
    drawn = Drawn(store, monkeypatch, frame[frame["edit_threshold"] != 0.95])
    sheet, at = drawn.first(), lay_out(drawn.first())
    assert notes(sheet) == [[None, "failed", "missing", "not run"]]
    with Image.open(drawn.paths[-1]) as image:
        hatched = pixels(image, at, (at.xs[2], at.ys[0]))
    assert len(np.unique(hatched.reshape(-1, 3), axis=0)) > 2


def damaged() -> bytes:
    """A large PNG with a wrong byte in a later block, of which Pillow makes a SyntaxError."""
    noise_HWC = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise_HWC).save(buffer, format="PNG")
    first = buffer.getvalue().index(b"IDAT")
    second = buffer.getvalue().index(b"IDAT", first + 4)
    return buffer.getvalue()[:second] + b"?" + buffer.getvalue()[second + 1 :]


@pytest.mark.parametrize("content", [b"no picture", damaged()])
def test_an_unreadable_image_is_a_place_like_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    store = small(tmp_path)
    for path in store.images_dir.glob("*/*.png"):
        path.write_bytes(content)
        assert not thumbnails._write(store, path.stem)
    assert len(Drawn(store, monkeypatch).paths) == 1


def test_axes_can_be_asked_for_and_others_are_held_at_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = small(tmp_path, axes={**sweeps.AXES, "edit_warmup_steps": [1, 5]})
    drawn = Drawn(store, monkeypatch, x="edit_warmup_steps", y="edit_threshold")
    sheet = drawn.first()
    assert (sheet.x_name, sheet.y_name) == ("edit_warmup_steps", "edit_threshold")
    assert list(sheet.columns) == ["1", "5"]
    assert any(note.startswith("Held at the verdict's: edit_guidance_scale ") for note in sheet.notes)
    assert sum(tile.marked for row in sheet.rows for tile in row.tiles if tile) == 1


def test_seeds_can_be_columns_with_their_references_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = small(tmp_path, seeds=[0, 1], concepts=[["smile"], ["curls"]])
    sheet = Drawn(store, monkeypatch, x="seed", y="concept").first()
    assert not sheet.references
    assert [(row.label, row.unedited) for row in sheet.rows] == [
        ("unedited", True),
        ("smile", False),
        ("curls", False),
    ]


@pytest.mark.parametrize(
    ("x", "y"), [("edit_threshold", "guidance_scale"), ("guidance_scale", "edit_threshold")]
)
def test_each_edit_stands_with_its_own_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, x: str, y: str
) -> None:
    store = small(tmp_path, axes={"edit_threshold": [0.5, 0.9], "guidance_scale": [3, 5, 7]})
    frame = load(tmp_path).set_index("key")
    sheet = Drawn(store, monkeypatch, x=x, y=y).first()
    unedited: Sequence[Tile | None] = []
    for i, row in enumerate(sheet.rows):
        if row.unedited:
            unedited = row.tiles
            continue
        beside = [sheet.references[i]] * len(row.tiles) if sheet.references else unedited
        for tile, reference in zip(row.tiles, beside, strict=True):
            assert tile is not None
            assert tile.path is not None
            assert reference is not None
            assert reference.path is not None
            assert frame.loc[tile.path.stem, "reference_key"] == reference.path.stem


def test_the_overview_has_concepts_as_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = small(tmp_path, concepts=[["smile"], ["curls"]], seeds=[0, 1])
    sheet = Drawn(store, monkeypatch).sheets["overview"]
    assert (sheet.x_name, sheet.y_name) == ("edit_threshold", "concept")
    assert [row.label for row in sheet.rows] == ["smile", "curls"]
    assert sheet.notes[0] == "seed 0"


def test_without_a_second_axis_concepts_or_seeds_are_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sheets of a single row each, and those whose images the overview has, would only be in the way."""
    drawn = Drawn(small(tmp_path, concepts=[["a"], ["b"]], seeds=[0, 1]), monkeypatch)
    assert list(drawn.sheets) == ["overview", "002-seed-1"]
    assert [sheet.y_name for sheet in drawn.sheets.values()] == ["concept", "concept"]
    alone = Drawn(small(tmp_path / "one", seeds=[0, 1]), monkeypatch)
    assert list(alone.sheets) == ["overview"]
    assert [row.label for row in alone.first().rows] == ["0", "1"]


def test_without_axes_a_sheet_shows_the_concepts_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = Drawn(small(tmp_path, axes={}, concepts=[["a"], ["b"]], seeds=[0, 1]), monkeypatch)
    sheet = drawn.first()
    assert drawn.paths == [
        tmp_path / "grids" / "overview.png"
    ]  # it has both seeds: a sheet of each adds nothing
    assert (sheet.x_name, list(sheet.columns), sheet.y_name) == ("concept", ["a", "b"], "seed")
    assert len(sheet.references) == 2


def test_axes_that_advance_together_do_not_make_a_diagonal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = small(tmp_path, axes={"edit_threshold": [0.5, 0.9], "edit_guidance_scale": [2.0, 8.0]})
    frame = load(tmp_path)
    together = frame["is_reference"] | (
        (frame["edit_threshold"] == 0.5) == (frame["edit_guidance_scale"] == 2.0)
    )
    sheet = Drawn(store, monkeypatch, frame[together]).first()
    assert notes(sheet) == [[None, None]]


@pytest.mark.parametrize(
    ("axis", "labels"),
    [
        ("scheduler=[null,euler]", ["DDIMScheduler", "EulerDiscreteScheduler"]),
        ("height=[null,64]", ["32", "64"]),
        ("edit_cooldown_steps=[null,2]", ["none", "2"]),
        ("edit_cooldown_steps=[[null,2],null,[2,2]]", ["none, 2", "none", "2"]),
        ("negative_prompt=['',blur]", ["(empty)", "blur"]),
        ("reverse_editing_direction=[false,true]", ["false", "true"]),
    ],
)
def test_every_place_of_a_planned_sweep_has_its_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axis: str, labels: list[str]
) -> None:
    """What plan.json declares is what the records say, null and short names included."""
    made = plan(small_sweep.small(tmp_path, "concepts=[[glasses,smile]]", "seeds=1", f"+axes.{axis}"))
    store = Store(tmp_path)
    store.write_plan(manifest.document(made, {}, sweeps.PROVENANCE))
    store.append("0", [sweeps.record(store, cell) for cell in made.cells])
    sheet = Drawn(store, monkeypatch, x=axis.partition("=")[0], y="edit_threshold").first()
    assert list(sheet.columns) == labels
    assert not [row for row in notes(sheet) if any(note is not None for note in row)]


def test_where_most_of_a_plane_was_not_run_seeds_and_concepts_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sheet,) = Drawn(sweeps.scattered(tmp_path), monkeypatch).sheets.values()
    assert (sheet.x_name, sheet.y_name) == ("seed", "concept")
    assert notes(sheet) == [[None] * 3] * 3  # unedited, smiling, glasses


def test_where_one_axis_at_a_time_is_moved_the_others_are_held_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verdict is where the threshold was moved, and there no other scale was tried."""
    zipped = "+zip.edit_threshold=[0.9,0.9,0.9,0.5]", "+zip.edit_guidance_scale=[5,2,8,5]"
    asked = "prompts=[a face]", "concepts=[smile,curls]", "seeds=1", f"output_dir={tmp_path}", "name=moved"
    made, store = plan(compose(*zipped, *asked)), Store(tmp_path / "moved")
    store.prepare()
    store.write_plan(manifest.document(made, {}, sweeps.PROVENANCE))
    for cell in made.cells:
        gain = float(cell.edits[0].edit_threshold == 0.5) if cell.edits else 0.0
        store.append("0", [sweeps.record(store, cell, scores={"clip_concept_delta": gain, "lpips": 0.1})])
    drawn = Drawn(store, monkeypatch)
    for sheet in drawn.sheets.values():
        assert (sheet.x_name, list(sheet.columns)) == ("edit_guidance_scale", ["5", "2", "8"])
        assert notes(sheet) == [[None] * 3] * 2
        assert "Held at what most was tried at: edit_threshold 0.9" in sheet.notes


def test_long_axes_are_thinned_and_the_sheet_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = small(tmp_path, axes={"edit_threshold": [i / 40 for i in range(40)]})
    sheet = Drawn(store, monkeypatch).first()
    assert (sheet.columns[0], sheet.columns[-1], len(sheet.columns)) == ("0", "0.975", 16)
    assert "16 of 40 values of edit_threshold shown" in sheet.notes


def test_values_for_each_concept_and_equal_texts_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = small(tmp_path, axes={"edit_threshold": [0.5, [0.5, 0.9]]}, concepts=[["a", "b"]])
    assert list(Drawn(store, monkeypatch).first().columns) == ["0.5", "0.5, 0.9"]
    frame = load(tmp_path)
    frame["edit_weights"] = [None, 1.0, 2.0]
    labels = [row.label for row in Drawn(store, monkeypatch, frame).sheets["overview"].rows]
    assert labels == ["a + b, edit_weights 1", "a + b, edit_weights 2"]


def test_an_unknown_axis_is_the_users_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"x: this sweep has no axis 'edit_treshold'; it has edit_threshold, prompt"
    ):
        Drawn(small(tmp_path), monkeypatch, x="edit_treshold")


@pytest.mark.parametrize(
    "text", ["../../etc/passwd", "日本" * 300, "a\n0\x1b[31m\ud800", "<b>" + "w" * 2000, " "]
)
def test_hostile_texts_stay_in_their_sheet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    drawn = Drawn(small(tmp_path, prompts=[text], concepts=[[text]]), monkeypatch)
    for path in drawn.paths:
        assert path.parent == tmp_path / "grids"
        assert len(path.name) <= 80
        with Image.open(path) as image:
            assert image.width < 1200


def test_nothing_edited_is_no_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = small(tmp_path)
    frame = load(tmp_path)
    assert Drawn(store, monkeypatch, frame[frame["is_reference"]]).paths == []


@pytest.mark.parametrize(
    ("side", "columns", "tile"), [(64, 3, 192), (8, 1, 192), (512, 3, 512), (512, 16, 256)]
)
def test_tiles_are_neither_tiny_nor_huge(side: int, columns: int, tile: int) -> None:
    sheet = Sheet("t", [], "x", ["1"] * columns, "", [write.Row("", [None] * columns)], [], (side, side))
    assert lay_out(sheet).tile == (tile, tile)


def test_text_is_broken_to_fit() -> None:
    font = lay_out(Sheet("t", [], "x", ["1"], "", [write.Row("", [None])], [], (64, 64))).label
    lines = wrap("a photo of the face of a woman " * 5, font, 150, 3)
    assert len(lines) == 3
    assert all(font.getlength(line) <= 150 for line in lines)
    assert lines[-1].endswith("...")
    assert wrap("short", font, 150, 3) == ["short"]
    assert wrap("w" * 100, font, 1, 2) == ["w", "..."]
    assert wrap("EulerAncestralDiscreteScheduler", font, 192, 3) == ["EulerAncestralDiscrete", "Scheduler"]


def test_the_command_draws_from_the_folder_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = small(tmp_path)
    assert subcommand("grids", tmp_path, "--x", "seed") == 0
    assert capsys.readouterr().out.split() == [
        str(path) for path in sorted(store.grids_dir.iterdir(), reverse=True)
    ]
    assert subcommand("grids", tmp_path / "none") == 2
    assert "holds no sweep" in capsys.readouterr().err
    assert subcommand("grids", tmp_path, "--limit", "-1") == 2
    assert capsys.readouterr().err == "error: limit is -1, but it must be at least 1\n"


def test_a_sheets_file_says_what_it_shows(tmp_path: Path) -> None:
    prompt = "a \N{SNOWMAN} in <b>snow</b>"
    store = small(tmp_path, axes=TWO, prompts=[prompt])
    paths = write_grids(Results.read(store))
    assert write.caption(paths[-1]) == (
        f'edit_threshold across, edit_guidance_scale down; "{prompt}"; smile \N{MIDDLE DOT} seed 0; '
        "Outlined: the verdict over all prompts, concepts and seeds"
    )


def test_a_notebook_is_shown_what_is_left_of_a_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(tmp_path, axes=TWO, concepts=[["smile"], ["hat"]], seeds=[0, 1])
    sheets: list[Sheet] = []
    draw = write.draw
    monkeypatch.setattr(write, "draw", lambda sheet: sheets.append(sheet) or draw(sheet))
    frame = load(tmp_path)
    hat = frame[
        frame["concepts"].str.contains("hat") & (frame["seed"] == 1) & (frame["edit_threshold"] == 0.9)
    ]
    image = sega_bench.grid(hat, x="edit_guidance_scale", y="edit_threshold")
    (sheet,) = sheets
    assert image._repr_png_() is not None
    assert image.size == lay_out(sheet).size
    assert (list(sheet.columns), [row.label for row in sheet.rows]) == (["2", "8"], ["0.9"])
    shown = [tile.path.stem for tile in sheet.rows[0].tiles if tile and tile.path]
    assert shown == list(hat.sort_values("edit_guidance_scale")["key"])
    (reference,) = sheet.references
    assert reference is not None
    assert reference.path is not None
    assert reference.path.stem == hat["reference_key"].iloc[0]


def test_a_frame_that_shows_nothing_is_the_users_mistake(tmp_path: Path) -> None:
    small(tmp_path)
    frame = load(tmp_path)
    for rows, said in (
        (frame[frame["is_reference"]], "no edited cell"),
        (pd.DataFrame(frame.to_dict("list")), "which sweep"),
        (frame, "no axis 'nonsense'"),
    ):
        with pytest.raises(UserError, match=said):
            sega_bench.grid(rows, x="nonsense")


def test_no_table_file_says_where_it_was_made(tmp_path: Path) -> None:
    small(tmp_path)
    write_tables(Results.read(tmp_path))
    for name in ("results.parquet", "results.csv", "summary.csv"):
        assert str(tmp_path).encode() not in (tmp_path / name).read_bytes()
