import pytest

from lightconv.visualize import relative_times

ROWS = [
    {"layer": layer, "images": "2x4x6x6", "pass": name, "ours": ours, "eager": 2.0, "compiled": 4.0}
    for layer, ours in (("conv1", 1.0), ("conv2", 3.0))
    for name in ("forward", "forward+backward")
]


def test_bars_start_at_base():
    figure = relative_times(ROWS, "eager", "on some GPU")
    assert [axes.get_title() for axes in figure.axes] == ["forward", "forward+backward"]
    for axes in figure.axes:
        ours, compiled = axes.containers
        assert (ours.get_label(), compiled.get_label()) == ("ours", "compiled")
        assert [bar.get_x() + bar.get_width() for bar in ours] == pytest.approx([0.5, 1.5])
        assert [bar.get_x() + bar.get_width() for bar in compiled] == pytest.approx([2.0, 2.0])
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert (names, figure.axes[0].yaxis_inverted()) == (["conv1", "conv2"], True)  # the first layer at the top
    assert figure.get_suptitle() == "on some GPU"
