"""The report in a real browser (``pytest -m browser``; Debian's package is ``chromium``)."""

from __future__ import annotations

import ast
import io
import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from support import study_runs, sweeps
from support.browser import Opened, chromium, open_report

from sega_bench.analysis.claims import claims
from sega_bench.analysis.frames import load
from sega_bench.analysis.groups import ALL
from sega_bench.analysis.results import Results
from sega_bench.analysis.summary import summarise
from sega_bench.cell import Cell
from sega_bench.config import compose
from sega_bench.planning import manifest, planner
from sega_bench.store import Store
from sega_bench.study import answer_files
from sega_bench.study.answers import Answers
from sega_bench.views.report.building import write_report
from sega_bench.views.report.cells import rounded

pytestmark = pytest.mark.browser

EVIL = '<img src=x onerror=alert(1)> it\'s "quoted", ${not: an interpolation} \\'
AXES = "+axes.edit_threshold=[0.5,0.9,0.95]", "+axes.edit_guidance_scale=[3,6]"


def build(store: Store) -> None:
    write_report(Results.read(store))


def quoted(text: str) -> str:
    """A text as Hydra reads it literally, written another way than the page does."""
    doubled = text.replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\${")
    return f'"{doubled}"'


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Cell]]:
    """A folder as a sweep of the face model leaves it, with drawn pictures: some failed, lost and flagged."""
    folder = tmp_path_factory.mktemp("out")
    (folder / "prompts.txt").write_text(f"a photo of the face of a man\n{EVIL}\n")
    pair = "[smile, {text: curls, edit_weights: 0.5}]"
    concepts = f"concepts=[{{text: glasses, reverse_editing_direction: true}}, {pair}]"
    config = compose(
        *AXES, concepts, f"prompts={folder / 'prompts.txt'}", "seeds=2", "name=shown", f"output_dir={folder}"
    )
    plan = planner.plan(config)
    store = Store(folder / "shown")
    store.prepare()
    engine = {"device": "cpu", "dtype": plan.cells[0].dtype}
    store.write_plan(manifest.document(plan, engine, sweeps.PROVENANCE))
    records = [sweeps.record(store, cell) for cell in plan.cells]
    edited = [i for i, cell in enumerate(plan.cells) if cell.edits]
    failed, lost, flagged = edited[1], edited[2], edited[3]
    records[failed] = sweeps.Record(plan.cells[failed], "failed", error="out of <b>luck</b>")
    records[flagged] = sweeps.record(
        store, plan.cells[flagged], scores=sweeps.scores(plan.cells[flagged]) | {"nsfw": 1.0}
    )
    store.append("w0", records)
    store.image_path(plan.cells[lost].key).unlink()
    build(store)
    return store, {cell.key: cell for cell in plan.cells}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def report(browser: Any, planned: tuple[Store, dict[str, Cell]]) -> Iterator[Opened]:
    opened = open_report(browser, planned[0].root)
    yield opened
    opened.page.context.close()
    assert opened.complaints == []
    here = planned[0].root.as_uri()
    assert [url for url in opened.requests if not url.startswith((here, "data:"))] == []


def shown_keys(page: Any) -> list[list[str]]:
    """Of every line of the grid, the keys of the cells that its tiles open, the unedited one first."""
    return page.evaluate(  # type: ignore[no-any-return]
        """[...document.querySelectorAll("#grid tbody tr")].map((line) =>
        [...line.querySelectorAll("button.tile")].map((tile) => sega.columns.key[tile.dataset.row]))"""
    )


def choose(page: Any, name: str, label: str) -> None:
    page.locator(f'#picture-controls select[data-of="{name}"]').select_option(label=label)


def test_it_opens_without_a_complaint_and_texts_stay_texts(report: Opened) -> None:
    page = report.page
    assert page.locator("#facts").inner_text().count("<img src=x onerror=alert(1)>") == 1
    assert page.locator('img[src="x"]').count() == 0
    assert page.title() == "shown: sega_bench"
    assert "1 cell failed" in page.locator("#state").inner_text()


