from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support import sweeps

from sega_bench.analysis import advice as advice_of
from sega_bench.analysis.advice import next_steps
from sega_bench.analysis.columns import to_frame
from sega_bench.analysis.frames import load
from sega_bench.analysis.groups import ALL
from sega_bench.analysis.results import Results
from sega_bench.analysis.scores import GAIN
from sega_bench.analysis.summary import areas, curve, interval_around, summarise, summarised_scores, trends
from sega_bench.analysis.table_files import write_tables
from sega_bench.cell import Cell, Edit
from sega_bench.errors import UserError
from sega_bench.stats.random_effects import mean_interval
from sega_bench.store import Record, Store

AXES = list(sweeps.AXES)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return sweeps.finished(tmp_path_factory.mktemp("sweep"))


def frame_of(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A frame of edited cells: each row's ``threshold`` and scores, the rest the same."""
    made = []
    for i, row in enumerate(rows):
        edit = Edit(row.get("concept", "smile"), edit_threshold=row["threshold"])
        cell = Cell("a face", row.get("seed", i), (edit,), edit_mom_beta=i / len(rows))
        taken = {name: row[name] for name in ("clip_concept_delta", "lpips") if name in row}
        made.append(Record(cell, row.get("status", "done"), scores=taken).row())
    frame = to_frame(made)
    frame.attrs = {"name": "made", "scores": {}}
    return frame


def pooled(summary: pd.DataFrame) -> pd.DataFrame:
    return summary[summary["concepts"] == ALL].set_index("edit_threshold")


# --- one row a cell ---


def test_load_gives_the_plans_cells_in_its_order(sweep: Store) -> None:
    frame = load(sweep.root)
    plan = sweep.read_plan()
    assert plan is not None
    assert list(frame["key"]) == plan["keys"]
    assert frame.attrs == {"name": "synthetic", "scores": sweeps.PROVENANCE, "folder": str(sweep.root)}


def test_load_leaves_out_what_the_plan_does_not_have_and_what_never_ran(tmp_path: Path) -> None:
    store = sweeps.finished(tmp_path, seeds=[0, 1])
    smaller = sweeps.cells(sweeps.AXES, sweeps.PROMPTS, sweeps.CONCEPTS, [1, 2])
    sweeps.write_plan(store, smaller, sweeps.AXES)
    assert set(load(tmp_path)["seed"]) == {1}


def test_load_of_no_sweep_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no sweep .*outputs/"):
        load(tmp_path)


def test_settings_on_which_concepts_agree_are_plain_values() -> None:
    cell = Cell("p", 0, (Edit("a", edit_cooldown_steps=7), Edit("b", edit_cooldown_steps=7)))
    frame = to_frame([Record(c, "done").row() for c in (cell.reference(), cell)])
    assert frame["edit_threshold"].dtype == "float64"
    assert frame["edit_threshold"].tolist()[1] == 0.9
    assert frame["edit_cooldown_steps"].tolist() == [pd.NA, 7]
    assert frame["reverse_editing_direction"].tolist() == [pd.NA, False]
    assert json.loads(frame["concepts"][1]) == ["a", "b"]
    assert frame["concepts"][0] == "[]"


def test_one_row_that_needs_a_list_makes_its_column_json() -> None:
    agreed = Cell("p", 0, (Edit("a"), Edit("b")))
    mixed = Cell("p", 1, (Edit("a", edit_cooldown_steps=3), Edit("b", edit_threshold=0.5)))
    frame = to_frame([Record(c, "done").row() for c in (agreed.reference(), agreed, mixed)])
    assert pd.isna(frame["edit_threshold"][0])
    assert [json.loads(value) for value in frame["edit_threshold"].dropna()] == [0.9, [0.9, 0.5]]
    assert [json.loads(value) for value in frame["edit_cooldown_steps"].dropna()] == [[3, None]]
    assert frame["edit_weights"].dtype == "float64"


def test_the_largest_seed_keeps_every_digit(tmp_path: Path) -> None:
    frame = to_frame([Record(Cell("p", 2**63 - 1), "done").row()])
    assert frame["seed"][0] == 2**63 - 1


def test_parquet_and_csv_come_back(tmp_path: Path) -> None:
    prompts = ["a\rb", 'say "x", please\nnow', "=1+1", "日本", "\ud800"]
    store = sweeps.finished(tmp_path, axes={"edit_threshold": [0.5, 0.9]}, prompts=prompts, seeds=[0])
    frame = load(tmp_path)
    results = Results.read(store)
    summary = results.summary
    write_tables(results)
    parquet = pd.read_parquet(store.results_parquet)
    pd.testing.assert_frame_equal(parquet, frame)
    described = {name: value for name, value in parquet.attrs.items() if name not in ("csv", "digest")}
    assert described | {"folder": frame.attrs["folder"]} == frame.attrs
    assert parquet.attrs["digest"] == results.digest
    assert "folder" not in parquet.attrs  # it may be moved
    csv = pd.read_csv(store.results_csv)
    assert list(csv.columns) == list(frame.columns)
    inert = frame["prompt"].replace("=1+1", "'=1+1")  # a spreadsheet would execute it
    assert csv["prompt"].tolist() == inert.tolist()
    np.testing.assert_array_equal(csv["lpips"], frame["lpips"])
    assert csv["is_reference"].dtype == bool
    assert len(pd.read_csv(store.summary_csv)) == len(summary)


# --- one row a setting ---


def test_a_summary_has_each_setting_pooled_and_for_each_concept_set(sweep: Store) -> None:
    summary = summarise(load(sweep.root), AXES)
    assert len(summary) == 12 * (1 + 2)
    assert set(summary[summary["concepts"] == ALL]["n"]) == {6}
    assert summary.groupby("concepts")["best"].sum().tolist() == [1, 1, 1]


def test_what_a_study_found_is_best_and_all_else_is_set_against_it(sweep: Store) -> None:
    frame = load(sweep.root)
    concepts = json.loads(frame.loc[~frame["is_reference"], "concepts"].iloc[0])
    ends = [{axis: pick(frame[axis].dropna()) for axis in AXES} for pick in (min, max)]
    best = [{"concepts": of, "settings": place} for of, place in zip((None, concepts), ends, strict=True)]
    every = [json.loads(name) for name in frame.loc[~frame["is_reference"], "concepts"].unique()]
    summary = summarise(frame, AXES, {"concepts": every, "best": best})
    marked = summary.query("best").set_index("concepts")
    assert marked.loc[ALL, AXES].to_dict() == ends[0]
    assert marked.loc[json.dumps(concepts), AXES].to_dict() == ends[1]
    assert len(marked) == 2 < 1 + len(every)  # of one concept it found nothing
    assert (marked["lpips_gap"] == 0).all()
    only = summarise(frame, AXES, {"concepts": [concepts], "best": best[:1]}).query("best")
    assert (only[AXES] == pd.Series(ends[0])).all(axis=None)
    assert not summarise(frame, AXES, {})["best"].any()  # it has not ended


def test_means_and_deviations_are_those_of_the_cells() -> None:
    gains = [0.1, 0.3, 0.8]
    frame = frame_of([{"threshold": 0.5, "clip_concept_delta": gain, "lpips": 0.1} for gain in gains])
    row = summarise(frame, ["edit_threshold"]).iloc[0]
    assert row["clip_concept_delta_mean"] == pytest.approx(np.mean(gains))
    assert row["clip_concept_delta_sd"] == pytest.approx(np.std(gains, ddof=1))
    assert row["lpips_low"] == pytest.approx(0.1)
    assert row["lpips_high"] == pytest.approx(0.1)


def test_no_axes_is_one_setting(sweep: Store) -> None:
    summary = summarise(load(sweep.root), [])
    assert summary["concepts"].tolist() == [ALL, '["smiling, smile"]', '["glasses, wearing glasses"]']
    assert summary["best"].all()


def test_what_was_not_scored_is_skipped_and_counted() -> None:
    rows = [
        {"threshold": 0.5, "clip_concept_delta": 0.2, "lpips": 0.1},
        {"threshold": 0.5, "lpips": 0.3},
        {"threshold": 0.5, "status": "failed"},
        {"threshold": 0.9},
    ]
    summary = pooled(summarise(frame_of(rows), ["edit_threshold"]))
    assert summary.loc[0.5, ["n", "n_not_scored", "n_failed"]].tolist() == [2, 1, 1]
    assert summary.loc[0.5, "clip_concept_delta_mean"] == 0.2
    assert summary.loc[0.5, "lpips_mean"] == pytest.approx(0.2)
    assert summary.loc[0.9, "n_not_scored"] == 1
    assert math.isnan(summary.loc[0.9, "clip_concept_delta_mean"])
    assert not summary.loc[0.9, "pareto"]


def test_nothing_scored_is_nothing_best() -> None:
    summary = summarise(frame_of([{"threshold": 0.5}, {"threshold": 0.9}]), ["edit_threshold"])
    assert summary["clip_concept_delta_mean"].isna().all()
    assert not summary["best"].any()
    assert not summary["pareto"].any()
    assert summary["n_not_scored"].tolist() == [1, 1, 1, 1]


def test_references_alone_have_no_settings() -> None:
    frame = to_frame([Record(Cell("p", 0), "done", scores={"clip_prompt": 0.3}).row()])
    summary = summarise(frame, ["edit_threshold"])
    assert summary.empty
    assert "clip_concept_delta_mean" in summary.columns


def test_null_is_a_value_of_an_axis() -> None:
    cells = [Cell("p", 0, (Edit("a", edit_cooldown_steps=steps),)) for steps in (None, 20)]
    summary = summarise(to_frame([Record(cell, "done").row() for cell in cells]), ["edit_cooldown_steps"])
    assert summary["edit_cooldown_steps"].tolist() == [pd.NA, 20] * 2
    assert summary["edit_cooldown_steps"].dtype == "Int64"


# --- trade-offs ---


@pytest.mark.parametrize("is_there", [True, False])
def test_a_setting_is_not_praised_for_the_cells_that_it_lacks(is_there: bool) -> None:
    """Where hard faces failed, or are still to come, the easy ones are compared with the same easy ones."""
    rows = []
    for seed in range(4):
        easy = seed < 2
        gain, cost = (0.6, 0.1) if easy else (0.2, 0.4)
        rows.append({"threshold": 0.5, "seed": seed, "clip_concept_delta": gain, "lpips": cost})
        if easy:
            worse = {"clip_concept_delta": gain - 0.05, "lpips": cost + 0.02}
            rows.append({"threshold": 0.9, "seed": seed, **worse})
        elif is_there:
            rows.append({"threshold": 0.9, "seed": seed, "status": "failed"})
    summary = pooled(summarise(frame_of(rows), ["edit_threshold"]))
    assert summary["best"].to_dict() == {0.5: True, 0.9: False}
    assert summary["pareto"].to_dict() == {0.5: True, 0.9: False}
    assert summary.loc[0.9, "clip_concept_delta_mean"] == pytest.approx(0.55)  # its own, as it is
    assert summary.loc[0.9, "area"] == pytest.approx(0.35 * (1 - 0.27))  # of what it would be on all
    assert trends(frame_of(rows), ["edit_threshold"])["peak"].item() == 0.5


def test_areas_are_of_a_setting_alone_and_of_the_front() -> None:
    rows = [
        {"threshold": 0.5, "seed": 0, "clip_concept_delta": 0.4, "lpips": 0.5},
        {"threshold": 0.5, "seed": 1, "clip_concept_delta": 0.6, "lpips": 0.5},
        *({"threshold": 0.9, "seed": seed, "clip_concept_delta": 0.2, "lpips": 0.0} for seed in (0, 1)),
        *({"threshold": 0.99, "seed": seed, "clip_concept_delta": 0.1, "lpips": 0.3} for seed in (0, 1)),
    ]
    summary = pooled(summarise(frame_of(rows), ["edit_threshold"]))
    assert summary["area"].tolist() == pytest.approx([0.5 * 0.5, 0.2, 0.1 * 0.7])
    assert summary["front_area"].tolist() == pytest.approx([0.2 + 0.3 * 0.5] * 3)
    assert summary["pareto"].tolist() == [True, True, False]


def test_areas_compare_the_values_of_an_axis_over_the_others(sweep: Store) -> None:
    summary = summarise(load(sweep.root), AXES)
    found = areas(summary, "edit_threshold")
    assert len(found) == 3 * 4
    assert set(found["settings"]) == {3}
    for _, row in found.iterrows():
        part = summary[summary["concepts"] == row["concepts"]]
        own = part[part["edit_threshold"] == row["edit_threshold"]]
        assert own["area"].max() <= row["area"] <= part["front_area"].iloc[0]


def test_other_scores_are_reduced_where_they_were_taken() -> None:
    cells = [Cell("p", seed, (Edit("a"),)) for seed in range(3)]
    taken = [
        {"success": float(seed > 0), "nsfw": 0.0, "clip_concept_1": 0.1, "novel": math.nan}
        for seed in range(3)
    ]
    frame = to_frame([Record(cell, "done", scores=one).row() for cell, one in zip(cells, taken, strict=True)])
    assert set(summarised_scores(frame)) - set(summarised_scores(frame.iloc[:0])) == {"success", "nsfw"}
    summary = summarise(frame, [])
    assert summary["success_mean"].tolist() == pytest.approx([2 / 3, 2 / 3])
    assert summary["success_n"].tolist() == [3, 3]
    assert summary[f"{GAIN}_n"].tolist() == [0, 0]
    assert "clip_concept_1_mean" not in summary


def test_what_references_score_is_set_beside_it() -> None:
    cells = [Cell("p", seed, (Edit("a", edit_threshold=q),)) for seed in range(4) for q in (0.5, 0.9)]
    records = [
        Record(c, "done", scores={"nsfw": float(c.seed == 0 and c.edits[0].edit_threshold > 0.6)})
        for c in cells
    ]
    records += [Record(c.reference(), "done", scores={"nsfw": float(c.seed < 3)}) for c in cells[::2]]
    summary = pooled(summarise(to_frame([record.row() for record in records]), ["edit_threshold"]))
    assert summary["nsfw_mean"].tolist() == [0.0, 0.25]
    assert summary["nsfw_unedited_mean"].tolist() == [0.75, 0.75]
    assert f"{GAIN}_unedited_mean" not in summary


def test_intervals_are_over_prompts_and_seeds_not_over_cells() -> None:
    """Ten concepts on two images say as little as one: only the images are independent of each other."""
    cells = [Cell("p", seed, (Edit(f"c{k}"),)) for seed in range(2) for k in range(10)]
    frame = to_frame([Record(c, "done", scores={GAIN: float(c.seed)}).row() for c in cells])
    row = summarise(frame, []).iloc[0]
    low, high = stats.t.interval(0.95, 1, loc=0.5, scale=0.5)
    assert (row[f"{GAIN}_low"], row[f"{GAIN}_high"]) == pytest.approx((low, high))
    assert row[f"{GAIN}_mean"] == 0.5
    assert row[f"{GAIN}_n"] == 20


# --- trends and advice ---


def test_trends_are_rank_correlations_of_the_means(sweep: Store) -> None:
    found = trends(load(sweep.root), AXES).set_index("axis")
    assert found.loc["edit_threshold", ["values", "clip_concept_delta", "lpips"]].tolist() == [4, -1.0, -1.0]
    assert found.loc["edit_guidance_scale", ["values", "peak", "clip_concept_delta"]].tolist() == [
        3,
        8.0,
        1.0,
    ]


def test_a_trend_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    gains = np.random.default_rng(3).normal(size=8)
    rows = [{"threshold": i / 10, "clip_concept_delta": gain, "lpips": 1.0} for i, gain in enumerate(gains)]
    found = trends(frame_of(rows), ["edit_threshold"]).iloc[0]
    assert found["clip_concept_delta"] == pytest.approx(stats.spearmanr(range(8), gains).statistic)
    assert math.isnan(found["lpips"])  # it never changes


def test_two_values_make_no_trend_and_texts_none_either() -> None:
    frame = frame_of([{"threshold": t, "clip_concept_delta": t, "lpips": t} for t in (0.5, 0.9)])
    found = trends(frame, ["edit_threshold", "negative_prompt"])
    assert found["axis"].tolist() == ["edit_threshold"]
    assert math.isnan(found["clip_concept_delta"][0])


def test_where_one_axis_at_a_time_is_moved_the_others_are_held() -> None:
    """0.9 is the usual threshold, and only there the scale was moved; other thresholds would outdo it."""
    rows = []
    for threshold, scale, gain in ((0.9, 5, 0.5), (0.5, 5, 0.9), (0.7, 5, 0.7), (0.9, 2, 0.1), (0.9, 8, 0.6)):
        edit = Edit("a", edit_threshold=threshold, edit_guidance_scale=scale)
        rows.append(Record(Cell("p", 0, (edit,)), "done", scores={GAIN: gain, "lpips": gain}).row())
    found = trends(to_frame(rows), ["edit_threshold", "edit_guidance_scale"]).set_index("axis")
    assert found[GAIN].tolist() == [-1.0, 1.0]  # by all means at scale 5, 0.7 would be the best scale
    assert found["values"].tolist() == [3, 3]


def moved(*settings: tuple[float, float, float], method: str = "sega") -> list[dict[str, Any]]:
    """Rows of threshold, scale and gain, two seeds each, of which the second gains 0.2 more."""
    return [
        Record(
            Cell("p", seed, (Edit("a", edit_threshold=t, edit_guidance_scale=s),), method=method),
            "done",
            scores={GAIN: gain + 0.2 * seed, "lpips": gain},
        ).row()
        for t, s, gain in settings
        for seed in range(2)
    ]


BOTH = ["edit_threshold", "edit_guidance_scale"]


def test_a_curve_compares_like_with_like() -> None:
    """One setting at a time is moved from (0.9, 5); a mean over all of scale 5 would be 0.7."""
    frame = to_frame(moved((0.9, 5, 0.5), (0.5, 5, 0.9), (0.7, 5, 0.7), (0.9, 2, 0.1), (0.9, 8, 0.6)))
    found = curve(frame, "edit_guidance_scale", BOTH)
    own = found[found["concepts"] == ALL].set_index("edit_guidance_scale")
    assert own[f"{GAIN}_mean"].to_dict() == pytest.approx({5: 0.6, 2: 0.2, 8: 0.7})
    assert own["n"].tolist() == [2, 2, 2]
    assert own[f"{GAIN}_within"].to_dict() == pytest.approx({5: 0.1, 2: -0.3, 8: 0.2})
    low, high = interval_around(own, GAIN, "within")  # both seeds have the same curve
    assert low.tolist() == pytest.approx(own[f"{GAIN}_mean"].tolist())
    assert high.tolist() == pytest.approx(own[f"{GAIN}_mean"].tolist())
    half = 0.1 * stats.t.ppf(0.975, 1)  # the two seeds are 0.2 apart
    assert own[f"{GAIN}_high"].iloc[0] - own[f"{GAIN}_low"].iloc[0] == pytest.approx(2 * half)


def test_a_crossed_curve_is_the_mean_over_the_others_and_a_zipped_one_is_of_all(sweep: Store) -> None:
    frame = load(sweep.root)
    crossed = curve(frame, "edit_threshold", AXES)
    alone = summarise(frame, ["edit_threshold"])
    assert crossed[f"{GAIN}_mean"].tolist() == alone[f"{GAIN}_mean"].tolist()
    together = to_frame(moved((0.5, 2, 0.9), (0.7, 5, 0.7), (0.9, 8, 0.6)))
    found = curve(together, "edit_threshold", BOTH)
    assert found[f"{GAIN}_mean"].tolist() == pytest.approx([1.0, 0.8, 0.7] * 2)


def test_levels_that_lack_a_value_are_left_out_of_its_curve() -> None:
    """Scale 8 was never run at threshold 0.7, where everything gains more."""
    frame = to_frame(moved((0.9, 5, 0.1), (0.9, 8, 0.2), (0.5, 5, 0.3), (0.5, 8, 0.4), (0.7, 5, 5.0)))
    found = curve(frame, "edit_guidance_scale", BOTH)
    assert found[f"{GAIN}_mean"].tolist() == pytest.approx([0.3, 0.4] * 2)


def test_a_method_that_does_not_read_a_setting_is_comparable_at_all_its_values() -> None:
    rows = moved((0.5, 5, 0.3), (0.9, 5, 0.1)) + moved((0.9, 5, 0.4), method="composable")
    frame = to_frame(rows)
    assert frame["edit_threshold"].isna().sum() == 2
    axes = ["edit_threshold", "method"]
    methods = curve(frame, "method", axes)
    assert methods[f"{GAIN}_mean"].tolist() == pytest.approx([0.3, 0.5] * 2)
    thresholds = curve(frame, "edit_threshold", axes)
    assert thresholds["edit_threshold"].tolist() == [0.5, 0.9] * 2
    assert thresholds[f"{GAIN}_mean"].tolist() == pytest.approx([0.4, 0.2] * 2)


def advice(gains: dict[float, float], costs: dict[float, float], seeds: int = 4, noise: float = 0.0) -> str:
    rows = [
        {"threshold": t, "seed": seed, "lpips": costs[t], "clip_concept_delta": gain + noise * (seed - 1.5)}
        for t, gain in gains.items()
        for seed in range(seeds)
    ]
    frame = frame_of(rows)
    axes = ["edit_threshold"]
    return " ".join(next_steps(summarise(frame, axes), trends(frame, axes), axes))


COSTS = {0.5: 1.0, 0.8: 0.5, 0.9: 0.1}


def test_advice_for_a_best_value_at_an_edge() -> None:
    told = advice({0.5: 0.1, 0.8: 0.2, 0.9: 0.3}, COSTS)
    assert "(0.9) is the largest tried: try axes.edit_threshold=[0.5,0.8,0.9,0.95]." in told


def test_advice_for_a_best_value_inside() -> None:
    told = advice({0.5: 0.31, 0.8: 0.3, 0.9: 0.0}, COSTS)
    assert "(0.8) lies between 0.5 and 0.9: try axes.edit_threshold=[0.5,0.65,0.8,0.85,0.9]." in told


def test_no_advice_past_the_end_of_a_range() -> None:
    assert "tried" not in advice({0.0: 0.5, 0.5: 0.1, 0.9: 0.0}, {0.0: 0.1, 0.5: 0.2, 0.9: 0.3})


def test_advice_where_noise_hides_the_differences() -> None:
    rows = [
        {"threshold": t, "seed": seed, "clip_concept_delta": 0.3 + noise, "lpips": 0.1 + cost}
        for t, noises in {0.5: (0.1, -0.1, 0.2, -0.1), 0.9: (-0.1, 0.2, -0.2, 0.1)}.items()
        for seed, (noise, cost) in enumerate(zip(noises, (0, 0.02, 0, 0.01), strict=True))
    ]
    frame, axes = frame_of(rows), ["edit_threshold"]
    (told,) = next_steps(summarise(frame, axes), trends(frame, axes), axes)
    assert "add seeds or prompts before choosing" in told


def test_what_images_have_in_common_hides_no_difference() -> None:
    """Gains of the same four faces, 0.01 apart in each, while the faces themselves are 0.6 apart."""
    gains = {0.5: 0.32, 0.8: 0.31, 0.9: 0.3}
    told = advice(gains, COSTS, noise=0.2)
    assert "try axes.edit_threshold=" in told
    assert "before choosing" not in told
    rows = [
        {
            "threshold": t,
            "seed": seed,
            "lpips": 0.1,
            "clip_concept_delta": gain + 0.2 * seed + 0.001 * (-seed if t < 0.7 else seed),
        }
        for t, gain in gains.items()
        for seed in range(4)
    ]
    summary = pooled(summarise(frame_of(rows), ["edit_threshold"]))
    first, last = summary.loc[0.5], summary.loc[0.9]
    assert first[f"{GAIN}_low"] < last[f"{GAIN}_mean"] < first[f"{GAIN}_high"]  # alone, neither can be told
    assert last[f"{GAIN}_gap"] == pytest.approx(0.3 - 0.32 + 0.002 * 1.5)
    interval = mean_interval(-0.02 + 0.002 * np.arange(4), np.zeros(4), np.arange(4))
    assert last[[f"{GAIN}_gap_low", f"{GAIN}_gap_high"]].tolist() == pytest.approx(
        [interval.low, interval.high]
    )
    assert last[f"{GAIN}_gap_high"] < 0
    assert first[[f"{GAIN}_gap", f"{GAIN}_gap_low", f"{GAIN}_gap_high"]].tolist() == [0, 0, 0]


def test_the_interval_of_a_difference_is_that_of_the_pairs_differences() -> None:
    rng = np.random.default_rng(0)
    face, own = rng.normal(0, 1, 12), rng.normal(0, 0.1, (2, 12))
    rows = [
        {
            "threshold": t,
            "seed": seed,
            "clip_concept_delta": face[seed] + own[i, seed] + 0.5 * i,
            "lpips": 0.1,
        }
        for i, t in enumerate((0.5, 0.9))
        for seed in range(12)
    ]
    summary = pooled(summarise(frame_of(rows[1:]), ["edit_threshold"]))  # one lacks its pair
    differences = (own[0] - own[1] - 0.5)[1:]
    expected = mean_interval(differences, np.zeros(11), np.arange(11))
    wanted = (differences.mean(), expected.low, expected.high)
    assert summary["best"].tolist() == [False, True]
    found = summary.loc[0.5, [f"{GAIN}_gap", f"{GAIN}_gap_low", f"{GAIN}_gap_high"]]
    assert found.tolist() == pytest.approx(wanted)


def test_one_seed_asks_for_more() -> None:
    assert "add seeds" in advice({0.5: 0.3, 0.8: 0.2, 0.9: 0.1}, COSTS, seeds=1)


def test_advice_where_nothing_was_gained() -> None:
    assert advice({0.5: -0.3, 0.8: -0.2, 0.9: -0.1}, COSTS) == ""  # stronger edits gain even less
    told = advice({0.5: 0.0, 0.8: -0.01, 0.9: -0.02}, COSTS)
    assert told == "Gain grows with strength: try axes.edit_threshold=[0.2,0.5,0.8,0.9]."


def test_advice_without_scores_names_what_is_missing() -> None:
    frame = frame_of([{"threshold": 0.5}, {"threshold": 0.9, "status": "failed"}])
    told = next_steps(
        summarise(frame, ["edit_threshold"]), trends(frame, ["edit_threshold"]), ["edit_threshold"]
    )
    assert told == [
        "1 cell failed: retry_failed=true tries it again.",
        "No cell has clip_concept_delta, so no setting can be judged.",
    ]


def test_axes_that_advance_together_are_not_proposed_alone() -> None:
    rows = []
    for threshold in (0.5, 0.8, 0.9):
        for seed in range(3):
            edit = Edit("a", edit_threshold=threshold, edit_guidance_scale=10 * threshold)
            taken = {"clip_concept_delta": 1 - threshold, "lpips": 0.1}
            rows.append(Record(Cell("p", seed, (edit,)), "done", scores=taken).row())
    frame, axes = to_frame(rows), ["edit_threshold", "edit_guidance_scale"]
    told = " ".join(next_steps(summarise(frame, axes), trends(frame, axes), axes))
    assert "edit_threshold (0.5) is the smallest tried: try 0.2 too." in told
    assert "axes." not in told


def test_concepts_that_want_different_settings_are_told() -> None:
    rows = [
        {"threshold": t, "concept": concept, "seed": seed, "clip_concept_delta": gain, "lpips": 1.0 - gain}
        for concept, t, gain in (
            ("smile", 0.5, 0.9),
            ("smile", 0.9, 0.1),
            ("curls", 0.5, 0.1),
            ("curls", 0.9, 0.8),
        )
        for seed in range(3)
    ]
    frame, axes = frame_of(rows), ["edit_threshold"]
    told = next_steps(summarise(frame, axes), trends(frame, axes), axes)
    assert told[-1].endswith("differ: smile at edit_threshold 0.5; curls at edit_threshold 0.9.")


def test_concepts_that_may_want_the_same_are_not_told_apart() -> None:
    """Each is best elsewhere in the mean, but not in every seed."""
    gains = {("smile", 0.5): (0.92, 0.9, 0.94), ("smile", 0.9): (0.9, 0.94, 0.91)}
    gains |= {("curls", 0.5): (0.9, 0.94, 0.91), ("curls", 0.9): (0.94, 0.91, 0.93)}
    rows = [
        {"threshold": t, "concept": concept, "seed": seed, "clip_concept_delta": gain, "lpips": 0.1 + 0.1 * t}
        for (concept, t), of_seeds in gains.items()
        for seed, gain in enumerate(of_seeds)
    ]
    rows = [row | {"lpips": 0.2 - 0.02 * (row["seed"] - 1) * (row["threshold"] - 0.7)} for row in rows]
    frame, axes = frame_of(rows), ["edit_threshold"]
    summary = summarise(frame, axes)
    assert summary.loc[summary["concepts"] != ALL, "best"].sum() == 2
    assert not list(advice_of._disagreement(summary, axes))
