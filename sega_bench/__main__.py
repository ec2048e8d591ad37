"""``python -m sega_bench``: the command line of :mod:`sega_bench.cli.main`."""

from sega_bench.cli.main import main

if __name__ == "__main__":
    main()
