"""Published measurements and their predictions."""

import pytest

from lightconv.analysis import prediction
from lightconv.analysis.gpus import GPUS
from lightconv.analysis.published import MEASUREMENTS, Comparison, comparisons, median_error

ROOFLINES = [m for m in MEASUREMENTS if m.library == "eager"]


def find(images, *arguments, library="tilelang"):
    """Return the only measurement by the images' shape, the last arguments of the module, and the library."""

    def matches(measurement):
        _, given, _ = measurement.module
        return (measurement.images, measurement.library) == (images, library) and given[-len(arguments) :] == arguments

    (only,) = filter(matches, MEASUREMENTS)
    return only


def test_measurements_name_source_and_gpu():
    for measurement in MEASUREMENTS:
        assert "github.com/" in measurement.source or "KernelBench" in measurement.source
        assert measurement.gpu in GPUS
        assert measurement.gpu.upper() in measurement.source
        assert measurement.library in {"tilelang", "inductor", "eager"}
        assert measurement.microseconds > 0


def test_time_from_published_rate():
    plain = find((2, 64, 56, 56), 64, 3, 1, 1)
    strided = find((1, 128, 56, 56), 256, 3, 2, 1)
    assert plain.microseconds == pytest.approx(2 * 2 * 56 * 56 * 64 * 64 * 9 / 51.79e6)
    assert strided.microseconds == pytest.approx(2 * 28 * 28 * 256 * 128 * 9 / 37.53e6)


def test_error_of_prediction():
    short, long = (Comparison(MEASUREMENTS[0]._replace(microseconds=10), "", p, "") for p in (8, 13))
    assert short.error == pytest.approx(-0.2)
    assert long.error == pytest.approx(0.3)
    assert median_error([short, long, long]) == pytest.approx(0.3)
    assert median_error([short, long]) == pytest.approx(0.25)


def test_torch_compared_with_roofline():
    (pooled,) = (c for c in comparisons(ROOFLINES) if c.layer == "64x112x112, windows of 3x3, stride 2")
    bytes_moved = 32 * 64 * (112 * 112 * 2 + 56 * 56 * (2 + 8))
    assert pooled.predicted == pytest.approx(bytes_moved / GPUS["h200"].bandwidth * 1e6)
    assert pooled.bound == "roofline"


# quick to compile: a convolution, a pooling, and a roofline
SOME = [
    find((1, 3, 112, 112), 64, 3, 2, 1),
    find((16, 128, 56, 56), 2, 2, 0, library="tilelang"),
    find((64, 128, 256, 512), 128, 3, library="eager"),
]


@pytest.mark.compile
@pytest.mark.parametrize("measurements", [SOME, pytest.param(MEASUREMENTS, marks=pytest.mark.every_tile)], ids=len)
def test_predicted_measurements(measurements):
    found = comparisons(measurements)
    assert [c.measurement for c in found] == list(measurements)
    for compared in found:
        assert compared.predicted >= prediction.LAUNCH_SECONDS * 1e6 - 1e-9
        assert compared.layer
        assert compared.bound == "roofline" or compared.bound in prediction.Bounds._fields
        assert (compared.bound == "roofline") == (compared.measurement.library == "eager")
    errors = sorted(abs(c.predicted - c.measurement.microseconds) / c.measurement.microseconds for c in found)
    assert median_error(found) == pytest.approx(errors[len(errors) // 2])
