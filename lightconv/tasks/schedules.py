"""Optimizers and learning-rate schedules of torch, completed with the length of the run."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.utilities.types import LRSchedulerConfigType
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from lightconv.culprit import find_culprit
from lightconv.errors import InputError

_LENGTH_ARGUMENTS = ("total_steps", "T_max", "total_iters")  # torch's names for the length of a whole schedule


def build_part(name: str, factory: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a factory of torch.

    Args:
        name: name of the part in the error message, such as "optimizer".
        factory: class or partial of torch.optim.
        *args: arguments of the factory.
        **kwargs: keyword arguments of the factory.

    Raises:
        InputError: If torch rejects the arguments.
    """
    try:
        return factory(*args, **kwargs)
    except (TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
        configured = factory.keywords if isinstance(factory, partial) else {}

        def build(settings: dict[str, Any]) -> Any:
            assert isinstance(factory, partial)
            return factory.func(*args, **{**settings, **kwargs})

        culprit = find_culprit(build, configured, error)
        key = "" if culprit is None else f"{name}.{culprit}={configured[culprit]}: "
        raise InputError(f"{key}torch rejects the {name}'s arguments: {error}") from error


def check_scheduler(factory: Callable[..., LRScheduler] | None, trainer: L.Trainer) -> None:
    """Check that the figure followed by a scheduler will be there.

    Args:
        factory: class of torch.optim.lr_scheduler, a partial of one, or None.
        trainer: Trainer of the run.

    Raises:
        InputError: If ReduceLROnPlateau is to follow the validation loss, and the run has no validation.
    """
    kind = factory.func if isinstance(factory, partial) else factory
    is_plateau = isinstance(kind, type) and issubclass(kind, ReduceLROnPlateau)
    if is_plateau and trainer.limit_val_batches == 0:
        raise InputError(
            "scheduler=plateau follows the validation loss, and trainer.limit_val_batches=0 turns validation off: "
            "choose another scheduler, or leave trainer.limit_val_batches out"
        )


def _check_length(steps: float) -> None:
    """Check the number of steps of a run that a schedule spans.

    Raises:
        InputError: If it is unknown or there are none.
    """
    if not 0 < steps < math.inf:
        number = "any number of" if steps == math.inf else "no"
        raise InputError(
            f"the scheduler spans the whole run, and this run has {number} steps: set trainer.max_epochs or "
            "trainer.max_steps, and trainer.limit_train_batches above 0, or choose scheduler=none"
        )


def check_schedule_end(factory: Callable[..., LRScheduler], trainer: L.Trainer, end: float) -> None:
    """Check that a schedule lasts until the run ends, or until its stage of fine-tuning does.

    OneCycleLR raises an error after its end, and CosineAnnealingLR rises again. A checkpoint restores the length that
    the schedule had.

    Args:
        factory: class of torch.optim.lr_scheduler, or a partial of one.
        trainer: Trainer whose checkpoint is restored.
        end: optimizer step after which the schedule is no longer needed.

    Raises:
        InputError: If the schedule ends earlier. A length configured by hand may do so, except OneCycleLR's.
    """
    configured = factory.keywords if isinstance(factory, partial) else {}
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        names = [name for name in _LENGTH_ARGUMENTS if hasattr(scheduler, name)]
        if config.interval != "step" or not names or (names[0] in configured and names[0] != "total_steps"):
            continue
        # the steps that this schedule has made so far may be fewer than the run's
        last_step = trainer.global_step - scheduler.last_epoch + getattr(scheduler, names[0])
        if last_step < end:
            raise InputError(
                f"the schedule of the learning rate ({type(scheduler).__name__}) ends at step {last_step}, and the run "
                f"at step {end:g}. A schedule that has ended does not rise again: leave trainer.max_epochs as it was, "
                "or start a new run with more epochs."
            )


def build_schedule(
    optimizer: Optimizer,
    factory: Callable[..., LRScheduler],
    steps: float,
    epochs_per_validation: int = 1,
) -> LRSchedulerConfigType:
    """Build a scheduler and Lightning's settings for it.

    A schedule over a whole run (OneCycleLR, CosineAnnealingLR, LinearLR, PolynomialLR) without a configured length
    gets ``steps`` and moves every step. ReduceLROnPlateau watches the validation loss. All others move every epoch.

    Args:
        optimizer: optimizer to schedule.
        factory: class of torch.optim.lr_scheduler, or a partial of one.
        steps: number of optimizer steps in the run.
        epochs_per_validation: number of epochs between validations; ReduceLROnPlateau moves after each validation.

    Raises:
        InputError: If torch rejects the arguments, or if the schedule ends before the run.
    """
    configured = factory.keywords if isinstance(factory, partial) else {}
    accepted = inspect.signature(factory).parameters
    length = {}
    # OneCycleLR also takes its length as epochs and steps_per_epoch
    if "epochs" not in configured:
        missing = [name for name in _LENGTH_ARGUMENTS if name in accepted and name not in configured]
        length = dict.fromkeys(missing[:1], steps)
    if length:
        _check_length(steps)
    scheduler = build_part("scheduler", factory, optimizer, **length)
    if isinstance(scheduler, OneCycleLR) and scheduler.total_steps < steps < math.inf:
        raise InputError(
            f"scheduler.total_steps={scheduler.total_steps}: the run has {steps} steps, and one cycle ends before. Set "
            f"scheduler.total_steps to at least {steps}, or leave it out"
        )
    moves_every_step = bool(length) or isinstance(scheduler, OneCycleLR | CyclicLR)
    config: LRSchedulerConfigType = {"scheduler": scheduler, "interval": "step" if moves_every_step else "epoch"}
    if isinstance(scheduler, ReduceLROnPlateau):
        config |= {"monitor": "val/loss", "reduce_on_plateau": True, "frequency": epochs_per_validation}
    return config
