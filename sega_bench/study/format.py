"""Texts about a study's best settings, for the terminal and the report."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from sega_bench.analysis.labels import format_value
from sega_bench.stats.intervals import Estimate
from sega_bench.study.answers import Answers, ScoredTrial, better_and_worse
from sega_bench.study.trials import Study


def describe_best(answers: Answers) -> Iterator[tuple[str, list[str]]]:
    """Yield each best setting's title, and lines about its scores."""
    for i, best in enumerate(answers.best):
        concepts = "all concepts" if best.concepts is None else " + ".join(best.concepts)
        point = answers.study.point(best.trial.params)
        values = "; ".join(f"{name} {rounded(value)}" for name, value in point.items())
        held_out = answers.held_out[i] if answers.held_out else None
        lines = [*_score_lines(answers.study, best, held_out), verdict(answers.study, best, held_out)]
        yield f"Best of {concepts}: {values}", lines


def _score_lines(study: Study, best: ScoredTrial, held_out: ScoredTrial | None) -> Iterator[str]:
    """Each objective, searched and held out, then its difference to the baseline."""
    for k, objective in enumerate(study.settings.objectives):
        line = f"{objective.name} {_interval(best.scores[k])}"
        if held_out is not None:
            drop = objective.sign * (held_out.scores[k].mean - best.scores[k].mean)
            line += f", held out {_interval(held_out.scores[k])}" + f": worse by {drop:z.3f}" * isfinite(drop)
        yield line
        over = f"   over the baseline {_interval(best.over_baseline[k], '+')}"
        if held_out is not None:
            over += f", held out {_interval(held_out.over_baseline[k], '+')}"
        yield over


def verdict(study: Study, best: ScoredTrial, held_out: ScoredTrial | None) -> str:
    """Say whether a setting beats the baseline, on the held-out blocks if there are any."""
    if best.trial.params == study.baseline_params:
        return "it is the baseline itself: no trial beats it"
    judged, blocks = (best, "searched") if held_out is None else (held_out, "held-out")
    n_pairs = judged.over_baseline[0].n
    if not n_pairs:
        return f"it can't be compared: the baseline has no scores on the {blocks} prompts x seeds"
    pairs = f"on {n_pairs} {blocks} pairs"
    better, worse = (" and ".join(names) for names in better_and_worse(judged, study.settings.objectives))
    if better and not worse:
        return f"it beats the baseline {pairs}: better in {better}, worse in nothing"
    if worse:
        return f"it does not beat the baseline {pairs}: worse in {worse}" + f", better in {better}" * bool(
            better
        )
    return f"it does not differ significantly from the baseline {pairs}"


def _interval(estimate: Estimate, sign: str = "") -> str:
    """Mean and interval; the format's ``z`` turns -0.000 into 0.000."""
    if not isfinite(estimate.mean):
        return "not known"
    if not isfinite(estimate.low):  # a single block has no interval
        return f"{estimate.mean:{sign}z.3f}"
    mean, low, high = (f"{value:{sign}z.3f}" for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} ({low} to {high})"


def rounded(value: object) -> str:
    """A setting's value to four significant digits; a per-concept list joined by commas."""
    if isinstance(value, list):
        return ", ".join(map(rounded, value))
    return format_value(float(f"{value:.4g}") if isinstance(value, float) else value)
