"""Statistics of plain arrays: intervals, comparisons, Pareto fronts and correlations. Pure and seeded."""
