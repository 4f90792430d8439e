"""Rehearsal of a run: everything up to its first step, and one step on two blank images, before a directory is claimed.

Lightning and torch check many settings when they are first used. A rehearsal uses them, so that a run which cannot
train ends as a mistake in the input. Random states and buffers stay as they were.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf
from torch.func import functional_call
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightconv.culprit import find_culprit
from lightconv.data import ImageData
from lightconv.errors import InputError
from lightconv.operators.backend import use_backend
from lightconv.runs.arguments import as_typed
from lightconv.runs.build import build_scheduler, instantiate
from lightconv.tasks import Classification
from lightconv.tasks.schedules import build_part, build_schedule

# a rehearsal writes and prints nothing
_SILENT: dict[str, Any] = {
    "logger": False,
    "profiler": None,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


class _ReadyError(Exception):
    """Raised where the run would take its first step."""


class _StopWhenReady(L.Callback):
    """Callback that ends a rehearsal.

    Args:
        image_shape: (channels, height, width) of the images.
    """

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        self.image_shape = image_shape

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take a step on blank images and stop."""
        assert isinstance(pl_module, Classification)
        step_on_blank_images(trainer, pl_module, self.image_shape)
        step_on_a_copy(trainer, pl_module)
        raise _ReadyError

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop."""
        raise _ReadyError

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop."""
        raise _ReadyError


def rehearse(config: DictConfig, task: Classification, data: ImageData, directory: Path) -> None:
    """Prepare training, and validation and test if they are limited, up to their first batches.

    Args:
        config: configuration of the run.
        task: task of the run.
        data: data of the run, read for training.
        directory: directory of the run; nothing is written there.

    Raises:
        InputError: If the run would fail before or in its first step; the message names the setting at fault.
    """
    settings: dict[str, Any] = {str(name): value for name, value in config.trainer.items() if name not in _SILENT}

    def prepare(changed: dict[str, Any]) -> None:
        with isolate_rng():
            prepare_all(config, {**changed, "_target_": settings["_target_"]}, task, data, directory)

    with use_backend(config.backend):
        pass  # the backend itself is checked; torch's operators step faster than interpreted kernels
    try:
        prepare(settings)
    except InputError:
        raise
    except Exception as error:
        culprit = find_culprit(prepare, settings, error)
        place = "trainer" if culprit is None else f"trainer.{culprit}={as_typed(settings[culprit])}"
        raise InputError(f"{place}: {type(error).__name__}: {str(error).strip()}") from error


def prepare_all(
    config: DictConfig, settings: dict[str, Any], task: Classification, data: ImageData, directory: Path
) -> None:
    """Let a Trainer of these settings prepare a run, and stop before the first batch of each part."""
    callbacks: list[L.Callback] = [_StopWhenReady(data.image_shape)]
    if config.get("finetune"):
        settings_left_out = {"cache": None, "fuse": False}
        callbacks.insert(0, instantiate(config.finetune, scheduler=build_scheduler(config), **settings_left_out))
    trainer: L.Trainer = instantiate(
        OmegaConf.create(settings),
        callbacks=callbacks,
        default_root_dir=str(directory),
        **_SILENT,
    )
    # other strategies start processes
    if not isinstance(trainer.strategy, SingleDeviceStrategy):
        return
    with use_backend("reference"):
        with suppress(_ReadyError):
            trainer.fit(task, data)
        if is_share(trainer.limit_val_batches):
            with suppress(_ReadyError):
                trainer.validate(task, data, verbose=False)
        # a test's files are read here only if the setting may leave no batch of them
        if is_share(trainer.limit_test_batches):
            with suppress(_ReadyError):
                trainer.test(task, data, verbose=False)


def is_share(limit: float) -> bool:
    """Return True for a limit that is a share of the batches, which may be none."""
    return isinstance(limit, float) and limit not in {0.0, 1.0}


def step_on_blank_images(trainer: L.Trainer, task: Classification, image_shape: tuple[int, int, int]) -> None:
    """Compute loss and gradients of two blank images, without a change to the task.

    Raises:
        InputError: If that fails.
    """
    images = trainer.precision_plugin.convert_input(torch.zeros(2, *image_shape, device=task.device))
    targets = torch.zeros(2, dtype=torch.int64, device=task.device)
    # BatchNorm's statistics are updated in these copies
    buffers = {name: buffer.clone() for name, buffer in task.named_buffers()}
    parameters = [parameter for parameter in task.parameters() if parameter.requires_grad]
    try:
        with trainer.precision_plugin.train_step_context():
            loss = task.training_loss(functional_call(task, buffers, (images,)), targets)
        torch.autograd.grad(loss, parameters, allow_unused=True)
    except Exception as error:
        shape = " x ".join(map(str, images.shape))
        raise InputError(
            f"model: {type(task.model).__name__} cannot train, a step on blank images of {shape} fails: "
            f"{type(error).__name__}: {error}"
        ) from error


def step_on_a_copy(trainer: L.Trainer, task: Classification) -> None:
    """Let another optimizer and scheduler step on a copy of one parameter: some refuse settings only then.

    Raises:
        InputError: If one of them fails.
    """
    # of the most axes: some optimizers do not take the strides of channels_last
    parameter = max((p for p in task.parameters() if p.requires_grad), key=lambda p: p.ndim)
    copy = torch.nn.Parameter(parameter.detach().clone())
    optimizer = build_part("optimizer", task.optimizer, [copy])
    scheduler = None
    if task.scheduler is not None:
        scheduler = build_schedule(optimizer, task.scheduler, steps=trainer.estimated_stepping_batches)["scheduler"]
    for _ in range(2):
        copy.grad = torch.ones_like(copy)
        try:
            optimizer.step(lambda: 1.0)  # L-BFGS calls it
        except Exception as error:
            raise InputError(f"optimizer: {type(optimizer).__name__} cannot train this network: {error}") from error
        # a run of one step has no second rate
        if scheduler is not None and trainer.estimated_stepping_batches > 1:
            step_scheduler(scheduler)


def step_scheduler(scheduler: Any) -> None:
    """Let a scheduler move once.

    Raises:
        InputError: If it fails.
    """
    try:
        scheduler.step(*([1.0] if isinstance(scheduler, ReduceLROnPlateau) else []))
    except Exception as error:
        raise InputError(f"scheduler: {type(scheduler).__name__} fails in its first steps: {error}") from error
