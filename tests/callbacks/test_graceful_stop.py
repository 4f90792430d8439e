import signal
import threading

import pytest
import torch
from helpers.resuming import BATCHES, Record, SignalAt, train
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

SETTINGS = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 3},
    "validated": {"val_check_interval": 3},
    "validated in windows": {"val_check_interval": 3, "accumulate_grad_batches": 2},
    "validated rarely": {"check_val_every_n_epoch": 2},
    "validated over epochs": {"val_check_interval": 5, "check_val_every_n_epoch": None},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs by the name of their settings."""
    runs = {}
    for name, settings in SETTINGS.items():
        record = Record()
        weights = train(tmp_path_factory.mktemp("whole"), record, **settings)
        runs[name] = (weights, record)
    return runs


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("step", [0, 1, 2, BATCHES - 2, BATCHES - 1, BATCHES + 4])
def test_stopped_run_resumes_with_the_same_numbers(tmp_path, whole, settings, step):
    record = Record()
    stopped = False
    try:
        weights = train(tmp_path, record, SignalAt(step, signal.SIGINT), **SETTINGS[settings])
    except SystemExit as stop:
        stopped = stop.code == 1
        weights = train(tmp_path, record, checkpoint=tmp_path / "last.ckpt", **SETTINGS[settings])
    expected, expected_record = whole[settings]
    assert stopped or step >= BATCHES  # in the last epoch there may be no step left to stop at
    assert torch.equal(weights, expected)
    assert record.losses == expected_record.losses
    assert record.validations == expected_record.validations


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_status_after_a_signal(tmp_path, number, status):
    before = signal.getsignal(number)
    with pytest.raises(SIGTERMException) as stop:
        train(tmp_path, Record(), SignalAt(2, number))
    assert stop.value.code == status
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3
    assert signal.getsignal(number) is before


class StopInValidation(Callback):
    def on_validation_batch_end(self, trainer, *args):
        if trainer.global_step == 3:
            signal.raise_signal(signal.SIGTERM)


def test_signal_within_a_validation(tmp_path, whole):
    record = Record()
    with pytest.raises(SIGTERMException):
        train(tmp_path, record, StopInValidation(), val_check_interval=3)
    assert record.validations == 1
    weights = train(tmp_path, record, checkpoint=tmp_path / "last.ckpt", val_check_interval=3)
    expected, expected_record = whole["validated"]
    assert torch.equal(weights, expected)
    assert record.losses == expected_record.losses
    assert record.validations == expected_record.validations


def test_second_ctrl_c_saves_nothing_from_within_the_step(tmp_path):
    with pytest.raises(SystemExit, match="1"):
        train(tmp_path, Record(), SignalAt(BATCHES + 2, signal.SIGINT, times=2))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == BATCHES


class FailAt(Callback):
    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        if trainer.global_step == BATCHES + 2:
            raise RuntimeError("out of memory")


def test_error_within_a_step_saves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="out of memory"):
        train(tmp_path, Record(), FailAt())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == BATCHES


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ignored_signal_stays_ignored(tmp_path, number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        train(tmp_path, Record(), SignalAt(2, number))
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_other_thread_trains_without_handlers(tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(train(tmp_path, Record())))
    thread.start()
    thread.join()
    assert len(done) == 1