def test_selectors_change_the_grid(report: Opened, planned: tuple[Store, dict[str, Cell]]) -> None:
    cells, page = planned[1], report.page

    def described(key: str) -> tuple[str, int, int, float, float]:
        cell = cells[key]
        edit = cell.edits[0]
        return cell.prompt, len(cell.edits), cell.seed, edit.edit_threshold, edit.edit_guidance_scale

    def expect(prompt: str, concepts: int, seed: int) -> None:
        lines = shown_keys(page)
        wanted = [[(prompt, concepts, seed, t, s) for t in (0.5, 0.9, 0.95)] for s in (3.0, 6.0)]
        assert [[described(key) for key in line[1:]] for line in lines] == wanted
        assert all(cells[line[0]] == cells[line[1]].reference() for line in lines)

    man = "a photo of the face of a man"
    expect(man, 1, 0)
    choose(page, "Seed", "1")
    expect(man, 1, 1)
    choose(page, "Concept", "smile + curls")
    expect(man, 2, 1)
    choose(page, "Prompt", EVIL)
    expect(EVIL, 2, 1)
    choose(page, "Columns", "seed")
    choose(page, "Rows", "concept")
    choose(page, "edit_threshold", "0.9")
    choose(page, "edit_guidance_scale", "3")
    drawn = [[described(key) for key in line] for line in shown_keys(page) if cells[line[0]].edits]
    assert drawn == [[(EVIL, n, seed, 0.9, 3.0) for seed in (0, 1)] for n in (1, 2)]


def test_images_are_those_of_the_cells(report: Opened, planned: tuple[Store, dict[str, Cell]]) -> None:
    page, store = report.page, planned[0]
    choose(page, "Seed", "1")
    sources = page.evaluate(
        """[...document.querySelectorAll("#grid button.tile")].map((tile) =>
        [sega.columns.key[tile.dataset.row], tile.querySelector("img:not(.reference)").src])"""
    )
    assert len(sources) == 8
    assert all(source == store.image_path(key).as_uri() for key, source in sources)


def test_what_has_no_image_says_why(report: Opened) -> None:
    said = report.page.locator("#grid .placeholder").all_inner_texts()
    assert sorted(said) == ["failed", "missing"]


def test_a_flagged_image_is_covered_until_it_is_clicked(report: Opened) -> None:
    page = report.page
    tile = page.locator("#grid .flagged")
    assert tile.count() == 1
    assert "blur" in tile.locator(".veil").evaluate("(veil) => getComputedStyle(veil).filter")
    row = tile.get_attribute("data-row")
    tile.click()
    uncovered = page.locator(f'#grid button[data-row="{row}"] .veil')
    assert uncovered.evaluate("(veil) => getComputedStyle(veil).filter") == "none"
    assert not page.locator("#cell").is_visible()
    page.locator(f'#grid button[data-row="{row}"]').click()
    assert page.locator("#cell .flagged").count() == 1  # the large one is covered too


def test_a_point_shows_and_opens_its_images(report: Opened, planned: tuple[Store, dict[str, Cell]]) -> None:
    page, cells = report.page, planned[1]
    points = page.locator("#tradeoff [role=button]")
    assert points.count() == 6
    first = page.locator('#tradeoff [data-at="0,0"]')
    first.hover(force=True)
    assert page.locator("#tooltip img").count() > 0
    assert "edit_threshold 0.5, edit_guidance_scale 3" in page.locator("#tooltip").inner_text()
    first.click(force=True)
    keys = page.evaluate(
        """[...document.querySelectorAll("#gallery button.tile")]
        .map((tile) => sega.columns.key[tile.dataset.row])"""
    )
    of_setting = {
        key
        for key, cell in cells.items()
        if cell.edits and (cell.edits[0].edit_threshold, cell.edits[0].edit_guidance_scale) == (0.5, 3.0)
    }
    assert set(keys) == of_setting
    page.keyboard.press("Escape")
    page.locator('#tradeoff [data-at="0,1"]').press("Enter")
    assert "edit_guidance_scale 6" in page.locator("#gallery-title").inner_text()
    page.keyboard.press("Escape")
    page.locator("#setting-concept").select_option(label="smile + curls")
    first.press("Enter")
    assert page.locator("#gallery button.tile").count() == len(of_setting) // 2


