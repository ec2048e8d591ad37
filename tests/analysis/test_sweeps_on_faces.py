"""The shipped sweeps on the embedded model, at reduced size: does what they ask come out as it should?"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from sega_bench.analysis.claims import claims
from sega_bench.analysis.frames import load
from sega_bench.analysis.groups import ALL
from sega_bench.analysis.summary import summarise, trends
from sega_bench.config import compose
from sega_bench.execution import runner

GAIN = "clip_concept_delta"
TWO = 'concepts=["smiling, smile", "glasses, wearing glasses"]'


def result(folder: Path, sweep: str, *words: str) -> pd.DataFrame:
    """The sweep's table, made with whatever reduces it."""
    common = ["seeds=[1]", "wandb.mode=disabled", f"output_dir={folder}", f"name={sweep}"]
    list(runner.run(compose(f"+sweep={sweep}", *common, *words)))
    frame = load(folder / sweep)
    assert (frame["status"] == "done").all()
    return frame


def pooled(frame: pd.DataFrame, *axes: str) -> pd.DataFrame:
    summary = summarise(frame, axes)
    return summary[summary["concepts"] == ALL].set_index(list(axes))


def test_sega_adds_at_less_cost_than_its_baselines(tmp_path: Path) -> None:
    frame = result(tmp_path, "baselines", TWO, "axes.edit_warmup_steps=[0,4]", "seeds=[2,3]")
    summary = pooled(frame, "method", "edit_warmup_steps")
    assert (summary[f"{GAIN}_mean"] > 0.1).all()  # every method brings the concepts in
    from_the_first = summary.xs(0, level="edit_warmup_steps")["changed_fraction_mean"]
    assert from_the_first["sega"] < 0.6 * min(from_the_first["composable"], from_the_first["prompt"])


def test_sega_removes_what_a_negative_prompt_leaves(tmp_path: Path) -> None:
    frame = result(tmp_path, "baselines_removing", TWO, "axes.edit_warmup_steps=[0]")
    gain = pooled(frame, "method")[f"{GAIN}_mean"]
    assert gain["sega"] > 0.3
    assert gain["sega"] > gain["negative"] + 0.2


def test_each_setting_of_an_ablation_changes_the_image_in_its_direction(tmp_path: Path) -> None:
    frame = result(tmp_path, "ablation", TWO, "sampling.num_inference_steps=25", "seeds=[2,3]")
    axes = ["edit_guidance_scale", "edit_threshold", "edit_warmup_steps"]
    axes += ["edit_momentum_scale", "edit_mom_beta"]
    changed = trends(frame, axes).set_index("axis")["changed_fraction"]
    assert changed["edit_guidance_scale"] == 1.0
    assert changed["edit_threshold"] < -0.7
    assert changed["edit_warmup_steps"] == -1.0


@pytest.mark.parametrize("sweep", ["attributes", "faces10"])
def test_attributes_come_where_they_are_not_and_go_where_they_are(tmp_path: Path, sweep: str) -> None:
    frame = result(
        tmp_path, sweep, TWO, "seeds=[2]"
    )  # whose face has neither of both unless the prompt says so
    plain, with_both = frame["prompt"].unique()
    for concepts in ('["smiling, smile"]', '["glasses, wearing glasses"]'):
        rows = frame[frame["concepts"] == concepts]
        gain = rows.set_index(["prompt", "reverse_editing_direction"])[GAIN]
        assert min(gain[plain, False], gain[with_both, True]) > 0.4
        assert max(abs(gain[plain, True]), abs(gain[with_both, False])) < 0.1


def claimed(frame: pd.DataFrame, axis: str) -> pd.Series:
    """What all concepts together say, by claim and measure."""
    found = claims(frame, [axis])
    return found[found["concepts"] == ALL].set_index(["claim", "measure"])["value"]


def test_the_gain_is_monotone_in_the_scale_and_the_edit_robust_and_isolated(tmp_path: Path) -> None:
    words = ("axes.edit_guidance_scale=[0,1,4,12]", "seeds=[2,3]")
    found = claimed(result(tmp_path, "scales", TWO, *words), "edit_guidance_scale")
    assert found["monotonicity", "correlation with the scale"] > 0.7
    assert found["robustness", "attribute_success"] == 1.0
    assert found["isolation", "changed_fraction"] < 0.25
    assert found["isolation", "attribute_leakage"] < 0.15


def test_a_direction_holds_for_another_prompt(tmp_path: Path) -> None:
    words = ("prompts=[a photo of the face of a man]", "seeds=[2,3]")
    found = claimed(result(tmp_path, "uniqueness", TWO, *words), "replay")
    assert 0.9 < found["uniqueness", "gain replayed / own"] < 1.1
