"""Random cells for property tests: all valid combinations of settings, with thresholds off the grid."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from sega_bench.cell import Cell, Edit

STEPS = 7
METHODS = ("sega", "composable", "prompt", "negative")
CONCEPTS = ("glasses", "smile", "beard", "curls")

# At a threshold k/(n-1) the quantile equals an element, and rounding decides whether the element passes. The
# same holds at 0, where the smallest element is compared with itself rounded to float32. Both are avoided;
# test_parity has a fixed setting with 0.
thresholds = st.one_of(
    st.sampled_from([0.0003, 1.0]), st.floats(0.05, 0.95).map(lambda q: round(q, 3) + 0.0003)
)
scales = st.integers(0, 90).map(lambda tenths: 0.0 if tenths < 9 else tenths / 10)
weights = st.integers(0, 30).map(lambda tenths: 0.0 if tenths < 3 else tenths / 10)


def edits(n: int = STEPS, most: int = 4) -> st.SearchStrategy[tuple[Edit, ...]]:
    """One to ``most`` edits for images of ``n`` steps."""
    edit = st.builds(
        Edit,
        concept=st.sampled_from(CONCEPTS),
        edit_guidance_scale=scales,
        edit_threshold=thresholds,
        edit_warmup_steps=st.integers(0, n),
        edit_cooldown_steps=st.one_of(st.none(), st.integers(0, n + 1)),
        edit_weights=weights,
        reverse_editing_direction=st.booleans(),
    )
    return st.lists(edit, min_size=1, max_size=most).map(tuple)


def cells(**fixed: object) -> st.SearchStrategy[Cell]:
    """An edited or unedited cell, possibly a replay, with few steps and pixels."""
    fields: dict[str, object] = {
        "prompt": st.sampled_from(["a face", "glasses"]),
        "seed": st.integers(0, 2),
        "edits": st.one_of(st.just(()), edits(), edits(), edits()),
        "negative_prompt": st.sampled_from(["", "smile"]),
        "num_inference_steps": st.just(STEPS),
        "guidance_scale": st.sampled_from([3.0, 5.5]),
        "height": st.just(32),
        "width": st.just(32),
        "edit_momentum_scale": st.sampled_from([0.0, 0.1, 0.5]),
        "edit_mom_beta": st.sampled_from([0.0, 0.4, 0.9, 1.0]),
        "replay": st.sampled_from([None, None, "a face", "glasses", "a cat"]),
        "method": st.just("sega"),
    }
    overrides = {
        name: value if isinstance(value, st.SearchStrategy) else st.just(value)
        for name, value in fixed.items()
    }
    return st.builds(_cell, **{**fields, **overrides})


def with_method(cell: Cell, method: str) -> Cell:
    """The same cell with another method, its edits reversed if the method can only add or only remove."""
    if not cell.edits or method in ("sega", "composable"):
        return replace(cell, method=method)
    edits = tuple(replace(edit, reverse_editing_direction=method == "negative") for edit in cell.edits)
    return replace(cell, edits=edits, replay=None, method=method)


def _cell(replay: str | None, method: str, **settings: object) -> Cell:
    return with_method(Cell(**settings, replay=replay if settings["edits"] else None), method)  # type: ignore[arg-type]
