#!/usr/bin/env python3
"""Measure the prose and the density of Python code, and compare both with the goals of CONTRIBUTING.md.

    python tools/style.py PATH...             print the figures of all files below the paths
    python tools/style.py --check PATH...     also exit with status 1 if a figure misses its goal
    python tools/style.py --worst 20 PATH...  also print the docstring sentences with the most relative words

The figures are a means. A sentence that passes and says nothing is worse than a good one that does not pass.
"""

import argparse
import ast
import io
import re
import statistics
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

RELATIVE_WORDS = re.compile(r"\b(?:that|which|what|whose|who|where|whatever|whichever)\b", re.IGNORECASE)
# a description of an argument that begins with one of these has lost its noun
ELLIPTIC_STARTS = {
    *("of", "that", "which", "with", "to", "from", "as", "by", "whose"),
    *("before", "after", "in", "for", "on", "at", "where", "than", "those", "called"),
}
SECTION = re.compile(r"\n\s*(?:Args|Returns|Raises|Attributes|Yields|Examples?|Shape|References?)s?:")
SECTION_NAMES = {"Example", "Examples", "Note", "Shape"}
ENTRY = re.compile(r"^\s+\*{0,2}(\w+)(?: \([^)]*\))?: (.+)$", re.MULTILINE)
EXAMPLE_OR_TABLE = re.compile(r"[=│┃|]{3}|>>>")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`])|\n\n")
DIRECTIVES = ("noqa", "type: ignore", "fmt:", "pylint", "pragma")

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = Function | ast.ClassDef | ast.Module
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


class Goal(NamedTuple):
    """A range for a figure, ends included."""

    name: str
    least: float
    most: float


GOALS = (
    Goal("relative words per 100 docstring words", 0, 1.5),
    Goal("elliptic argument descriptions, %", 0, 0),
    Goal("comments per 100 code lines", 6, 10),
    Goal("conditional expressions per 100 code lines", 0, 2),
    Goal("comprehensions per 100 code lines", 0, 3),
    Goal("private helpers used once, % of functions", 0, 7),
    Goal("lines of a function, median", 0, 5),
    Goal("lines of a function, 95th percentile", 0, 20),
    Goal("lines of a function, longest", 0, 60),
)


@dataclass
class Measurement:
    """Counts over a set of files.

    Attributes:
        totals: occurrences, keyed by what is counted.
        lengths: code lines of each function, without docstring, comments and blank lines.
        private_names: names of private functions without a decorator.
        uses: occurrences of each name in code.
        sentences: share of relative words, place and text of each docstring sentence.
    """

    totals: Counter[str] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)
    private_names: list[str] = field(default_factory=list)
    uses: Counter[str] = field(default_factory=Counter)
    sentences: list[tuple[float, str]] = field(default_factory=list)

    def add_file(self, path: Path) -> None:
        """Count everything in one file."""
        text = path.read_text(encoding="utf8")
        lines = text.splitlines()
        tree = ast.parse(text)
        self.totals["comments"] += count_comments(text)
        self.totals["code lines"] += sum(map(is_code, lines))
        for node in ast.walk(tree):
            self._add_expression(node)
            if isinstance(node, Function):
                self._add_function(node, lines)
            if isinstance(node, Documented):
                self._add_docstring(node, path)

    def figures(self) -> list[float]:
        """Return one figure per entry of `GOALS`, in that order."""
        used_once = sum(self.uses[name] == 1 for name in self.private_names)
        lengths = sorted(self.lengths) or [0]
        return [
            percentage(self.totals["relative words"], self.totals["words"]),
            percentage(self.totals["elliptic entries"], self.totals["entries"]),
            percentage(self.totals["comments"], self.totals["code lines"]),
            percentage(self.totals["conditional expressions"], self.totals["code lines"]),
            percentage(self.totals["comprehensions"], self.totals["code lines"]),
            percentage(used_once, len(self.lengths)),
            statistics.median(lengths),
            lengths[int(0.95 * len(lengths))],
            lengths[-1],
        ]

    def _add_expression(self, node: ast.AST) -> None:
        if isinstance(node, ast.Name):
            self.uses[node.id] += 1
        elif isinstance(node, ast.Attribute):
            self.uses[node.attr] += 1
        elif isinstance(node, ast.IfExp):
            self.totals["conditional expressions"] += 1
        elif isinstance(node, Comprehension):
            self.totals["comprehensions"] += 1

    def _add_function(self, node: Function, lines: list[str]) -> None:
        body = node.body
        if ast.get_docstring(node):
            body = body[1:]
        length = 0
        if body:
            length = sum(map(is_code, lines[body[0].lineno - 1 : node.end_lineno]))
        self.lengths.append(length)
        is_private = node.name.startswith("_") and not node.name.startswith("__")
        if is_private and not node.decorator_list:
            self.private_names.append(node.name)

    def _add_docstring(self, node: Documented, path: Path) -> None:
        docstring = ast.get_docstring(node)
        if not docstring:
            return
        statement = node.body[0]  # the docstring
        assert statement.end_lineno is not None
        self.totals["code lines"] -= statement.end_lineno - statement.lineno + 1
        for sentence in split_sentences(docstring):
            words = len(sentence.split())
            relative = len(RELATIVE_WORDS.findall(sentence))
            self.totals["words"] += words
            self.totals["relative words"] += relative
            self.sentences.append((relative / words, f"{path}:{getattr(node, 'lineno', 1)}: {sentence}"))
        for description in argument_descriptions(docstring):
            self.totals["entries"] += 1
            first_word = description.split()[0].strip(",.:").lower()
            self.totals["elliptic entries"] += first_word in ELLIPTIC_STARTS


def percentage(part: float, whole: float) -> float:
    """Return a share in percent, 0 of nothing."""
    return 100 * part / max(1, whole)


def is_code(line: str) -> bool:
    """Return True unless a line is blank or only a comment."""
    stripped = line.strip()
    return bool(stripped) and not stripped.startswith("#")


def count_comments(text: str) -> int:
    """Count comments without directives to tools, such as ``noqa``."""
    count = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            count += not any(directive in token.string for directive in DIRECTIVES)
    return count


def split_sentences(docstring: str) -> list[str]:
    """Split a docstring's prose into sentences of at least three words, without sections, tables and examples."""
    prose = SECTION.split(docstring)[0]
    if EXAMPLE_OR_TABLE.search(prose):
        prose = prose.split("\n\n")[0]
    sentences = [" ".join(part.split()) for part in SENTENCE_END.split(prose)]
    return [sentence for sentence in sentences if len(sentence.split()) >= 3]


def argument_descriptions(docstring: str) -> Iterator[str]:
    """Yield the descriptions of the entries under Args and Attributes."""
    for entry in ENTRY.finditer(docstring):
        if entry[1] not in SECTION_NAMES:
            yield entry[2]


def python_files(paths: list[Path]) -> Iterator[Path]:
    """Yield the files among the paths, and all Python files below the directories."""
    for path in paths:
        if path.is_dir():
            yield from sorted(path.rglob("*.py"))
        else:
            yield path


def main() -> None:
    """Print the figures beside their goals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a figure misses its goal")
    parser.add_argument("--worst", type=int, default=0, metavar="N", help="print the N hardest sentences")
    options = parser.parse_args()
    measurement = Measurement()
    for path in python_files(options.paths):
        measurement.add_file(path)
    missed = 0
    for goal, figure in zip(GOALS, measurement.figures(), strict=True):
        reached = goal.least <= figure <= goal.most
        missed += not reached
        remark = "" if reached else "   <- missed"
        print(f"{goal.name:<44}{figure:>8.2f}   goal {goal.least:g} to {goal.most:g}{remark}")
    for _, sentence in sorted(measurement.sentences, reverse=True)[: options.worst]:
        print(sentence)
    if options.check and missed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
