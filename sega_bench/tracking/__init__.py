"""A sweep as Weights & Biases runs; the one place that knows its SDK."""
