"""What there is: ``python -m sega_bench`` with nothing behind it."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from sega_bench import config as configuration
from sega_bench.cli.console import console


def print_overview() -> None:
    """Sweeps, studies and models, a line each, and examples."""
    console.print("[bold]sega_bench[/]: sweep the settings of semantic guidance, score every image\n")
    groups = (("Sweeps", "sweep", "+sweep="), ("Studies", "study", "+study="), ("Models", "model", "model="))
    for title, group, usage in groups:
        table = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
        for name, line in configuration.headlines(group).items():
            table.add_row(f"{usage}{name}", Text(line))
        console.print(table, "")
    console.print("Examples")
    for arguments in (
        "+sweep=thresholds",
        "+sweep=thresholds model=sd15 dry_run=true",
        "+sweep=thresholds 'axes.edit_threshold=[0.9,0.95]' 'seeds=[0,1,2]' name=mine",
        "+study=pareto study.trials=30",
        "+sweep=thresholds launch=local launch.workers=2",
        "+sweep=thresholds --cfg job",
        "--multirun +sweep=thresholds,warmup model=faces,sd15",
    ):
        console.print(Text(f"  python -m sega_bench {arguments}"), soft_wrap=True)
