"""Results as tables in the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightconv.text import printable

if TYPE_CHECKING:
    from torch import Tensor


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # rich would exit without a word
        raise BrokenPipeError


console = _Console()

Row = Mapping[str, Any]


def show_figures(title: str, figures: Row) -> None:
    """Print names and values, one per row; text such as a path goes below the table, whole on a line of its own."""
    table = Table("figure", title=plain(title), title_justify="left", show_header=False)
    table.add_column(justify="right")
    texts = {name: value for name, value in figures.items() if isinstance(value, str)}
    for name, value in figures.items():
        if name not in texts:
            table.add_row(plain(name), plain(value))
    console.print(table)
    for name, value in texts.items():
        # a path is copied from here: a table would cut it at the width of the terminal
        console.print(plain(f"{name}: {value}"), soft_wrap=True)


def show_classes(classes: Sequence[str], results: Mapping[str, Tensor]) -> None:
    """Print precision, recall and F1 of every class, and the class it is most often taken for.

    Args:
        classes: names of the classes.
        results: figures of a test as ``Classification.class_results`` holds them.
    """
    confusion = results["confusion"]  # (true class, predicted class)
    table = Table("class", title="each class", title_justify="left")
    for name in ("images", "precision", "recall", "f1"):
        table.add_column(name, justify="right")
    table.add_column("most often taken for")
    for index, name in enumerate(classes):
        images = str(int(confusion[index].sum()))
        figures = [f"{results[key][index]:.4f}" for key in ("precision", "recall", "f1")]
        table.add_row(plain(name), images, *figures, plain(_frequent_mistake(confusion, index, classes)))
    console.print(table)


def _frequent_mistake(confusion: Tensor, index: int, classes: Sequence[str]) -> str:
    mistakes = confusion[index].clone()
    mistakes[index] = 0  # the diagonal counts correct answers
    if not mistakes.any():
        return ""
    return f"{classes[int(mistakes.argmax())]} ({int(mistakes.max())})"


def show_rows(title: str, rows: Sequence[Row], *, dense: bool = False) -> None:
    """Print dictionaries as rows of a table.

    Args:
        title: title above the table.
        rows: one dictionary per row; a column per key of any of them.
        dense: print without borders, with the first column as the rows' names.
    """
    columns: dict[str, None] = {}  # a set that keeps its order
    for row in rows:
        columns |= dict.fromkeys(row)
    if dense:
        table = Table(
            title=plain(title), title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False
        )
    else:
        table = Table(title=plain(title), title_justify="left")
    for index, name in enumerate(columns):
        if dense and index == 0:
            table.add_column(plain(name), overflow="fold", no_wrap=True)
        else:
            # a narrow terminal breaks val/accuracy and model.width there, not within a word
            head = name if dense else re.sub(r"(?<=[a-z])([/.])(?=[a-z])", r"\1\n", name)
            table.add_column(plain(head), overflow="fold", justify="right")
    for row in rows:
        table.add_row(*(plain(row.get(name, "")) for name in columns))
    console.print(table)


def stack_columns(row: Row, cells: Sequence[Sequence[str]]) -> dict[str, str]:
    """Put several columns of a row above each other in one cell, for a table as narrow as a terminal.

    Args:
        row: values by column.
        cells: columns of each cell.
    """
    stacked = {}
    for names in cells:
        stacked["\n".join(names)] = "\n".join(format_value(row[name]) for name in names)
    return stacked


def show_facts(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Print words in columns below a title."""
    grid = Table.grid(padding=(0, 2), pad_edge=True)
    # names are typed as they are printed: no narrow terminal may cut them
    grid.add_column(no_wrap=True, overflow="fold")
    for row in rows:
        grid.add_row(*map(Text, row))  # Text, because rich would read brackets in a string as markup
    console.print(Text(title, style="bold"), grid, "", sep="\n")


def markdown(rows: Sequence[Row]) -> str:
    """Return dictionaries with the same keys as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [list(map(format_value, row.values())) for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plain(value: Any) -> Text:
    """Return a value as text for a table: square brackets are no markup, control codes are escaped."""
    return Text(printable(format_value(value)))


def format_value(value: Any) -> str:
    """Return numbers below ten with four decimals, and larger ones with separated thousands."""
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
