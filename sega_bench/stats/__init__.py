"""Statistics of plain arrays: intervals, Pareto fronts and correlations. Pure, seeded, without tables."""
