"""Simulate how often the project's intervals are right: ``python -m tools.coverage [results.parquet ...]``.

Prints Markdown tables and writes them to ``--out``: the coverage of 95 % intervals of means by design,
spread of the prompts and distribution; the share of sweeps of equal settings in which any difference is
found; and the coverage of shares of successes. "Before" is the bootstrap interval of
:mod:`sega_bench.stats.intervals`.

With tables of results, the values of each setting with :data:`FEWEST_REAL` seeds or more are a population
from which seeds are drawn, so that their distribution is a real one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import ndtri

from sega_bench.stats.blocks import Floats, Places
from sega_bench.stats.intervals import interval
from sega_bench.stats.multiple import compare_with_best, compare_with_reference
from sega_bench.stats.proportions import share_intervals
from sega_bench.stats.random_effects import mean_intervals
from sega_bench.store import EXECUTION_COLUMNS, SETTING_COLUMNS

DESIGNS = ((1, 4), (1, 8), (2, 4), (4, 4), (4, 8), (8, 8))
"""Prompts and seeds of each."""

PROMPT_DEVIATIONS = (1 / 3, 1.0, 2.0)
"""Standard deviations of the prompts, in terms of that of the seeds."""

RESIDUAL_DEVIATION = 0.7
"""That of the residual in crossed designs; nested ones have it in the seeds."""

DISTRIBUTIONS = ("normal", "exponential", "lognormal")
REAL_SCORES = ("clip_concept_delta", "lpips", "changed_fraction", "clip_image", "ssim")
FEWEST_REAL = 16
Row = Sequence[str]


def main() -> None:
    """Simulate the coverage of intervals and print it as Markdown tables."""
    parser = argparse.ArgumentParser(prog="python -m tools.coverage", description=main.__doc__)
    parser.add_argument("results", nargs="*", type=Path, help="results.parquet of sweeps with many seeds")
    parser.add_argument("--out", type=Path, default=Path("coverage.md"), help="the file to write")
    parser.add_argument("--sweeps", type=int, default=4000, help="simulated sweeps of each kind")
    parser.add_argument("--before", type=int, default=400, help="of which the bootstrap is tried on (slow)")
    args = parser.parse_args()
    deviations = [f"prompts {deviation:.2g}" for deviation in PROMPT_DEVIATIONS]
    columns = [f"{name} {end}" for name in deviations for end in ("before", "after")]
    parts = [
        "## Coverage of 95 % intervals of means",
        *_table(["design", "prompts x seeds", "values", *columns], _mean_rows(args.sweeps, args.before)),
        "## Sweeps of equal settings with any difference found",
        *_table(
            ["settings", "prompts x seeds", "values", "to the best, before", "to a reference", "to the best"],
            _difference_rows(max(1, args.sweeps // 8), max(1, args.before // 4)),
        ),
        "## Coverage of 95 % intervals of shares of successes",
        *_table(["prompts x seeds x concepts", "alike by seed", *_share_columns()], _share_rows(args.sweeps)),
    ]
    if args.results:
        columns = ["score", "settings", "seeds", "skewness", "before", "after"]
        parts += ["## Coverage of 95 % intervals of means of real values"]
        parts += _table(columns, _real_rows(args.results, args.sweeps, args.before))
    text = "\n".join([*parts, ""])
    args.out.write_text(text, encoding="utf-8")
    print(text)


def _table(columns: Sequence[str], rows: Iterable[Row]) -> list[str]:
    return ["", *("| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)), ""]


def labels(prompts: int, seeds: int, crossed: bool = True, concepts: int = 1) -> tuple[Places, Places]:
    """Prompt and seed of each value of a complete design."""
    prompt, seed, _ = (axis.ravel() for axis in np.indices((prompts, seeds, concepts)))
    return prompt, seed if crossed else seed + seeds * prompt


def draw(rng: np.random.Generator, distribution: str, shape: tuple[int, ...]) -> Floats:
    """Independent values of mean 0 and standard deviation 1; the lognormal's skewness is 3.3."""
    if distribution == "exponential":
        return rng.exponential(size=shape) - 1
    normal = rng.normal(size=shape)
    if distribution == "normal":
        return normal
    sigma2 = 0.75**2
    values: Floats = (np.exp(0.75 * normal) - np.exp(sigma2 / 2)) / np.sqrt(
        (np.exp(sigma2) - 1) * np.exp(sigma2)
    )
    return values


