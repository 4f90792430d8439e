"""Every file in conf/ composes, and the objects it names can be built."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lightconv.cli.help import CONFIGURATIONS
from lightconv.runs.build import build_data, build_task, build_trainer
from lightconv.runs.model_settings import complete_model

FILES = sorted(str(p.relative_to(CONFIGURATIONS)) for p in CONFIGURATIONS.rglob("*.yaml"))
CHOICES = [Path(file).with_suffix("") for file in FILES if "/" in file]


def composed(overrides, directory):
    with initialize_config_dir(str(CONFIGURATIONS), version_base="1.3"):
        return compose("train", [*overrides, f"directory={directory}", "hydra.run.dir=test"])


def setting(choice):
    """Return a choice as one types it: experiment=fashion_mnist_500/all."""
    return f"{choice.parts[0]}={'/'.join(choice.parts[1:])}"


def test_groups():
    groups = {choice.parts[0] for choice in CHOICES}
    assert groups == {
        "model",
        "data",
        "augmentation",
        "optimizer",
        "scheduler",
        "trainer",
        "finetune",
        "callbacks",
        "logger",
        "experiment",
        "debug",
    }


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_composes_and_builds(choice, tmp_path):
    overrides = [setting(choice)]
    if choice.name == "gpu":
        overrides += ["trainer.accelerator=auto", "trainer.precision=32-true"]  # no GPU here
    if choice == Path("data/folder"):  # its classes are those of a folder
        overrides += [f"data.root={tmp_path}"]
        for name in "abcdefghij":
            (tmp_path / name).mkdir()
    if choice == Path("model/pretrained"):  # its weights would be downloaded
        overrides += ["model.weights=none"]
    config = complete_model(composed(overrides, tmp_path))
    task, trainer = build_task(config), build_trainer(config, tmp_path)
    data = build_data(config, task)
    assert len(data.classes) == task.classes
    assert trainer.max_epochs == config.trainer.max_epochs
    OmegaConf.resolve(config)


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.parts[0] in {"data", "experiment"}], ids=str)
def test_chosen_augmentation_replaces_any_other(choice, tmp_path):
    chosen = setting(choice)
    for name, other in (("strong", "data=mnist"), ("none", "data=digits")):
        data = composed([chosen, f"augmentation={name}"], tmp_path).data
        expected = composed([other, f"augmentation={name}"], tmp_path).data
        assert (data.augmentation, data.mixing) == (expected.augmentation, expected.mixing)
    assert data.augmentation is None


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith("experiment/")])
def test_recipe_states_purpose_and_result(file):
    package, purpose, *_ = (CONFIGURATIONS / file).read_text().splitlines()
    assert package == "# @package _global_"
    assert purpose.startswith("# ")
    assert re.search(r"0\.\d{3}", (CONFIGURATIONS / file).read_text().split("\n\n")[0])
