import shlex

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from lightconv.cli import tables
from lightconv.cli.settings import quote_value

NAMES = ["[noise]", "[/x]", "[bold]", "cat\x1b[31m"]


def test_class_names_are_no_markup(capsys):
    confusion = torch.ones(4, 4, dtype=torch.int64)
    rates = torch.ones(4)
    tables.show_classes(NAMES, {"confusion": confusion, "precision": rates, "recall": rates, "f1": rates})
    printed = capsys.readouterr().out
    for name in ("[noise]", "[/x]", "[bold]", "cat\\x1b[31m"):
        assert name in printed
    assert "\x1b[31m" not in printed


def test_settings_are_no_markup(capsys):
    tables.show_rows("all jobs of [runs]", [{"task.views": "[flip]"}, {"task.views": "[]"}])
    tables.show_figures("LeNet on [x]", {"directory": "runs/[a]"})
    printed = " ".join(capsys.readouterr().out.split())  # titles are folded to the width of their table
    for text in ("all jobs of [runs]", "[flip]", "LeNet on [x]", "runs/[a]"):
        assert text in printed


@pytest.mark.parametrize(
    "path",
    [
        "runs/first",
        "My Project (v1)/runs",
        "a,b=[c]",
        "it's",
        'say "hi"',
        "back\\slash",
        "ends\\ here\\",
        'a\\"b',
        "~x",
    ],
)
def test_printed_setting_can_be_pasted(path):
    (argument,) = shlex.split(shlex.quote(f"resume={quote_value(path)}"))
    assert OverridesParser.create().parse_override(argument).value() == path


def test_heads_break_between_words(capsys, monkeypatch):
    monkeypatch.setattr(tables.console, "width", 80)
    row = {"job": "0", "model.width": "1", "seed": "0", "val/accuracy": 0.5, "test/accuracy": 0.5, "test/loss": 0.5}
    tables.show_rows("all jobs", [{**row, "parameters": 61_706, "seconds": 0.5}])
    heads = capsys.readouterr().out.split("┡")[0]
    for word in ("model.", "width", "val/", "accuracy", "test/", "loss", "parameters", "seconds"):
        assert f" {word} " in heads