def simulated_means(
    rng: np.random.Generator,
    design: tuple[int, int],
    crossed: bool,
    distribution: str,
    deviation: float,
    sweeps: int,
) -> tuple[Floats, Floats]:
    """Values of sweeps, (sweeps, N), and the mean that each one's interval speaks of."""
    prompts, seeds = design
    prompt = deviation * draw(rng, distribution, (sweeps, prompts, 1))
    seed = draw(rng, distribution, (sweeps, 1 if crossed else prompts, seeds))
    residual = RESIDUAL_DEVIATION * crossed * draw(rng, distribution, (sweeps, prompts, seeds))
    truth = prompt.mean(axis=(1, 2)) if prompts < 3 else np.zeros(sweeps)
    return (prompt + seed + residual).reshape(sweeps, -1), truth


def _mean_rows(sweeps: int, before: int) -> Iterator[Row]:
    rng = np.random.default_rng(0)
    for crossed in (True, False):
        for design in DESIGNS:
            prompt, seed = labels(*design, crossed)
            for distribution in DISTRIBUTIONS:
                cells = []
                for deviation in PROMPT_DEVIATIONS:
                    values, truth = simulated_means(rng, design, crossed, distribution, deviation, sweeps)
                    after = mean_intervals(values, prompt, seed)
                    cells.append(_bootstrap_coverage(values[:before], truth[:before], prompt, seed))
                    cells.append(_share((after.low <= truth) & (truth <= after.high)))
                kind = "crossed" if crossed else "nested"
                yield [kind, f"{design[0]} x {design[1]}", distribution, *cells]


def _bootstrap_coverage(values: Floats, truth: Floats, prompt: Places, seed: Places) -> str:
    cluster = prompt * (int(seed.max()) + 1) + seed
    ends = np.array([interval(row, cluster, prompt) for row in values])
    return _share((ends[:, 0] <= truth) & (truth <= ends[:, 1]))


def _share(hits: Iterable[bool]) -> str:
    return f"{100 * float(np.mean(np.asarray(hits))):.1f}"


def _difference_rows(sweeps: int, before: int) -> Iterator[Row]:
    rng = np.random.default_rng(1)
    for settings, prompts, seeds in ((20, 1, 4), (20, 1, 8), (20, 4, 4), (5, 1, 4), (60, 1, 8)):
        prompt, seed = labels(prompts, seeds)
        for distribution in ("normal", "exponential", "neighbours", "unequal", "successes"):
            found = np.array(
                [
                    _any_difference(values, prompt, seed, distribution == "successes", i < before)
                    for i, values in enumerate(
                        equal_settings(rng, settings, (prompts, seeds), distribution, sweeps)
                    )
                ]
            )
            shares = [_share(found[:before, 0]), _share(found[:, 1]), _share(found[:, 2])]
            yield [str(settings), f"{prompts} x {seeds}", distribution, *shares]


def equal_settings(
    rng: np.random.Generator, settings: int, design: tuple[int, int], distribution: str, sweeps: int
) -> Iterator[Floats]:
    """Values of settings without any difference in the mean, (M, N): one sweep after the other."""
    for _ in range(sweeps):
        picture = rng.normal(size=design)
        if distribution == "successes":
            yield (picture + rng.normal(size=(settings, *design)) < 1.8).reshape(settings, -1).astype(float)
            continue
        shape = (settings, *design)
        noise = draw(rng, "exponential" if distribution == "exponential" else "normal", shape)
        if distribution == "neighbours":  # correlation .9 from each to the next
            places = np.arange(settings)
            root = np.linalg.cholesky(0.9 ** np.abs(places[:, None] - places))
            noise = np.tensordot(root, noise, axes=1)
        if distribution == "unequal":
            noise *= np.exp(rng.normal(size=(settings, 1, 1)))
        if design[0] > 1:
            noise += 0.5 * rng.normal(size=(settings, design[0], 1))
            noise += 0.5 * rng.normal(size=(settings, 1, design[1]))
        yield (picture + noise).reshape(settings, -1)


