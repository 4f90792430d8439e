import io

import torch

from lightconv.visualize import confusion_matrix


def test_class_names_are_no_formulas():
    figure = confusion_matrix(torch.eye(3, dtype=torch.int64), ["$\\oops$", "caf\udce9", "a_b"])
    figure.savefig(io.BytesIO())
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["$\\oops$", "caf\\udce9", "a_b"]
