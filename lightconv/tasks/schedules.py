"""Optimizers and learning-rate schedules of torch's, with what only the run knows filled in."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.pytorch.utilities.types import LRSchedulerConfigType
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from lightconv.errors import InputError

_LENGTHS = ("total_steps", "T_max", "total_iters")  # what torch's schedulers call the length of the whole schedule


def built(part: str, build: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a factory of torch's.

    Raises:
        InputError: if torch refuses the arguments.
    """
    try:
        return build(*args, **kwargs)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"torch refuses the {part}: {error}") from error


def schedule(optimizer: Optimizer, build: Callable[..., LRScheduler], steps: float) -> LRSchedulerConfigType:
    """Build a scheduler, and say how Lightning is to move it.

    A schedule over a whole run (OneCycleLR, CosineAnnealingLR, LinearLR, PolynomialLR) given without its length gets
    ``steps`` and moves every step; ReduceLROnPlateau watches the validation loss; others move every epoch.
    """
    given = build.keywords if isinstance(build, partial) else {}
    accepted = inspect.signature(build).parameters
    length = next((name for name in _LENGTHS if name in accepted and name not in given), None)
    if "epochs" in given:  # OneCycleLR's other way to give its length
        length = None
    lengths = {length: steps} if length else {}
    scheduler = built("scheduler", build, optimizer, **lengths)
    every_step = bool(lengths) or isinstance(scheduler, OneCycleLR | CyclicLR)
    config: LRSchedulerConfigType = {"scheduler": scheduler, "interval": "step" if every_step else "epoch"}
    if isinstance(scheduler, ReduceLROnPlateau):
        config |= {"monitor": "val/loss", "reduce_on_plateau": True}
    return config
