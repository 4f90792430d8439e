"""A datamodule used again: each run starts as with a new datamodule."""

import lightning as L
import pytest
import torch
from helpers.trainers import QUIET, SILENT
from lightning.pytorch.callbacks import ModelCheckpoint

import lightconv as lc
from lightconv.data import Augmentation, Digits
from lightconv.models import LeNet, Pretrained
from lightconv.tasks import Classification


class Seen(L.Callback):
    """Labels per epoch, and numbers of axes of the batches."""

    def __init__(self, fail=False):
        self.epochs, self.axes, self.fail = [[]], set(), fail

    def on_train_epoch_start(self, trainer, pl_module):
        if self.epochs[-1]:
            self.epochs.append([])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.axes.add(batch[0].ndim)
        self.epochs[-1] += batch[1].tolist()
        if self.fail:
            raise RuntimeError("a failure in training")


def digits(**options):
    return Digits(training_images=50, batch_size=10, **options)


def fit(data, task=None, checkpoint=None, callbacks=(), **options):
    seen = Seen(options.pop("fail", False))
    settings = {"max_epochs": 2, "num_sanity_val_steps": 0, **SILENT, **options}
    trainer = L.Trainer(callbacks=[*callbacks, seen], **settings)
    torch.manual_seed(0)
    trainer.fit(task or Classification(LeNet()), datamodule=data, ckpt_path=checkpoint)
    return seen


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint after three of the five batches of the first epoch."""
    saver = ModelCheckpoint(tmp_path, filename="x", every_n_train_steps=3)
    trainer = L.Trainer(max_steps=5, callbacks=[saver], default_root_dir=tmp_path, **QUIET)
    trainer.fit(Classification(LeNet()), datamodule=digits())
    return tmp_path / "x.ckpt"


def test_after_a_resumed_run(checkpoint):
    data = digits()
    assert len(fit(data, checkpoint=checkpoint).epochs[0]) == 20
    assert fit(data).epochs == fit(digits()).epochs
    assert fit(data, task=Classification(LeNet(width=2))).epochs == fit(digits()).epochs


def test_after_a_run_that_failed(checkpoint):
    data = digits()
    with pytest.raises(RuntimeError, match="a failure in training"):
        fit(data, checkpoint=checkpoint, fail=True)
    assert fit(data).epochs == fit(digits()).epochs


def test_loop_of_ones_own_after_a_run(checkpoint):
    data, fresh = digits(augmentation=Augmentation(rotation=10)), digits(augmentation=Augmentation(rotation=10))
    fit(data, checkpoint=checkpoint)
    L.Trainer(**SILENT).validate(Classification(LeNet()), datamodule=data, ckpt_path=checkpoint, verbose=False)
    ours, expected = data.train_dataloader(), fresh.train_dataloader()
    for _ in range(2):  # two epochs, each with its own order and augmentation
        for (images, labels), (same, true) in zip(ours, expected, strict=True):
            assert torch.equal(images, same)
            assert torch.equal(labels, true)


@pytest.mark.parametrize("fail", [False, True])
def test_after_fine_tuning_with_a_cache(fail):
    model = Pretrained("torchvision/squeezenet1_1", weights="none", channels=1, image_size=32)
    data = digits(preprocessing=model.preprocessing)
    tuning = lc.FineTuning([{"epoch": 0, "train": "head"}], cache="memory")
    if fail:
        with pytest.raises(RuntimeError, match="a failure in training"):
            fit(data, Classification(model), callbacks=[tuning], fail=True)
    else:
        assert fit(data, Classification(model), callbacks=[tuning]).axes == {2}
    assert fit(data, Classification(LeNet(image_size=32))).axes == {4}


def test_features_of_a_killed_run_are_not_served():
    data = digits()
    data.serve({"train": torch.zeros(1, 50, 3)})
    data.setup("fit")
    assert next(iter(data.train_dataloader()))[0].ndim == 4


def test_state_before_the_first_batch_of_a_run():
    data = digits()
    fit(data)
    data.setup("fit")
    assert data.state_dict() == {}


def test_loaders_of_former_runs_are_released():
    data = digits()
    for _ in range(3):
        fit(data)
    assert len(data._loaders) == 2  # to train and to validate
