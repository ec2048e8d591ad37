"""What the command line does, part by part; ``sega_bench.__main__`` puts the parts together."""
