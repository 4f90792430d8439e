import warnings

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightconv as lc
from lightconv.callbacks import FiniteLoss
from lightconv.callbacks.finite_loss import are_finite

SILENT = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Spoilt(L.LightningModule):
    """Eight batches of one number an epoch; the loss of one batch is spoilt."""

    def __init__(self, batch=11, value=float("nan"), answer=lambda loss: loss):
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.batch, self.value, self.answer = batch, value, answer
        self.seen = 0

    def training_step(self, batch, batch_idx):
        self.seen += 1
        loss = self.linear(batch[0]).square().mean()
        return self.answer(loss * self.value if self.seen == self.batch else loss)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def numbers():
    return DataLoader(TensorDataset(torch.ones(8, 1)), 1)


def fit(module, directory, *callbacks, **options):
    last = ModelCheckpoint(directory, filename="last", save_on_exception=True, enable_version_counter=False)
    trainer = L.Trainer(**SILENT, callbacks=[last, *callbacks], max_epochs=3, **options)
    trainer.fit(module, numbers())
    return last


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("answer", [lambda loss: loss, lambda loss: {"loss": loss}])
def test_stops_and_keeps_the_last_good_checkpoint(tmp_path, value, answer):
    module = Spoilt(value=value, answer=answer)
    with pytest.raises(lc.NonFiniteLossError, match=r"since step 11 \(epoch 2, batch 3\).*last.ckpt") as stop:
        fit(module, tmp_path, FiniteLoss())
    assert "optimizer.lr" in str(stop.value)
    assert not are_finite(module)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 8
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())


def test_losses_of_a_gpu_are_checked_before_a_checkpoint(tmp_path, monkeypatch):
    # the epoch ends before 50 batches were seen
    monkeypatch.setattr(Spoilt, "device", torch.device("meta"), raising=False)
    checks = []
    monkeypatch.setattr(FiniteLoss, "on_train_epoch_end", lambda *arguments: checks.append(1))
    with pytest.raises(lc.NonFiniteLossError, match="since step 11"):
        fit(Spoilt(), tmp_path, FiniteLoss())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 8


def test_last_update_spoils_the_weights(tmp_path):
    class Exploding(Spoilt):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if self.seen == 16:
                nn.init.constant_(self.linear.weight, float("inf"))

    with pytest.raises(lc.NonFiniteLossError, match="weights are NaN or infinite since step 16"):
        fit(Exploding(batch=0), tmp_path, FiniteLoss())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 8


def test_no_checkpoint_before(tmp_path):
    with pytest.raises(lc.NonFiniteLossError, match="No checkpoint was saved before"):
        fit(Spoilt(batch=1), tmp_path, FiniteLoss())
    assert not list(tmp_path.iterdir())


def test_warns_once(tmp_path):
    with pytest.warns(lc.InputWarning, match="since step 11") as caught:
        fit(Spoilt(), tmp_path, FiniteLoss("warn"))
    assert len([entry for entry in caught if entry.category is lc.InputWarning]) == 1
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 24


def test_used_again(tmp_path):
    callback = FiniteLoss()
    last = ModelCheckpoint(tmp_path, save_on_exception=True)
    trainer = L.Trainer(**SILENT, callbacks=[callback, last], max_epochs=1)
    with pytest.raises(lc.NonFiniteLossError):
        trainer.fit(Spoilt(batch=2), numbers())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Spoilt(batch=0), numbers())
    assert last.save_on_exception


def test_other_outputs(tmp_path):
    fit(Spoilt(answer=lambda loss: None), tmp_path, FiniteLoss())
    with pytest.raises(lc.InputError, match="on_nan=ignore: choose stop or warn"):
        FiniteLoss("ignore")