def _any_difference(
    values: Floats, prompt: Places, seed: Places, shares: bool, before: bool
) -> tuple[bool, bool, bool]:
    reference = compare_with_reference(values[1:], values[0], prompt, seed, shares=shares).differs.any()
    best = compare_with_best(values, prompt, seed, margin=1e-9, shares=shares)
    bootstrap = False
    if before and best.best is not None:
        cluster = prompt * (int(seed.max()) + 1) + seed
        ends = np.array([interval(row - values[best.best], cluster, prompt) for row in values])
        bootstrap = bool(((ends[:, 0] > 0) | (ends[:, 1] < 0)).any())
    return bootstrap, bool(reference), not bool(best.may_be_best.all())


def _share_columns() -> list[str]:
    return [f"{name} at {truth}" for truth in (0.9, 0.7) for name in ("before", "interval", "lower bound")]


def _share_rows(sweeps: int) -> Iterator[Row]:
    rng = np.random.default_rng(2)
    designs = (
        (1, 8, 1),
        (1, 16, 1),
        (1, 32, 1),
        (1, 4, 2),
        (1, 8, 2),
        (1, 8, 4),
        (4, 4, 1),
        (4, 8, 1),
        (8, 8, 1),
    )
    for prompts, seeds, concepts in designs:
        prompt, seed = labels(prompts, seeds, concepts=concepts)
        for alike in (0.0, 0.4, 0.8)[: 1 if prompts * concepts == 1 else 3]:
            cells: list[str] = []
            for truth in (0.9, 0.7):
                # A latent normal value whose variance the values of a seed share to this part.
                shared = np.sqrt(alike) * rng.normal(size=(sweeps, 1, seeds, 1))
                own = np.sqrt(1 - alike) * rng.normal(size=(sweeps, prompts, seeds, concepts))
                values = (shared + own < ndtri(truth)).reshape(sweeps, -1).astype(float)
                both = share_intervals(values, prompt, seed)
                lower = share_intervals(values, prompt, seed, side="lower")
                fewer = values[: max(1, sweeps // 10)]
                cells.append(_bootstrap_coverage(fewer, np.full(len(fewer), truth), prompt, seed))
                cells.append(_share((both.low <= truth) & (truth <= both.high)))
                cells.append(_share(lower.low <= truth))
            yield [f"{prompts} x {seeds} x {concepts}", f"{alike:.1f}", *cells]


def _real_rows(paths: Sequence[Path], sweeps: int, before: int) -> Iterator[Row]:
    rng = np.random.default_rng(3)
    by_score: dict[str, list[Floats]] = {}
    for path in paths:
        for score, values in real_populations(pd.read_parquet(path)):
            by_score.setdefault(score, []).append(values)
    for score, populations in by_score.items():
        skewness = float(np.median([_skewness(values) for values in populations]))
        for seeds in (4, 8, 16):
            hits, old = [], []
            draws = max(1, sweeps // len(populations))
            for population in populations:
                values = rng.choice(population, size=(draws, seeds))
                truth = np.full(draws, population.mean())
                prompt, seed = labels(1, seeds)
                after = mean_intervals(values, prompt, seed)
                hits.append(((after.low <= truth) & (truth <= after.high)).mean())
                few = max(1, before // len(populations))
                old.append(float(_bootstrap_coverage(values[:few], truth[:few], prompt, seed)))
            cells = (f"{np.mean(old):.1f}", f"{100 * np.mean(hits):.1f}")
            yield [score, str(len(populations)), str(seeds), f"{skewness:.1f}", *cells]


def real_populations(results: pd.DataFrame) -> Iterator[tuple[str, Floats]]:
    """The values of each score, over the seeds of each setting and prompt that has enough of them."""
    edited = results[~results["is_reference"].astype(bool) & (results["status"] == "done")]
    varying = {"key", "seed", "reference_key", *EXECUTION_COLUMNS}
    by = [name for name in SETTING_COLUMNS if name in edited and name not in varying]
    for _, rows in edited.groupby(by, dropna=False, sort=False):
        for score in (name for name in REAL_SCORES if name in rows):
            values = rows[score].dropna().to_numpy(dtype=np.float64)
            if len(values) >= FEWEST_REAL and np.ptp(values) > 0:
                yield score, values


def _skewness(values: Floats) -> float:
    deviation = values - values.mean()
    return float((deviation**3).mean() / (deviation**2).mean() ** 1.5)


if __name__ == "__main__":
    main()
