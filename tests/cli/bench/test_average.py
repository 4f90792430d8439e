import itertools

import pytest
import torch
from hydra import compose, initialize_config_dir

from lightconv.cli.bench import average
from lightconv.cli.help import CONFIGURATIONS
from lightconv.runs.model_settings import complete_model


@pytest.fixture
def config():
    with initialize_config_dir(str(CONFIGURATIONS), version_base="1.3"):
        return complete_model(compose("bench", ["what=average", "rounds=2"]))


def test_times_of_both_sides(config, monkeypatch):
    times = itertools.accumulate([0, 20, 0, 80, 0, 40, 0, 160])  # start and end of each round
    monkeypatch.setattr(average, "clock", times.__next__)
    ((title, rows),) = average.average(config).tables.items()
    assert "LeNet" in title
    assert [row["milliseconds"] for row in rows] == [1500, 6000]
    assert [row["one by one / this"] for row in rows] == [4, 1]


def test_both_sides_compute_the_same():
    torch.manual_seed(0)
    for steps in (torch.tensor(1), torch.tensor(9000)):
        at_once, weights = torch.randn(2, 1, 50).unbind()
        expected = average.update_one(at_once, weights, steps)
        average.update_at_once([at_once], [weights], steps)
        torch.testing.assert_close(at_once, expected)
