"""Last training batch of one image, on which BatchNorm cannot be trained if its maps are one pixel large.

torch raises there, at the end of the first epoch. The image joins the batch before instead, so that each image is still
seen once per epoch. Networks that train on a single image, and all other numbers of images, keep their batches.
"""

import math
import warnings
from typing import Any

import lightning as L
from torch import nn

from lightconv.callbacks import FineTuning
from lightconv.data import ImageData
from lightconv.errors import InputError, InputWarning
from lightconv.tasks import Classification

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def join_last_image(trainer: L.Trainer, task: Classification, data: ImageData) -> None:
    """Let a last image join the batch before, if the network could not train on it alone.

    Raises:
        InputError: If every batch has one image.
    """
    images = len(data.split("train")[1])
    has_lone_image = data.batch_size == 1 or images % data.batch_size == 1
    if not has_lone_image or not reaches_last_batch(trainer, data):
        return
    layer = single_value_layer(trainer, task, data)
    if layer is None:
        return
    if images == 1 or data.batch_size == 1:
        raise InputError(
            f"data.batch_size={data.batch_size}: {layer} is a BatchNorm with one value per channel and image, and "
            f"cannot be trained on batches of one image. Set data.batch_size to at least 2, with 2 or more images"
        )
    data.joins_last_image = True
    warnings.warn(
        f"data.batch_size={data.batch_size}: the last of {images:,} images joins the batch before, because {layer} is "
        "a BatchNorm that cannot be trained on one image",
        InputWarning,
        stacklevel=2,
    )


def reaches_last_batch(trainer: L.Trainer, data: ImageData) -> bool:
    """Return True if the Trainer's limits let an epoch reach its last batch."""
    batches = math.ceil(len(data.split("train")[1]) / data.batch_size)
    limit = getattr(trainer, "overfit_batches", 0) or trainer.limit_train_batches
    return limit >= batches if isinstance(limit, int) else limit == 1.0


def single_value_layer(trainer: L.Trainer, task: Classification, data: ImageData) -> str | None:
    """Return the name of a BatchNorm that is trained on one value per channel of one image; None if there is none."""
    single: list[str] = []
    hooks = []
    for name, module in task.named_modules():
        if isinstance(module, _BATCH_NORMS) and is_trained(trainer, task, module):

            def note(layer: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
                # (1, c, ...): one value per channel
                if inputs[0].numel() == inputs[0].shape[1]:
                    single.append(name)

            hooks.append(module.register_forward_pre_hook(note))
    try:
        if hooks:
            task.check_fit(data)  # runs the network on one blank image
    finally:
        for hook in hooks:
            hook.remove()
    return single[0] if single else None


def is_trained(trainer: L.Trainer, task: Classification, module: nn.Module) -> bool:
    """Return True if a module is in training mode at any time of the run."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, FineTuning):
            return callback.trains(task, module)
    return module.training
