"""Print tables on the terminal."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from rich.console import Console
from rich.table import Table

console = Console(width=None if Console().is_terminal else 110)


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], texts: Collection[str] = ()
) -> None:
    """Print a table without lines, and an empty line after it.

    Args:
        title: above the table.
        columns: their headings; the first is aligned to the left, and numbers in the others to the right.
        rows: one text for each column.
        texts: headings of further columns to align to the left.
    """
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position and column not in texts else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table, "")
