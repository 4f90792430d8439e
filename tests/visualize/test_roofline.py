import pytest

from lightconv.visualize import Point, roofline


def test_points_and_roof():
    points = [Point("first", 10.0, 2e13), Point("twin", 10.1, 2.01e13), Point("second", 400.0, 9e14)]
    figure = roofline(1e15, 3e12, [*points, Point("pooling", 0.0, 0.0)], "a GPU")
    (axes,) = figure.axes
    bound, *markers = axes.lines
    assert [(m.get_xdata()[0], m.get_ydata()[0]) for m in markers] == [(10.0, 20.0), (400.0, 900.0)]
    assert [text.get_text() for text in axes.texts] == ["1, 2", "3"], "overlapping points share a label"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["1 first", "2 twin", "3 second"]
    assert axes.get_title() == "a GPU"
    across, roof = bound.get_data()
    assert max(roof) == pytest.approx(1000)
    assert roof[0] == pytest.approx(across[0] * 3)
    assert all(y <= min(x * 3, 1000) * 1.001 for x, y in zip(across, roof, strict=True))
