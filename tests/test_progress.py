import io
import time

import pytest
import rich
from rich.console import Console

from lightconv.progress import SlowProgress


def work(monkeypatch, seconds, terminal, enabled=True, items=10):
    """Return the bar's output if each item takes some seconds by a clock that is turned by hand."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    output = io.StringIO()
    monkeypatch.setattr(rich, "get_console", lambda: Console(file=output, force_terminal=terminal, width=80))
    with SlowProgress("decoding 10 images", items, enabled) as progress:
        for _ in range(items):
            now[0] += seconds
            progress.advance()
    return output.getvalue()


def test_quick_step_shows_nothing(monkeypatch, capsys):
    assert work(monkeypatch, 0.1, terminal=True) == ""
    assert work(monkeypatch, 0.4, terminal=False) == ""
    assert capsys.readouterr().err == ""


def test_bar_in_a_terminal(monkeypatch, capsys):
    assert "decoding 10 images" in work(monkeypatch, 1, terminal=True)
    assert capsys.readouterr().err == ""


def test_lines_elsewhere(monkeypatch, capsys):
    assert work(monkeypatch, 3, terminal=False) == ""
    assert capsys.readouterr().err.splitlines() == [
        "decoding 10 images: 2 done, 24 seconds left",
        "decoding 10 images: 4 done, 18 seconds left",
        "decoding 10 images: 8 done, 6 seconds left",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_disabled(monkeypatch, capsys, terminal):
    assert work(monkeypatch, 10, terminal, enabled=False) == ""
    assert capsys.readouterr().err == ""


def test_step_that_fails_removes_its_bar(monkeypatch):
    monkeypatch.setattr("lightconv.progress._QUIET_SECONDS", 0)
    output = io.StringIO()
    monkeypatch.setattr(rich, "get_console", lambda: Console(file=output, force_terminal=True))
    progress = SlowProgress("decoding", 3)
    with pytest.raises(ZeroDivisionError), progress:
        progress.advance() or 1 / 0
    assert not progress._bar.live.is_started
