from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sega_bench.faces.measures import Share
from sega_bench.stats.intervals import wilson


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_of_a_proportion_is_scipys(counted: tuple[int, int]) -> None:
    k, n = counted
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high))


def test_a_proportion_of_nothing_is_not_known() -> None:
    assert all(map(math.isnan, wilson(0, 0)))
    assert Share(0, 0).interval() == (0.0, 1.0)


def test_the_model_cards_shares_have_the_views_interval() -> None:
    assert Share(8, 10).interval() == wilson(8, 10)