def test_the_table_filters_and_sorts(report: Opened, planned: tuple[Store, dict[str, Cell]]) -> None:
    page, frame = report.page, load(planned[0].root)
    edited = frame[~frame["is_reference"]]

    def keys() -> list[str]:
        return page.evaluate(
            '[...document.querySelectorAll("#rows [data-key]")].map((row) => row.dataset.key)'
        )  # type: ignore[no-any-return]

    def count_is(count: int) -> None:
        page.locator("#table-note", has_text=f"{count} cell").wait_for()

    def search(text: str, wanted: pd.DataFrame) -> None:
        page.locator("#filter").fill(text)
        count_is(len(wanted))
        assert set(keys()) == set(wanted["key"])

    search("", edited)
    search("edit_threshold>=0.9 seed=1", edited.query("edit_threshold >= 0.9 and seed == 1"))
    search("lpips<0.05 curls", edited[(edited["lpips"] < 0.05) & edited["concepts"].str.contains("curls")])
    search("status=failed", edited.query("status == 'failed'"))
    search("", edited)
    page.locator('[data-sort="lpips"]').click()
    known = edited.assign(lpips=edited["lpips"].map(rounded, na_action="ignore"))
    ascending = list(known.sort_values("lpips", kind="stable")["key"])
    assert keys() == ascending
    page.locator('[data-sort="lpips"]').click()
    lost = int(edited["lpips"].isna().sum())
    assert keys()[-lost:] == ascending[-lost:]
    assert known.set_index("key").loc[keys()[:-lost], "lpips"].is_monotonic_decreasing
    page.locator("#with-references").check()
    count_is(len(frame))


def test_what_is_copied_makes_the_same_cell(
    report: Opened, planned: tuple[Store, dict[str, Cell]], tmp_path: Path
) -> None:
    page, cells = report.page, planned[1]
    chosen = [key for key, cell in cells.items() if cell.prompt == EVIL]
    chosen = [next(key for key in chosen if len(cells[key].edits) == n) for n in (0, 1, 2)]
    for key in chosen:
        row = page.evaluate(f'sega.columns.key.indexOf("{key}")')
        page.evaluate(f"openCell({row}, [{row}])")
        page.locator("#copy-command").click()
        words = shlex.split(page.evaluate("window.copied"))
        assert words[:3] == ["python", "-m", "sega_bench"]
        made = planner.plan(compose(*words[3:], f"output_dir={tmp_path}"))
        assert key in {cell.key for cell in made.cells}
        page.locator("#copy-call").click()
        assert_is_call(page.evaluate("window.copied"), cells[key])
        page.keyboard.press("Escape")


