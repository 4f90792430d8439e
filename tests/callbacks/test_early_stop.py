from functools import partial

import lightning as L
import torch
from helpers.trainers import SILENT

import lightconv as lc
from lightconv.callbacks import EarlyStop
from lightconv.tasks import Classification


def epochs(callback):
    module = Classification(lc.models.LeNet(), optimizer=partial(torch.optim.SGD, lr=0.0))
    trainer = L.Trainer(max_epochs=5, callbacks=[callback], **SILENT)
    trainer.fit(module, lc.data.Digits(training_images=50))
    return trainer.current_epoch


def test_patience_of_zero_trains_until_the_first_step_back():
    assert epochs(EarlyStop("val/loss", patience=0)) == 2


def test_second_run_has_all_its_patience():
    callback = EarlyStop("val/loss", patience=2)
    assert [epochs(callback), epochs(callback)] == [3, 3]
