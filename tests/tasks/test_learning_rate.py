import math
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
from helpers.trainers import SILENT
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW

import lightconv as lc
from lightconv.errors import InputError
from lightconv.tasks import Classification, RangeTest, range_test


def run_range_test(tmp_path, optimizer, **options):
    torch.manual_seed(0)
    task = Classification(lc.models.LeNet(), optimizer=optimizer)
    trainer = L.Trainer(max_epochs=-1, default_root_dir=tmp_path, **SILENT)
    return task, range_test(trainer, task, lc.data.Digits(), **options)


@pytest.mark.parametrize(
    ("optimizer", "lowest", "highest"),
    [(partial(AdamW, lr=1), 0.002, 0.02), (partial(SGD, momentum=0.9, nesterov=True), 0.02, 0.12)],
)
def test_suggests_rates_that_train_well(tmp_path, optimizer, lowest, highest):
    _, found = run_range_test(tmp_path, optimizer)
    assert lowest < found.suggestion() < highest
    assert list(tmp_path.iterdir()) == []


def test_losses_are_a_moving_average(tmp_path):
    task, found = run_range_test(tmp_path, SGD, smallest=1e-9, largest=1e-8, steps=20)  # next to nothing is learnt
    losses = [cross_entropy(task(images), labels).item() for images, labels in lc.data.Digits().train_dataloader()]
    for count in (1, 5, 20):
        mean = np.average(losses[:count], weights=0.98 ** np.arange(count)[::-1])
        assert found.losses[count - 1] == pytest.approx(mean, rel=1e-3)
    assert found.rates[0] == pytest.approx(1e-9)


def test_weights_are_restored(tmp_path):
    task, _ = run_range_test(tmp_path, partial(AdamW, lr=1))
    torch.manual_seed(0)
    for before, after in zip(lc.models.LeNet().parameters(), task.model.parameters(), strict=True):
        assert torch.equal(before, after)


def test_suggestion_at_the_steepest_fall():
    rates = np.logspace(-6, 0, 61).tolist()
    losses = [2 - math.tanh(4 * (math.log10(rate) + 2)) for rate in rates]
    assert RangeTest(rates, losses).suggestion() == pytest.approx(0.01 / 2)
    assert RangeTest(rates, [*losses[:50], *[math.nan] * 11]).suggestion() == pytest.approx(0.01 / 2)


@pytest.mark.parametrize("losses", [[1.0] * 50, list(range(50)), [3.0, 2.0, 1.0], [math.nan] * 50], ids=len)
def test_no_suggestion(losses):
    rates = np.logspace(-6, 0, len(losses)).tolist()
    with pytest.raises(InputError, match=r"no learning rate from 1e-06 to 1 lets the loss fall.*set optimizer\.lr"):
        RangeTest(rates, losses).suggestion()
