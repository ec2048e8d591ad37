"""What is to be said of a study's best settings: for the terminal, for the report."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from sega_bench.analysis.labels import format_value
from sega_bench.stats.intervals import Estimate
from sega_bench.study.answers import Answers, Best, better_and_worse
from sega_bench.study.trials import Study


def best_of(found: Answers) -> Iterator[tuple[str, list[str]]]:
    """Each best setting, and what is to be said of its scores, one line a score."""
    for i, best in enumerate(found.best):
        of = "all concepts" if best.concepts is None else " + ".join(best.concepts)
        point = found.study.point(best.trial.params)
        values = "; ".join(f"{name} {rounded(value)}" for name, value in point.items())
        apart = found.held_out[i] if found.held_out else None
        lines = [*_scores(found, best, apart), verdict(found.study, best, apart)]
        yield f"Best of {of}: {values}", lines


def _scores(found: Answers, best: Best, apart: Best | None) -> Iterator[str]:
    """Each objective where it was searched and where it was held out, and over the baseline."""
    for k, objective in enumerate(found.study.settings.objectives):
        line = f"{objective.name} {_interval(best.scores[k])}"
        if apart is not None:
            drop = objective.sign * (apart.scores[k].mean - best.scores[k].mean)
            line += f", held out {_interval(apart.scores[k])}" + f": worse by {drop:z.3f}" * isfinite(drop)
        yield line
        over = f"   over the baseline {_interval(best.over_baseline[k], '+')}"
        if apart is not None:
            over += f", held out {_interval(apart.over_baseline[k], '+')}"
        yield over


def verdict(study: Study, best: Best, apart: Best | None) -> str:
    """Whether it beats the baseline, best told where it was not searched for."""
    if best.trial.params == study.start:
        return "it is the baseline itself: nothing that was found beats it"
    judged = best if apart is None else apart
    where = "searched" if apart is None else "held out"
    if not judged.over_baseline[0].n:
        return f"the baseline has no scores to set it against, {where}"
    better, worse = better_and_worse(judged, study.settings.objectives)
    pairs = f"{judged.over_baseline[0].n} pairs {where}"
    if better and not worse:
        return f"it beats the baseline: better in {' and '.join(better)}, losing in nothing, by {pairs}"
    if worse:
        but = f", better in {' and '.join(better)}" if better else ""
        return f"it does not beat the baseline: losing in {' and '.join(worse)}{but}, by {pairs}"
    return f"it is not told apart from the baseline by {pairs}"


def _interval(estimate: Estimate, sign: str = "") -> str:
    if not isfinite(estimate.mean):
        return "not known"
    if not isfinite(estimate.low):  # of one prompt and seed
        return f"{estimate.mean:{sign}z.3f}"
    mean, low, high = (f"{value:{sign}z.3f}" for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} ({low} to {high})"


def rounded(value: object) -> str:
    """A setting's value with as many digits as matter; of a list, which concepts have, those of each."""
    if isinstance(value, list):
        return ", ".join(map(rounded, value))
    return format_value(float(f"{value:.4g}") if isinstance(value, float) else value)
