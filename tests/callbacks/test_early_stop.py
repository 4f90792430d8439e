from functools import partial

import lightning as L
import torch

import lightconv as lc
from lightconv.callbacks import EarlyStop
from lightconv.tasks import Classification

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def test_another_run_with_the_same_callback_has_all_its_patience():
    def epochs(callback):
        module = Classification(lc.models.LeNet(), optimizer=partial(torch.optim.SGD, lr=0.0))
        trainer = L.Trainer(max_epochs=5, callbacks=[callback], enable_checkpointing=False, **QUIET)
        trainer.fit(module, lc.data.Digits(training_images=50))
        return trainer.current_epoch

    callback = EarlyStop("val/loss", patience=2)
    assert [epochs(callback), epochs(callback)] == [3, 3]
