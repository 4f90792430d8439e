import resource
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from lightconv.errors import InputError, InputWarning
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
    checkpoints.rewrite_moved_checkpoints(moved)
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
    checkpoints.rewrite_moved_checkpoints(moved)
    assert path.stat().st_ino == before


@pytest.fixture
def run(tmp_path):
    """A run with last.ckpt, previous.ckpt and best.ckpt, numbered by their steps."""
    folder = tmp_path / "run/checkpoints"
    files = checkpoints.VerifiedCheckpoints()
    for step in range(3):
        files.save_checkpoint({"step": step}, folder / "last.ckpt")
    files.save_checkpoint({"step": 0}, folder / "best.ckpt")
    return tmp_path / "run"


def step_of(path):
    return torch.load(path, weights_only=True)["step"]


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def test_last_checkpoint_but_one_is_kept(run):
    folder = run / "checkpoints"
    assert {path.name: step_of(path) for path in folder.iterdir()} == {
        "last.ckpt": 2,
        "previous.ckpt": 1,
        "best.ckpt": 0,
    }


def test_damaged_checkpoint_is_replaced_by_the_one_before(run):
    damage(run / "checkpoints/last.ckpt")
    with pytest.warns(InputWarning, match=r"last.ckpt is damaged: .* The run goes on from previous.ckpt"):
        checkpoints.repair_last_checkpoint(run)
    assert step_of(run / "checkpoints/last.ckpt") == 1
    # the next checkpoint does not push the damaged one into the place of the one before
    checkpoints.VerifiedCheckpoints().save_checkpoint({"step": 3}, run / "checkpoints/last.ckpt")
    assert step_of(run / "checkpoints/previous.ckpt") == 1


def test_process_killed_between_two_renames(run):
    (run / "checkpoints/last.ckpt").unlink()
    (run / "checkpoints/.last.ckpt.0a1b.new").touch()
    checkpoints.repair_last_checkpoint(run)
    assert step_of(run / "checkpoints/last.ckpt") == 1
    assert not (run / "checkpoints/.last.ckpt.0a1b.new").exists()


def test_all_checkpoints_damaged(run):
    damage(run / "checkpoints/last.ckpt")
    damage(run / "checkpoints/previous.ckpt")
    with pytest.raises(InputError, match=r"No checkpoint is left before it: .* copy .*best.ckpt to last.ckpt"):
        checkpoints.repair_last_checkpoint(run)


def test_damaged_checkpoint_is_not_read(run):
    path = run / "checkpoints/best.ckpt"
    assert checkpoints.VerifiedCheckpoints().load_checkpoint(path)["step"] == 0
    damage(path)
    with pytest.raises(InputError, match=r"best.ckpt is damaged"):
        checkpoints.VerifiedCheckpoints().load_checkpoint(path)


def test_full_disk_leaves_the_old_checkpoint(run):
    before = sorted((path.name, path.read_bytes()) for path in (run / "checkpoints").iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"too large: '.*last.ckpt'"):
            checkpoints.VerifiedCheckpoints().save_checkpoint({"a": torch.zeros(10_000)}, run / "checkpoints/last.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert before == sorted((path.name, path.read_bytes()) for path in (run / "checkpoints").iterdir())
