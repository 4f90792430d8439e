"""A last training batch of one image, and BatchNorm on maps of one pixel."""

import pytest
import torch
from helpers.command_line import SMOKE, metrics, weights

from lightconv.errors import InputWarning

NETWORK = ("model=pretrained", "model.backbone=torchvision/resnet18", "model.weights=none", "model.image_size=32")
RUN = (
    *SMOKE,
    *NETWORK,
    "trainer.limit_train_batches=1.0",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "data.training_images=33",
    "data.batch_size=16",
    "logger=metrics",
    "scheduler=none",
)


def steps(run):
    return torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)["global_step"]


def test_joins_the_batch_before(lightconv):
    with pytest.warns(InputWarning, match=r"the last of 33 images joins .* model\.backbone\.layer4"):
        lightconv("train", *RUN, "hydra.run.dir=whole", "trainer.max_epochs=2")
    assert steps("whole") == 4
    with pytest.warns(InputWarning):
        lightconv("train", *RUN, "hydra.run.dir=half")
    with pytest.warns(InputWarning):
        lightconv("train", "resume=half", "trainer.max_epochs=2")
    assert all(torch.equal(tensor, weights("half")[name]) for name, tensor in weights("whole").items())


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("model.image_size=64", 3),  # maps of four pixels
        ("trainer.limit_train_batches=2", 2),
        ("data.training_images=34", 3),
    ],
)
@pytest.mark.filterwarnings("error::lightconv.errors.InputWarning")
def test_other_runs_keep_their_batches(lightconv, setting, expected):
    lightconv("train", *RUN, setting, "hydra.run.dir=run")
    assert steps("run") == expected


@pytest.mark.filterwarnings("error::lightconv.errors.InputWarning")
def test_frozen_layers_keep_their_batches(lightconv):
    lightconv("train", *RUN, "finetune=feature_extraction", "hydra.run.dir=run")
    assert steps("run") == 3


def test_layers_of_a_later_stage(lightconv):
    stages = ("finetune=last_block", "finetune.cache=null", "finetune.stages.1.epoch=1", "trainer.max_epochs=2")
    with pytest.warns(InputWarning, match="joins the batch before"):
        lightconv("train", *RUN, *stages, "hydra.run.dir=run")
    assert metrics("run")["epochs"] == 2


def test_batches_of_one_image(lightconv, mistake):
    message = mistake(lightconv, "train", *RUN, "data.batch_size=1")
    assert "data.batch_size=1: model.backbone" in message
    assert "at least 2" in message
