"""sega_bench: sweep the settings of SEGA, score every image, see which setting to use and why."""

__version__ = "0.1.0"
