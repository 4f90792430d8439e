import signal

import lightning as L
import pytest
import torch
from helpers.trainers import QUIET, SILENT
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim.swa_utils import AveragedModel

import lightconv as lc
from lightconv.callbacks import GracefulStop, RandomState, WeightAverage
from lightconv.callbacks.weight_average import update_average
from lightconv.errors import InputError
from lightconv.tasks import Classification


class Small(nn.Module):
    """Network with buffers and random numbers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(784, 16), nn.BatchNorm1d(16))
        self.head = nn.Linear(16, 10)

    def forward(self, images):
        return self.head(self.layers(images).relu())


def task():
    torch.manual_seed(0)
    return Classification(Small(), class_weights="balanced")


def fit(module, tmp_path, *others, ckpt_path=None, decay=0.9, epochs=3):
    kept = [
        ModelCheckpoint(tmp_path, "best", monitor="val/loss", enable_version_counter=False),
        ModelCheckpoint(tmp_path, "last", save_on_exception=True, enable_version_counter=False),
    ]
    callbacks = [*kept, RandomState(), GracefulStop(), WeightAverage(decay), *others]
    trainer = L.Trainer(max_epochs=epochs, callbacks=callbacks, **QUIET)
    trainer.fit(module, lc.data.Digits(batch_size=256), ckpt_path=ckpt_path)
    return trainer


def checkpoint(path):
    return torch.load(path, weights_only=True)


def assert_the_same(one, other):
    for key in ("state_dict", "current_model_state", "averaging_state"):
        for name, tensor in one[key].items():
            assert torch.equal(tensor, other[key][name]), (key, name)


class Weights(L.Callback):
    """Record the weights after every step."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, module, *_):
        self.values.append({name: tensor.clone() for name, tensor in module.state_dict().items()})


def test_checkpoints_and_module_hold_the_average(tmp_path):
    weights, module = Weights(), task()
    fit(module, tmp_path, weights)
    average = weights.values[0]["model.head.weight"]
    for steps, values in enumerate(weights.values[1:], 1):
        decay = min(0.9, (1 + steps) / (10 + steps))
        average = decay * average + (1 - decay) * values["model.head.weight"]
    last = checkpoint(tmp_path / "last.ckpt")
    torch.testing.assert_close(last["state_dict"]["model.head.weight"], average)
    torch.testing.assert_close(module.model.head.weight.detach(), average)
    for name, tensor in last["current_model_state"].items():
        assert torch.equal(tensor, weights.values[-1][name])
    assert last["state_dict"]["model.layers.3.num_batches_tracked"] == len(weights.values) == 15


def test_validation_uses_the_saved_weights(tmp_path):
    kept, module = {}, task()

    class Note(L.Callback):
        def on_validation_start(self, trainer, module):
            kept.clear()

        def on_validation_batch_start(self, trainer, module, *_):
            kept.update({name: tensor.clone() for name, tensor in module.state_dict().items()})

    trainer = fit(module, tmp_path, Note())
    last = checkpoint(tmp_path / "last.ckpt")["state_dict"]
    assert all(torch.equal(tensor, last[name]) for name, tensor in kept.items())
    other = task()
    other.load_state_dict(checkpoint(tmp_path / "best.ckpt")["state_dict"])
    loss = trainer.callback_metrics["val/loss"].clone()
    assert trainer.validate(other, lc.data.Digits(), verbose=False)[0]["val/loss"] == pytest.approx(loss.item())
    # a later validation is of the weights that it is given
    trainer.validate(task(), lc.data.Digits(), verbose=False)
    assert trainer.callback_metrics["val/loss"] > loss + 0.1


def test_short_run_forgets_first_weights():
    average, first = [torch.zeros(3)], [torch.ones(3)]
    for steps in range(1, 20):
        update_average(average, first, torch.tensor(steps), decay=0.999)
    assert (average[0] > 0.99).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_update_equals_its_formula(dtype):
    torch.manual_seed(0)
    averages, weights = ([torch.randn(size, dtype=dtype) for size in (3, 1, 50)] for _ in range(2))
    for steps in (1, 5, 1000):
        decay = min(0.9, (1 + steps) / (10 + steps))
        pairs = zip(averages, weights, strict=True)
        expected = [average.double() * decay + weight.double() * (1 - decay) for average, weight in pairs]
        update_average(averages, weights, torch.tensor(steps), decay=0.9)
        for average, value in zip(averages, expected, strict=True):
            torch.testing.assert_close(average, value.to(dtype))


def test_counters_are_copied():
    counters = [torch.tensor(3)]
    update_average(counters, [torch.tensor(8)], torch.tensor(5), decay=0.9)
    assert counters == [torch.tensor(8)]


def test_one_call_for_all_weights(monkeypatch):
    calls = []
    monkeypatch.setattr(lc.callbacks.weight_average, "update_average", lambda *a, decay: calls.append(len(a[0])))
    average = AveragedModel(Small(), use_buffers=True, **WeightAverage()._kwargs)
    for _ in range(2):
        average.update_parameters(Small())
    assert sorted(calls) == [1, 8]  # the counter; weights and statistics


class StopInTraining(L.Callback):
    def on_before_backward(self, trainer, *_):
        if trainer.global_step == 7:
            signal.raise_signal(signal.SIGINT)  # GracefulStop finishes the step


class StopInValidation(L.Callback):
    def on_validation_batch_end(self, trainer, *_):
        if trainer.global_step == 10:  # of the second epoch: the checkpoint of the first one stands
            raise InterruptedError


@pytest.mark.parametrize("stop", [StopInTraining, StopInValidation])
def test_stopped_run_resumes_bit_for_bit(tmp_path, stop):
    fit(task(), tmp_path / "whole")
    with pytest.raises((SystemExit, InterruptedError)):
        fit(task(), tmp_path / "half", stop())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning leaves it ignored
    torch.manual_seed(123)
    fit(task(), tmp_path / "half", ckpt_path=tmp_path / "half/last.ckpt")
    assert_the_same(*(checkpoint(tmp_path / name / "last.ckpt") for name in ("half", "whole")))


def test_finished_run_continues(tmp_path):
    fit(task(), tmp_path / "whole", epochs=4)
    fit(task(), tmp_path / "half", epochs=2)
    fit(task(), tmp_path / "half", epochs=4, ckpt_path=tmp_path / "half/last.ckpt")
    assert_the_same(*(checkpoint(tmp_path / name / "last.ckpt") for name in ("half", "whole")))


def test_second_run_has_its_own_average():
    def trained(callback):
        module = task()
        trainer = L.Trainer(max_epochs=1, callbacks=[callback], **SILENT)
        trainer.fit(module, lc.data.Digits(batch_size=256))
        return module.state_dict()

    callback = WeightAverage(0.9)
    first, second = trained(callback), trained(callback)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("decay", [-0.1, 1])
def test_decay_out_of_range(decay):
    with pytest.raises(InputError, match=f"decay={decay}"):
        WeightAverage(decay)
