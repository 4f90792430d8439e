import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from lightconv.errors import InputError
from lightconv.runs import checkpoints

STORED = Path(__file__).parent / "stored"


@pytest.fixture
def moved(tmp_path):
    """A run whose directory is not the one that it was written in."""
    return Path(shutil.copytree(STORED, tmp_path / "moved"))


def test_finding_does_not_write(moved):
    last = checkpoints.find_last_checkpoint(moved)
    assert last == checkpoints.find_checkpoint(moved, "last") == moved / "checkpoints/last.ckpt"
    assert last.read_bytes() == (STORED / "checkpoints/last.ckpt").read_bytes()


def test_run_within_its_first_epoch(tmp_path):
    assert checkpoints.find_last_checkpoint(tmp_path) is None


def test_paths_of_a_moved_run_are_rewritten(moved):
    path = moved / "checkpoints/last.ckpt"
    before = torch.load(path, weights_only=True)
    checkpoints.rewrite_moved_checkpoint(path, moved)
    after = torch.load(path, weights_only=True)
    former = OmegaConf.load(moved / "config.yaml").directory
    assert former in str(before["callbacks"])
    assert former not in str(after["callbacks"])
    assert str(after["callbacks"]) == str(before["callbacks"]).replace(former, str(moved))
    assert after["epoch"] == before["epoch"]
    assert all(torch.equal(after["state_dict"][name], tensor) for name, tensor in before["state_dict"].items())
    assert sorted(file.name for file in path.parent.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_run_in_its_place_is_left_alone(moved):
    config = OmegaConf.load(moved / "config.yaml")
    config.directory = str(moved)
    OmegaConf.save(config, moved / "config.yaml")
    path = moved / "checkpoints/last.ckpt"
    before = path.stat().st_ino
    checkpoints.rewrite_moved_checkpoint(path, moved)
    assert path.stat().st_ino == before


@pytest.mark.parametrize(("max_epochs", "goes_on"), [(-1, True), (2, True), (1, True), (0, False)])
def test_epochs_left(max_epochs, goes_on):
    path = STORED / "checkpoints/last.ckpt"  # of the second epoch, whose index is 1
    if goes_on:
        checkpoints.check_epoch(path, max_epochs)
    else:
        with pytest.raises(InputError, match=r"trainer.max_epochs=0: .* is in epoch 2 already"):
            checkpoints.check_epoch(path, max_epochs)
