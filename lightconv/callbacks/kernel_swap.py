"""lightconv's operators for as long as a Trainer runs."""

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
    compilation, and change back when it ends or fails; checkpoints are as without it. Given to Fabric, it acts in
    ``fabric.setup``, and `lightconv.restore` undoes it.

    Args:
        include: names or classes of the layers to swap, as for `lightconv.swap`.
        exclude: those to leave.

    Raises:
        InputError: when a run starts, for what `lightconv.swap` refuses and for a Trainer of pytorch_lightning.
    """

    def __init__(self, include: Pattern | Iterable[Pattern] = "*", exclude: Pattern | Iterable[Pattern] = ()) -> None:
        self.include = include
        self.exclude = exclude
        self._swapped: dict[nn.Module, list[nn.Module]] = {}  # by module: one callback may serve nested runs

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse the other package's Trainer before anything has happened, and swap what is there already."""
        if not isinstance(trainer, L.Trainer):
            raise InputError(
                f"KernelSwap works with lightning's Trainer, this one comes from {type(trainer).__module__}: write "
                "`import lightning.pytorch as pl`, or call lightconv.swap(model) and lightconv.restore(model) yourself"
            )
        with suppress(InputError):  # Lightning's tuner runs before on_fit_start
            self._swap(pl_module, *_parts(trainer))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Swap, now that the module is complete."""
        self._swap(pl_module, *_parts(trainer))

    on_validation_start = on_test_start = on_predict_start = on_fit_start

    def on_after_setup(self, fabric: Any, module: Any) -> None:
        """Swap what Fabric has set up; of its several models, some may have nothing to swap."""
        try:
            self._swap(module.module, *fabric._callbacks, fabric._precision)
        except InputError as error:
            rank_zero_warn(f"KernelSwap: {error}")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Change back what this callback changed."""
        self._restore(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Change back; after an exception there is no teardown."""
        self._restore(pl_module)

    def _swap(self, module: nn.Module, *others: Any) -> None:
        report = swap(module, self.include, self.exclude)
        if report.swapped:  # and not at every validation of a fit
            rank_zero_info(f"lightconv: {report}")
        self._swapped.setdefault(module, []).extend(report.swapped.values())

    def _restore(self, module: nn.Module) -> None:
        for layer in self._swapped.pop(module, []):
            restore(layer)


def _parts(trainer: Any) -> list[Any]:
    """What else of a Trainer might swap."""
    return [*trainer.callbacks, trainer.precision_plugin]


class DefaultKernelSwap(KernelSwap):
    """What LIGHTCONV=1 adds: gives way to a swap of the script's own, and only warns of nothing to swap."""

    def _swap(self, module: nn.Module, *others: Any) -> None:
        if any(isinstance(other, KernelSwap | KernelPrecision) and other is not self for other in others):
            return
        try:
            super()._swap(module, *others)
        except InputError as error:
            rank_zero_warn(f"LIGHTCONV=1: {error}")


class KernelPrecision:
    """The same as part of a precision plugin, the Trainer's or Fabric's, for those who prefer ``plugins=``.

    Mixed into the plugin that is wanted, since Lightning takes one::

        class Mixed(lc.KernelPrecision, MixedPrecision):
            exclude = "head.*"

        L.Trainer(plugins=Mixed("bf16-mixed", "cuda"))

    Attributes:
        include: names or classes of the layers to swap, as for `lightconv.swap`.
        exclude: those to leave.
    """

    include: Pattern | Iterable[Pattern] = "*"
    exclude: Pattern | Iterable[Pattern] = ()
    _swapped: tuple[nn.Module, ...] = ()

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Swap in place, and convert as the plugin does."""
        self._swapped += tuple(swap(module, self.include, self.exclude).swapped.values())
        return super().convert_module(module)

    def teardown(self) -> None:
        """Change back, also after a failure."""
        for layer in self._swapped:
            restore(layer)
        self._swapped = ()
        super().teardown()
