import json
from pathlib import Path

import pytest
import torch
from helpers.command_line import SMOKE, metrics, weights

import lightconv as lc
from lightconv.runs.checkpoints import find_checkpoint

RUN = Path("runs/mine")
TINY = ("model.backbone=timm/test_efficientnet", "model.weights=none", "model.image_size=32", "model.channels=1")

# most tests need the run alone, not the command line that the fixture returns
needs_run = pytest.mark.usefixtures("trained")


@needs_run
def test_network_has_trained_weights():
    run = lc.open_run(str(RUN))
    state = run.network.state_dict()
    assert state.keys() == weights(RUN).keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights(RUN).items())
    assert not run.network.training
    assert run.task.model is run.network


@needs_run
def test_data_and_figures():
    run = lc.open_run(RUN)
    assert isinstance(run.data, lc.data.Digits)
    assert run.classes == run.data.classes
    assert run.preprocessing == lc.Preprocessing(28, run.data.mean, run.data.std)
    assert run.figures == metrics(RUN)


def test_preprocessing_of_a_pretrained_network(lightconv):
    lightconv("train", *SMOKE, "model=pretrained", *TINY, f"hydra.run.dir={RUN}")
    run = lc.open_run(RUN)
    assert run.preprocessing == run.network.preprocessing
    assert run.preprocessing.image_size == 32


@needs_run
def test_other_checkpoints():
    path = find_checkpoint(RUN, "last")
    assert path == RUN / "checkpoints/last.ckpt"
    for checkpoint in ("last", str(path)):
        assert lc.open_run(RUN, checkpoint).network is not None
    with pytest.raises(lc.InputError, match=r"checkpoint=middle is neither .*: best, last"):
        _ = lc.open_run(RUN, "middle").network


@needs_run
def test_nothing_is_loaded_before_its_use():
    for path in RUN.rglob("*.ckpt"):
        path.unlink()
    run = lc.open_run(RUN)
    assert run.config.seed == 0
    assert run.figures["epochs"] == 1


@pytest.mark.parametrize("directory", ["runs/unknown", "."])
def test_no_run(tmp_path, monkeypatch, directory):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(lc.InputError, match=r"directory=.* is not a run.* that `lightconv train` wrote"):
        lc.open_run(directory)


@pytest.mark.parametrize("content", ["{", "- 1", "seed: 0"])
def test_damaged_configuration(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(lc.InputError, match="is damaged"):
        lc.open_run(tmp_path)


def test_missing_and_damaged_figures(tmp_path):
    (tmp_path / "config.yaml").write_text("directory: /somewhere\n")
    run = lc.open_run(tmp_path)
    with pytest.raises(lc.InputError, match=r"the run was stopped before its end.*resume="):
        _ = run.figures
    (tmp_path / "metrics.json").write_text(json.dumps({"epochs": 1})[:-1])
    with pytest.raises(lc.InputError, match="is damaged"):
        _ = run.figures
