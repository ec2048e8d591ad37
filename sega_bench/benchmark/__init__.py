"""Measure speed as ratios within one run on one machine: ``python -m sega_bench benchmark``."""
