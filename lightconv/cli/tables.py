"""Results as tables in the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

console = Console()


def show_figures(title: str, figures: Mapping[str, Any]) -> None:
    """Print names and values, a row each."""
    table = Table("figure", title=title, title_justify="left", show_header=False)
    table.add_column(justify="right")
    for name, value in figures.items():
        table.add_row(name, text(value))
    console.print(table)


def show_classes(classes: Sequence[str], results: Mapping[str, Tensor]) -> None:
    """Print precision, recall and F1 of every class, and what it is most often taken for."""
    confusion = results["confusion"]
    table = Table("class", title="each class", title_justify="left")
    for name in ("images", "precision", "recall", "f1"):
        table.add_column(name, justify="right")
    table.add_column("most often taken for")
    for index, name in enumerate(classes):
        mistakes = confusion[index].clone()
        mistakes[index] = 0
        taken_for = f"{classes[int(mistakes.argmax())]} ({int(mistakes.max())})" if mistakes.any() else ""
        figures = (f"{results[key][index]:.4f}" for key in ("precision", "recall", "f1"))
        table.add_row(name, str(int(confusion[index].sum())), *figures, taken_for)
    console.print(table)


def show_rows(title: str, rows: Sequence[Mapping[str, Any]], dense: bool = False) -> None:
    """Print dictionaries as rows under the union of their keys; densely if they are many and their first one names."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    tight: dict[str, Any] = {"box": box.SIMPLE_HEAD, "collapse_padding": True, "pad_edge": False} if dense else {}
    table = Table(title=title, title_justify="left", **tight)
    for index, name in enumerate(columns):
        names = dense and index == 0
        table.add_column(name, justify="left" if names else "right", overflow="fold", no_wrap=names)
    for row in rows:
        table.add_row(*(text(row.get(name, "")) for name in columns))
    console.print(table)


def stacked(row: Mapping[str, Any], cells: Sequence[Sequence[str]]) -> dict[str, str]:
    """A row with several of its columns above each other in a cell: as narrow as a terminal."""
    return {"\n".join(names): "\n".join(text(row[name]) for name in names) for names in cells}


def show_facts(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Print words in columns under a title."""
    grid = Table.grid(padding=(0, 2), pad_edge=True)
    for row in rows:
        grid.add_row(*map(Text, row))  # as they are: brackets are no markup
    console.print(Text(title, style="bold"), grid, "", sep="\n")


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Dictionaries with the same keys as a Markdown table."""
    lines = [rows[0].keys(), ["---"] * len(rows[0]), *(map(text, row.values()) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def text(value: Any) -> str:
    """Four digits behind the point for shares, thousands separated."""
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
