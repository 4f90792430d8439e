from functools import partial

import lightning as L
import pytest
import torch
from helpers.trainers import SILENT
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from torch import nn
from torch.nn.functional import huber_loss, l1_loss, mse_loss, smooth_l1_loss
from torch.optim import AdamW
from torch.utils.data import DataLoader, TensorDataset

import lightconv as lc
from lightconv.errors import InputError
from lightconv.tasks import Regression


def digits_with_ink_centres(name):
    """Return real digits and the centres of their ink, in hundredths of the side from the middle."""
    images = lc.data.Digits().split(name)[0].float() / 255
    places = torch.linspace(-50, 50, 28)
    centres = [(images.sum((1, axis)) * places).sum(1) / images.sum((1, 2, 3)) for axis in (2, 3)]
    return images, torch.stack(centres, 1)


def fit():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 2))
    module = Regression(network, 2, optimizer=partial(AdamW, lr=0.005))
    training = DataLoader(TensorDataset(*digits_with_ink_centres("train")), 64, shuffle=True)
    trainer = L.Trainer(max_epochs=20, **SILENT)
    trainer.fit(module, training, DataLoader(TensorDataset(*digits_with_ink_centres("validation")), 50))
    return module, trainer


def test_learns_positions_with_scikit_learn_figures():
    module, trainer = fit()
    images, targets = digits_with_ink_centres("validation")
    with torch.no_grad():
        outputs = module.eval()(images)
    figures = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert figures["val/r2"] > 0.8
    assert figures["val/loss"] == pytest.approx(mse_loss(outputs, targets).item(), rel=1e-4)
    assert figures["val/mae"] == pytest.approx(mean_absolute_error(targets, outputs), rel=1e-4)
    assert figures["val/rmse"] == pytest.approx(root_mean_squared_error(targets.flatten(), outputs.flatten()), rel=1e-4)
    assert figures["val/r2"] == pytest.approx(r2_score(targets, outputs), rel=1e-4)
    loader = DataLoader(TensorDataset(images, targets), 64)
    tested = trainer.test(module, loader, verbose=False)[0]
    assert tested["test/mae"] == pytest.approx(figures["val/mae"], rel=1e-4)
    torch.testing.assert_close(torch.cat(trainer.predict(module, loader)), outputs)


@pytest.mark.parametrize(
    ("loss", "function"), [("mse", mse_loss), ("l1", l1_loss), ("smooth_l1", smooth_l1_loss), ("huber", huber_loss)]
)
def test_loss_equals_torch(loss, function):
    outputs, targets = torch.randn(5, 2), torch.randn(5, 2)
    module = Regression(nn.Flatten(), 2, loss=loss)
    assert torch.equal(module.training_loss(outputs, targets), function(outputs, targets))
    torch.testing.assert_close(module.evaluate(outputs, targets)[0], 5 * function(outputs, targets))


def test_unknown_loss():
    with pytest.raises(InputError, match="loss=l2: choose one of mse, l1, smooth_l1, huber"):
        Regression(nn.Flatten(), 2, loss="l2")


def test_one_image_has_no_r2():
    data = DataLoader(TensorDataset(torch.randn(1, 1, 2, 2), torch.randn(1, 1)))
    trainer = L.Trainer(**SILENT, fast_dev_run=True)
    trainer.fit(lc.tasks.Regression(nn.Sequential(nn.Flatten(), nn.Linear(4, 1)), 1), data, data)
    assert trainer.callback_metrics["val/r2"].isnan()
    assert trainer.callback_metrics["val/mae"].isfinite()
