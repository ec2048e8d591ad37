from dataclasses import replace

import pytest
from hypothesis import given
from support.strategies import cells

from sega_bench.cell import Cell, Edit, broadcast, canonical_json, collapse, per_concept


def test_keys_are_pinned() -> None:
    """Keys name files and rows permanently: they change only together with KEY_VERSION."""
    reference = Cell("a photo of the face of a woman", 3, model="faces@0123456789abcdef")
    edited = replace(
        reference, edits=(Edit("smiling, smile", 4, 0.99),), edit_momentum_scale=0.3, edit_mom_beta=0.6
    )
    assert (reference.key, edited.key) == ("0c14350a9d30db04", "7b2f0e5e6f2fbe4c")


def test_a_replay_enters_the_key_only_if_there_is_one() -> None:
    edited = Cell("x", 0, (Edit("c"),))
    replayed = replace(edited, replay="y")
    assert replayed.key != edited.key
    assert replace(edited, replay="x") == edited
    assert replayed.source() == replace(edited, prompt="y")
    assert edited.source() is edited
    assert replayed.reference() == edited.reference()
    assert replayed.texts == ("", "x", "c", "y")
    with pytest.raises(ValueError, match="replay is 'y', but there is no edit to replay"):
        Cell("x", 0, replay="y")
    with pytest.raises(ValueError, match="replay is False, but it must be a text"):
        replace(edited, replay=False)


def test_equal_numbers_of_different_types_are_the_same_cell() -> None:
    one = Cell("x", 1, (Edit("c", 5, 1, 10, edit_weights=2),), guidance_scale=7, height=64.0, eta=-0.0)
    other = Cell("x", 1, (Edit("c", 5.0, 1.0, 10, edit_weights=2.0),), guidance_scale=7.0, height=64)
    assert one == other
    assert one.key == other.key


@given(cells(), cells())
def test_cells_have_equal_keys_exactly_if_they_are_equal(a: Cell, b: Cell) -> None:
    assert (a.key == b.key) == (a == b)


def test_a_renamed_model_keeps_its_keys() -> None:
    assert Cell("x", 0, model="old@abc").key == Cell("x", 0, model="new@abc").key
    assert Cell("x", 0, model="old@abc").key != Cell("x", 0, model="old@abd").key


def test_references_do_not_depend_on_the_edit() -> None:
    a = Cell("x", 0, (Edit("c"),), edit_momentum_scale=0.5)
    b = Cell("x", 0, (Edit("d", 3),), edit_mom_beta=0.9)
    assert a.reference() == b.reference() == Cell("x", 0)
    assert a.reference().is_reference
    assert a.reference().reference() is not a
    assert a.texts == ("", "x", "c")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"edit_threshold": 1.2}, "edit_threshold is 1.2, but it must be between 0 and 1"),
        ({"edit_threshold": float("nan")}, "edit_threshold is nan"),
        ({"edit_guidance_scale": float("inf")}, "edit_guidance_scale is inf"),
        ({"edit_guidance_scale": 10**400}, "edit_guidance_scale is 1000"),
        ({"edit_guidance_scale": -1}, "use reverse_editing_direction"),
        ({"edit_weights": -0.5}, "use reverse_editing_direction"),
        ({"edit_warmup_steps": 1.5}, "edit_warmup_steps is 1.5, but it must be a whole number"),
        ({"edit_warmup_steps": True}, "edit_warmup_steps is True"),
        ({"edit_cooldown_steps": -1}, "edit_cooldown_steps is -1"),
        ({"reverse_editing_direction": "no"}, "must be true or false"),
        ({"concept": False}, "put it in quotes"),
    ],
)
def test_edits_out_of_range_are_refused(settings: dict[str, object], expected: str) -> None:
    with pytest.raises(ValueError, match=r"it must be|SEGA needs") as error:
        Edit(**{"concept": "c", **settings})  # type: ignore[arg-type]
    assert expected in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0, but it must be at least 1"),
        ({"eta": 1.5}, "eta is 1.5"),
        ({"prompt": None}, "prompt is None"),
        ({"guidance_scale": 1.0}, "SEGA needs classifier-free guidance"),
        ({"edit_mom_beta": 1.1}, "edit_mom_beta is 1.1"),
    ],
)
def test_cells_out_of_range_are_refused(settings: dict[str, object], expected: str) -> None:
    with pytest.raises(ValueError, match=r"it must be|SEGA needs") as error:
        Cell(**{"prompt": "x", "seed": 0, "edits": (Edit("c"),), **settings})  # type: ignore[arg-type]
    assert expected in str(error.value)


def test_without_concepts_any_guidance_scale_is_valid() -> None:
    assert Cell("x", 0, guidance_scale=1).guidance_scale == 1.0


def test_canonical_json_is_sorted_compact_ascii_without_nan() -> None:
    assert canonical_json({"b": 1, "a": ["ü"]}) == '{"a":["\\u00fc"],"b":1}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


@pytest.mark.parametrize("value", [0.5, None, True, "text", [0.1, 0.2]])
def test_collapse_inverts_broadcast(value: object) -> None:
    assert len(broadcast(value, 2)) == 2
    assert collapse(broadcast(value, 2)) == value


def test_a_per_concept_list_stays_as_it_is() -> None:
    assert broadcast([1, 2], 3) == [1, 2]
    assert collapse([5, 5.0]) == 5
    assert collapse([]) == []
    assert collapse([float("nan")] * 2 + [0.0]) != 0.0


def test_a_list_of_another_length_than_the_concepts_is_refused() -> None:
    assert per_concept([1, 2], [], "edit_weights") == []
    with pytest.raises(
        ValueError, match=r"^edit_weights gives 2 values, but the cell has 1 concepts \('a'\)"
    ):
        per_concept([1, 2], ["a"], "edit_weights")
