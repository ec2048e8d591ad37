"""Estimate how a sweep scales to hundreds of workers, without running it: ``python -m tools.scaling``."""
