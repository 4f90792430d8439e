import pytest
import torch
from callbacks.test_graceful_stop import SETTINGS
from helpers.resuming import Copies, Record, train


@pytest.mark.parametrize("name", SETTINGS)
def test_every_checkpoint_resumes_with_the_same_numbers(tmp_path, name):
    settings = {**SETTINGS[name], "every_n_train_steps": 1}
    copies = Copies(tmp_path)
    record = Record()
    weights = train(tmp_path, record, copies, **settings)
    loops = [torch.load(path, weights_only=True)["loops"]["fit_loop"] for path in copies.copies]
    steps = [loop["epoch_loop.batch_progress"]["total"]["ready"] - 1 for loop in loops]
    assert steps == sorted(set(steps))
    assert len(steps) >= 4
    for path, step in zip(copies.copies, steps, strict=True):
        again = Record()
        assert torch.equal(train(tmp_path / "again", again, checkpoint=path, **settings), weights)
        assert again.losses == {key: loss for key, loss in record.losses.items() if key > step}