def test_claims_areas_and_where_scores_come_from_are_told(
    report: Opened, planned: tuple[Store, dict[str, Cell]]
) -> None:
    page, frame = report.page, load(planned[0].root)
    summary = summarise(frame, ["edit_threshold", "edit_guidance_scale"])
    lines = page.locator("#areas-table tbody tr").all_inner_texts()
    best = summary[summary["best"]]
    assert len(lines) == len(best) == 3
    for line, (_, row) in zip(lines, best.iterrows(), strict=True):
        assert f"{row['front_area']:.3f}" in line
        assert f"edit_threshold {row['edit_threshold']:g}" in line
    told = claims(frame, ["edit_threshold", "edit_guidance_scale"])
    wanted = told[(told["concepts"] == ALL) & ~told["measure"].str.startswith("flipped")]
    shown = page.locator("#claims-list tbody tr")
    assert shown.count() == len(wanted) > 0
    assert f"{wanted['value'].iloc[0]:.3f}" in shown.first.inner_text()
    page.locator("#claims-concept").select_option(label="smile + curls")
    one = told[told["concepts"].str.contains("smile") & ~told["measure"].str.startswith("flipped")]
    assert f"{one['value'].iloc[0]:.3f}" in shown.first.inner_text()
    page.locator("#facts summary", has_text="show").last.click()
    assert sweeps.PROVENANCE["clip"]["weights"] in page.locator("#facts").inner_text()


def test_where_settings_hardly_meet_the_grid_is_of_seeds_and_concepts(tmp_path: Path, browser: Any) -> None:
    """As of a study, which asks for settings here and there."""
    store = sweeps.scattered(tmp_path)
    build(store)
    opened = open_report(browser, store.root)
    keys = [[key for key in line if key] for line in shown_keys(opened.page)]
    frame = load(store.root).set_index("key")
    assert opened.page.locator("#grid .placeholder").count() == 0
    assert [frame["seed"][line].tolist() for line in keys] == [[0, 1, 2]] * 3  # unedited, smiling, glasses
    assert frame["concepts"][keys[0]].tolist() == ["[]"] * 3
    assert len({*frame["edit_threshold"][[*keys[1], *keys[2]]]}) == 1
    assert opened.complaints == []
    opened.page.context.close()


def test_where_one_axis_at_a_time_is_moved_the_grid_is_of_what_was_run(browser: Any, tmp_path: Path) -> None:
    zipped = "+zip.edit_threshold=[0.9,0.5,0.95,0.9,0.9]", "+zip.edit_guidance_scale=[5,5,5,2,8]"
    asked = "prompts=[a face]", "concepts=[smile,curls]", "seeds=1", "name=moved"
    plan = planner.plan(compose(*zipped, *asked, f"output_dir={tmp_path}"))
    store = Store(tmp_path / "moved")
    store.prepare()
    store.write_plan(
        manifest.document(plan, {"device": "cpu", "dtype": plan.cells[0].dtype}, sweeps.PROVENANCE)
    )
    store.append("w0", [sweeps.record(store, cell) for cell in plan.cells])
    build(store)
    opened = open_report(browser, store.root)
    page, cells = opened.page, {cell.key: cell for cell in plan.cells}

    def settings() -> list[list[tuple[float, float]]]:
        edits = [[cells[key].edits for key in line] for line in shown_keys(page)]
        return [[(e[0].edit_threshold, e[0].edit_guidance_scale) for e in line if e] for line in edits]

    assert settings() == [[(0.9, 5.0), (0.5, 5.0), (0.95, 5.0)]] * 2
    choose(page, "Columns", "edit_guidance_scale")
    assert settings() == [[(0.9, 5.0), (0.9, 2.0), (0.9, 8.0)]] * 2
    assert page.locator("#grid .placeholder").count() == 0
    page.context.close()
    assert opened.complaints == []


def test_the_band_is_of_the_change_or_of_the_mean(report: Opened) -> None:
    def heights() -> list[float]:
        return report.page.evaluate(  # type: ignore[no-any-return]
            """[...document.querySelectorAll("#curves [aria-label=area] path")]
            .map((path) => path.getBBox().height)"""
        )

    change = heights()
    report.page.locator("#curve-band").select_option("mean")
    assert len(heights()) == len(change) > 0
    assert heights() != change
    assert "what other prompts and seeds may come to" in report.page.locator("#curve-note").inner_text()


