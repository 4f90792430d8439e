"""Run a Trainer or Fabric on lightconv's operators."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from lightconv.errors import InputError
from lightconv.surgery.swap import Pattern, restore, swap


class KernelSwap(L.Callback):
    """Run a module's convolutions and max-poolings on lightconv's operators in fit, validate, test and predict.

    Layers change in place when a run starts, after ``configure_model`` and under any precision, strategy and
    compilation. They change back when the run ends or fails. Checkpoints are the same as without the callback. With
    Fabric, layers change in ``fabric.setup``, and `lightconv.restore` changes them back.

    Args:
        include: names or classes of layers to swap, as for `lightconv.swap`.
        exclude: names or classes of layers to keep.

    Raises:
        InputError: If there is nothing to swap, or if the Trainer is pytorch_lightning's. Raised when a run starts.

    Example:
        >>> trainer = L.Trainer(max_epochs=10, callbacks=[KernelSwap(exclude="head.*")], logger=False)
    """

    def __init__(self, include: Pattern | Iterable[Pattern] = "*", exclude: Pattern | Iterable[Pattern] = ()) -> None:
        self.include = include
        self.exclude = exclude
        # by module, because one callback may serve nested runs
        self._swapped: dict[nn.Module, list[nn.Module]] = {}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check the Trainer's package and swap the layers built so far.

        Lightning's tuner runs before on_fit_start, so layers change here already. ``configure_model`` comes later, so
        finding nothing is no error yet.
        """
        if not isinstance(trainer, L.Trainer):
            raise InputError(
                f"KernelSwap works with lightning's Trainer, but this one comes from {type(trainer).__module__}: write "
                "`import lightning.pytorch as pl`, or call lightconv.swap(model) and lightconv.restore(model) yourself"
            )
        with suppress(InputError):
            self._swap(pl_module, *_plugins_of(trainer))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Swap the layers of the complete module."""
        self._swap(pl_module, *_plugins_of(trainer))

    on_validation_start = on_test_start = on_predict_start = on_fit_start

    def on_after_setup(self, fabric: Any, module: Any) -> None:
        """Swap the layers of a module set up by Fabric.

        Warn if there are none: one of Fabric's several models may have nothing to swap.
        """
        try:
            self._swap(module.module, *fabric._callbacks, fabric._precision)
        except InputError as error:
            rank_zero_warn(f"KernelSwap: {error}")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the layers swapped by this callback."""
        self._restore(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Restore the layers. Lightning calls no teardown after an exception."""
        self._restore(pl_module)

    def _swap(self, module: nn.Module, *plugins: Any) -> None:
        report = swap(module, self.include, self.exclude)
        if report.swapped:  # empty at every validation within a fit
            rank_zero_info(f"lightconv: {report}")
        self._swapped.setdefault(module, []).extend(report.swapped.values())

    def _restore(self, module: nn.Module) -> None:
        for layer in self._swapped.pop(module, []):
            restore(layer)


def _plugins_of(trainer: Any) -> list[Any]:
    """Return a Trainer's callbacks and its precision plugin, all possible owners of a swap."""
    return [*trainer.callbacks, trainer.precision_plugin]


class DefaultKernelSwap(KernelSwap):
    """Callback added to every Trainer by LIGHTCONV=1.

    It does nothing if the script has a swap of its own, and only warns if there is nothing to swap.
    """

    def _swap(self, module: nn.Module, *plugins: Any) -> None:
        if any(isinstance(plugin, KernelSwap | KernelPrecision) and plugin is not self for plugin in plugins):
            return
        try:
            super()._swap(module, *plugins)
        except InputError as error:
            rank_zero_warn(f"LIGHTCONV=1: {error}")


class KernelPrecision:
    """Mixin for precision plugins, the Trainer's or Fabric's, with the effect of `KernelSwap`.

    Lightning takes one precision plugin, so the mixin extends the plugin in use.

    Attributes:
        include: names or classes of layers to swap, as for `lightconv.swap`.
        exclude: names or classes of layers to keep.

    Example:
        >>> from lightning.pytorch.plugins import MixedPrecision
        >>> class Mixed(KernelPrecision, MixedPrecision):
        ...     exclude = "head.*"
        >>> trainer = L.Trainer(plugins=Mixed("bf16-mixed", "cpu"), accelerator="cpu", logger=False)
    """

    include: Pattern | Iterable[Pattern] = "*"
    exclude: Pattern | Iterable[Pattern] = ()
    _swapped: tuple[nn.Module, ...] = ()

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Swap layers in place, then convert the module as the plugin does."""
        self._swapped += tuple(swap(module, self.include, self.exclude).swapped.values())
        return super().convert_module(module)

    def teardown(self) -> None:
        """Restore the layers, also after a failure."""
        for layer in self._swapped:
            restore(layer)
        self._swapped = ()
        super().teardown()
