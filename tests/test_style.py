"""The measure of `make style`, on text whose figures are known."""

import subprocess
import sys
from pathlib import Path

import pytest

STYLE = Path(__file__).parents[1] / "tools" / "style.py"

CLEAR = '''"""Read images."""

FIRST = 1
SECOND = 2
THIRD = 3
FOURTH = 4
FIFTH = 5
SIXTH = 6
SEVENTH = 7
EIGHTH = 8


def read(path):
    """Read one image from a file.

    Args:
        path: file to read.
    """
    # the caller has checked the path
    image = path.read_bytes()
    return image
'''
DENSE = '''"""What it is that is read."""


def read(path):
    """That which is read is what is there.

    Args:
        path: of the file.
    """
    return [x if x else None for x in path]
'''


def run(tmp_path, text, *options):
    file = tmp_path / "module.py"
    file.write_text(text)
    return subprocess.run([sys.executable, STYLE, *options, file], capture_output=True, text=True, check=False)


def figure(output, name):
    (line,) = [line for line in output.splitlines() if line.startswith(name)]
    return float(line.removeprefix(name).split()[0])


def test_check_passes_clear_code(tmp_path):
    result = run(tmp_path, CLEAR, "--check")
    assert result.returncode == 0, result.stdout


def test_check_fails_dense_code(tmp_path):
    result = run(tmp_path, DENSE, "--check")
    assert result.returncode == 1
    assert result.stdout.count("<- missed") == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("relative words per 100 docstring words", 100 * 5 / 14),
        ("elliptic argument descriptions, %", 100),
        ("comments per 100 code lines", 0),
        ("conditional expressions per 100 code lines", 100),
        ("comprehensions per 100 code lines", 100),
        ("lines of a function, longest", 1),
    ],
)
def test_figures(tmp_path, name, value):
    assert figure(run(tmp_path, DENSE).stdout, name) == pytest.approx(value, abs=0.006)


def test_worst_sentence_comes_first(tmp_path):
    printed = run(tmp_path, DENSE, "--worst", "1").stdout.splitlines()
    assert printed[-1].endswith("That which is read is what is there.")