def test_a_prompt_with_a_seed_of_its_own_is_shown_with_it(browser: Any, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    plan = [
        cell
        for prompt, seed in (("a", 3), ("b", 4))
        for cell in sweeps.cells(sweeps.AXES, [prompt], [["x"]], [seed])
    ]
    sweeps.write_plan(store, plan, sweeps.AXES)
    store.append("w0", [sweeps.record(store, cell) for cell in plan])
    build(store)
    opened = open_report(browser, tmp_path)
    of_prompt = {prompt: {c.key for c in plan if c.prompt == prompt} for prompt in "ab"}
    for prompt, key, label in (("a", "Prompt", "a"), ("b", "Prompt", "b"), ("a", "Seed", "3")):
        choose(opened.page, key, label)
        assert {key for line in shown_keys(opened.page) for key in line} == of_prompt[prompt]
    opened.page.context.close()
    assert opened.complaints == []


def test_a_baselines_command_makes_the_same_cell(browser: Any, tmp_path: Path) -> None:
    asked = "+axes.method=[sega,composable,prompt]", "prompts=[a face]", "concepts=[glasses]", "seeds=1"
    plan = planner.plan(compose(*asked, "name=methods", f"output_dir={tmp_path}"))
    store = Store(tmp_path / "methods")
    store.prepare()
    engine = {"device": "cpu", "dtype": plan.cells[0].dtype}
    store.write_plan(manifest.document(plan, engine, sweeps.PROVENANCE))
    store.append("w0", [sweeps.record(store, cell) for cell in plan.cells])
    build(store)
    opened = open_report(browser, store.root)
    commands = {
        cell: opened.page.evaluate(f'command(sega.columns.key.indexOf("{cell.key}"))') for cell in plan.cells
    }
    opened.page.context.close()
    assert {cell.method for cell in commands if cell.edits} == {"sega", "composable", "prompt"}
    for cell, text in commands.items():
        made = planner.plan(compose(*shlex.split(text)[3:], f"output_dir={tmp_path}"))
        assert cell.key in {found.key for found in made.cells}
    assert opened.complaints == []


def assert_is_call(text: str, cell: Cell) -> None:
    call = ast.parse(text).body[0]
    assert isinstance(call, ast.Expr)
    assert isinstance(call.value, ast.Call)
    given = {
        keyword.arg: ast.literal_eval(keyword.value)
        for keyword in call.value.keywords
        if keyword.arg != "generator"
    }
    assert f"manual_seed({cell.seed})" in text
    for name in (
        "prompt",
        "negative_prompt",
        "num_inference_steps",
        "guidance_scale",
        "height",
        "width",
        "eta",
    ):
        assert given.pop(name) == getattr(cell, name)
    if cell.edits:
        assert given.pop("editing_prompt") == [edit.concept for edit in cell.edits]
        for name in ("edit_momentum_scale", "edit_mom_beta"):
            assert given.pop(name) == getattr(cell, name)
    for name, values in given.items():
        assert values == [getattr(edit, name) for edit in cell.edits]


def test_the_slider_and_the_arrow_keys(report: Opened) -> None:
    page = report.page
    choose(page, "Seed", "1")
    page.locator("#grid td button").nth(1).click()
    first = page.locator("#cell .mono").last.inner_text()
    slider = page.locator("#cell input[type=range]")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#cell .slider").evaluate("(box) => box.style.getPropertyValue('--cut')") == "49%"
    assert page.locator("#cell .mono").last.inner_text() == first  # the key is the slider's
    page.locator("#cell .close").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#cell .mono").last.inner_text() != first
    page.keyboard.press("Escape")
    assert not page.locator("#cell").is_visible()
    tiles = page.locator("#grid td button")
    tiles.nth(0).focus()
    page.keyboard.press("ArrowRight")
    assert tiles.nth(1).evaluate("(tile) => tile === document.activeElement")


def test_the_difference_is_black_where_nothing_moved(
    report: Opened, planned: tuple[Store, dict[str, Cell]]
) -> None:
    page, store = report.page, planned[0]
    choose(page, "Seed", "1")
    page.locator('#picture-mode input[value="difference"]').check(force=True)
    tile = page.locator("#grid tbody tr").last.locator("td button").nth(1)
    key = page.evaluate("(row) => sega.columns.key[row]", tile.get_attribute("data-row"))
    with Image.open(io.BytesIO(tile.screenshot())) as image:
        shown = np.asarray(image.convert("L").resize((64, 64), Image.Resampling.BOX), dtype=float)
    cell = planned[1][key]
    edit, reference = (store.read_image(k).astype(int) for k in (key, cell.reference().key))
    moved = np.abs(edit - reference).sum(axis=2)
    same = np.ones_like(moved, dtype=bool)
    for y, x in zip(*np.nonzero(moved), strict=True):
        same[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = False
    assert same[4:-4, 4:-4].sum() > 500
    assert shown[4:-4, 4:-4][same[4:-4, 4:-4]].max() < 16
    assert shown[moved > 200].mean() > 60


def test_a_sweep_that_is_half_written(browser: Any, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    plan = sweeps.cells(sweeps.AXES, sweeps.PROMPTS, [["smile"]], [0])
    sweeps.write_plan(store, plan, sweeps.AXES)
    for count in (0, 5):
        store.append("w0", [sweeps.record(store, cell) for cell in plan[:count]])
        build(store)
        opened = open_report(browser, tmp_path)
        note = opened.page.locator("#half-written").inner_text()
        assert f"{count} of 13 cells are done, 0 failed, {13 - count} not run yet" in note
        assert opened.page.locator("#grid td button").count() == (0 if count == 0 else count + 2)
        assert opened.complaints == []
        opened.page.context.close()


def test_it_goes_wherever_its_folder_is_copied(
    browser: Any, planned: tuple[Store, dict[str, Cell]], tmp_path: Path
) -> None:
    copied = tmp_path / "it's #1 100%"
    shutil.copytree(planned[0].root, copied)
    opened = open_report(browser, copied)
    loaded = opened.page.evaluate(
        """Promise.all([...document.querySelectorAll("#grid img")].map((image) =>
        (image.loading = "eager", image.decode().then(() => true, () => false))))"""
    )
    opened.page.context.close()
    assert loaded
    assert all(loaded)
    assert opened.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_on_a_phone_by_day_and_night(
    browser: Any, planned: tuple[Store, dict[str, Cell]], scheme: str
) -> None:
    opened = open_report(
        browser, planned[0].root, viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True
    )
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    background, ink = (
        sum(
            json.loads(
                page.evaluate(f"getComputedStyle(document.body).{name}")
                .replace("rgb(", "[")
                .replace(")", "]")
            )
        )
        for name in ("backgroundColor", "color")
    )
    assert (background < ink) == (scheme == "dark")
    page.locator("#theme").click()
    switched = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(json.loads(switched.replace("rgb(", "[").replace(")", "]"))) < 300) == (scheme == "light")
    page.context.close()
    assert opened.complaints == []


def study_page(browser: Any, folder: Path, *words: str, **options: Any) -> tuple[Answers, Opened]:
    """A small study's answers, and its page; ``space`` is the study's, other options are the browser's."""
    space = {"space": options.pop("space")} if "space" in options else {}
    found = study_runs.run_study(study_runs.small_study(folder, *words, **space))
    store = study_runs.store(folder)
    answer_files.write(store, found)
    build(store)
    return found, open_report(browser, store.root, **options)


def starred(page: Any) -> dict[str, Any] | None:
    """The values of the setting that the page marks best over all concepts."""
    return page.evaluate(  # type: ignore[no-any-return]
        """(() => {
          const { settings, axes, values } = sega.sweep;
          const star = settings.find(({ set, best }) => set < 0 && best);
          return star ? Object.fromEntries(axes.map((axis, i) => [axis, values[axis][star.at[i]]])) : null;
        })()"""
    )


def test_a_study_says_which_setting_to_use_what_moves_it_and_what_it_cost(
    browser: Any, tmp_path: Path
) -> None:
    words = ("study.held_out.seeds=[100,101]", "study.trials=12", "study.min_resource=null")
    found, opened = study_page(browser, tmp_path, *words)
    page, best, apart = opened.page, found.best[0], found.held_out[0]
    cards = page.locator("#recommended .card")
    assert cards.count() == len(found.best) == 3
    told = cards.nth(0).inner_text()
    for estimated in (best.scores[0], apart.scores[0], apart.over_baseline[1]):
        assert f"{estimated.mean:.3f}".lstrip("-") in told
    assert starred(page) == pytest.approx(dict(best.trial.params))
    assert [page.locator(f'nav a[href="#{name}"]').is_visible() for name in ("study", "axes")] == [
        True,
        False,
    ]
    objectives = [one.name for one in found.study.settings.objectives]
    charts, choose = page.locator("#importance figure"), page.locator("#moved-score")
    before = charts.first.inner_html()
    choose.select_option(objectives[1])
    assert charts.first.inner_html() != before
    choose.select_option(objectives[0])
    mine = [curve.importance for curve in found.curves if curve.objective == objectives[0]]
    shares = [
        said.replace("\N{NO-BREAK SPACE}", "")
        for said in page.locator("#importance .badge").all_inner_texts()
    ]
    assert shares == [f"{importance:.0%}" for importance in sorted(mine, reverse=True)]
    assert page.locator("#cost svg circle").count() == 12
    assert opened.complaints == []
    page.context.close()


def test_a_range_in_logarithms_has_an_axis_of_them(browser: Any, tmp_path: Path) -> None:
    space = ["+study.space.edit_guidance_scale={low: 0.5, high: 32, log: true}"]
    found, opened = study_page(browser, tmp_path, "study.trials=8", "study.min_resource=null", space=space)
    circles = opened.page.locator("#importance svg circle")
    across = sorted(float(circle.get_attribute("cx") or "nan") for circle in circles.all())
    assert len(across) == len(found.curves[0].values) == 9
    assert np.diff(across) == pytest.approx(np.full(8, np.diff(across).mean()), rel=0.01)
    opened.page.context.close()


def test_a_study_of_names_that_recommends_nothing(browser: Any, tmp_path: Path) -> None:
    space = ["+study.space.scheduler=[euler,ddim,lms,pndm,unipc,dpmsolver,heun,ddpm]"]
    words = ("study.sampler=grid", "study.min_resource=null", "study.constraints=['lpips <= -1']")
    found, opened = study_page(browser, tmp_path, *words, space=space)
    page = opened.page
    assert (found.best, starred(page)) == ((), None)
    assert "recommends no setting" in page.locator("#best").inner_text()
    assert "No setting is recommended" in page.locator("#recommended-note").inner_text()
    assert page.locator("#importance svg circle").count() == len(found.trials) == 8
    assert page.locator("#importance svg path[stroke-width='2']").count() == 0  # names have no order
    assert opened.complaints == []
    page.context.close()


def test_a_study_of_few_trials_fits_a_phone(browser: Any, tmp_path: Path) -> None:
    space = ["+study.space.edit_threshold={low: 0.1, high: 0.9, per_concept: true}"]
    words = ("concepts=[[glasses, smile]]", "study.trials=4", "study.min_resource=null")
    found, opened = study_page(browser, tmp_path, *words, space=space, viewport={"width": 360, "height": 740})
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert not page.locator("#moved").is_visible()
    values = [
        f"{name} {value:.6g}"
        for name, value in zip(("glasses", "smile"), found.best[0].trial.params.values(), strict=True)
    ]
    told = page.locator("#recommended .card").inner_text()
    assert all(value in " ".join(told.split()) for value in values)
    assert opened.complaints == []
    page.context.close()
