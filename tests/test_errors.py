import pytest
from hypothesis import given
from hypothesis import strategies as st

from sega_bench.errors import UserError, check_count, nearest


@given(st.text())
def test_a_mistake_is_one_printable_line(message: str) -> None:
    told = str(UserError(message))
    assert told.isprintable()
    assert len(told) <= 1003


def test_a_long_mistake_is_cut() -> None:
    assert str(UserError("a" * 10_000_000)) == "a" * 1000 + "..."


def test_the_nearest_is_told_as_it_is_written() -> None:
    assert nearest("treshold", ["scale", "threshold"]) == "did you mean threshold? "
    assert nearest("eulre", {"euler", "ddim"}, str.upper) == "did you mean EULER? "
    assert nearest("xyz", ["threshold"]) == ""


def test_counts_have_two_ends() -> None:
    check_count("n", 1, 3)
    check_count("n", 3, 3)
    with pytest.raises(UserError, match=r"^n is 0, but it must be at least 1$"):
        check_count("n", 0, 3)
    with pytest.raises(UserError, match=r"^n is 1001, but it must be at most 1,000$"):
        check_count("n", 1001, 1000)
