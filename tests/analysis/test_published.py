"""Every published measurement gets its prediction."""

import pytest

from lightconv.analysis import prediction
from lightconv.analysis.gpus import GPUS
from lightconv.analysis.published import MEASUREMENTS, Comparison, comparisons, median_error

ROOFLINES = [m for m in MEASUREMENTS if m.library == "eager"]


def test_every_measurement_names_its_source_and_its_gpu():
    for measurement in MEASUREMENTS:
        assert "github.com/" in measurement.source or "KernelBench" in measurement.source
        assert measurement.gpu in GPUS
        assert measurement.gpu.upper() in measurement.source
        assert measurement.library in {"tilelang", "inductor", "eager"}
        assert measurement.microseconds > 0


def test_a_rate_becomes_a_time():
    plain, strided = MEASUREMENTS[0], MEASUREMENTS[2]
    assert (plain.images, strided.images) == ((2, 64, 56, 56), (1, 128, 56, 56))
    assert plain.microseconds == pytest.approx(2 * 2 * 56 * 56 * 64 * 64 * 9 / 51.79e6)
    assert strided.microseconds == pytest.approx(2 * 28 * 28 * 256 * 128 * 9 / 37.53e6)


def test_the_error_is_of_the_prediction():
    short, long = (Comparison(MEASUREMENTS[0]._replace(microseconds=10), "", p, "") for p in (8, 13))
    assert short.error == pytest.approx(-0.2)
    assert long.error == pytest.approx(0.3)
    assert median_error([short, long, long]) == pytest.approx(0.3)
    assert median_error([short, long]) == pytest.approx(0.25)


def test_torchs_operators_are_compared_with_their_rooflines():
    pooled = next(c for c in comparisons(ROOFLINES) if c.layer == "64x112x112, windows of 3x3, stride 2")
    bytes_moved = 32 * 64 * (112 * 112 * 2 + 56 * 56 * (2 + 8))
    assert pooled.predicted == pytest.approx(bytes_moved / GPUS["h200"].bandwidth * 1e6)
    assert pooled.bound == "roofline"


SOME = [MEASUREMENTS[1], MEASUREMENTS[10], MEASUREMENTS[-1]]  # quick to compile: a convolution, a pooling, a roofline


@pytest.mark.compile
@pytest.mark.parametrize("measurements", [SOME, pytest.param(MEASUREMENTS, marks=pytest.mark.every_tile)], ids=len)
def test_every_measurement_is_predicted(measurements):
    found = comparisons(measurements)
    assert [c.measurement for c in found] == list(measurements)
    for compared in found:
        assert compared.predicted >= prediction.LAUNCH_SECONDS * 1e6 - 1e-9
        assert compared.layer
        assert compared.bound == "roofline" or compared.bound in prediction.Bounds._fields
        assert (compared.bound == "roofline") == (compared.measurement.library == "eager")
    errors = sorted(abs(c.predicted - c.measurement.microseconds) / c.measurement.microseconds for c in found)
    assert median_error(found) == pytest.approx(errors[len(errors) // 2])
