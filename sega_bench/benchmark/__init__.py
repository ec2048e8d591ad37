"""How fast it is, measured, as ratios within one run on one machine: ``python -m sega_bench benchmark``."""
