"""Train a pretrained network in stages: the head, then more and more of what lies before it."""

import math
import warnings
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightconv.callbacks.feature_cache import FeatureCache
from lightconv.callbacks.stages import Blocks, Stage, check_names, depths, freeze, split_by_depth, stages_of
from lightconv.data import ImageData
from lightconv.errors import InputError
from lightconv.models import Pretrained
from lightconv.surgery.fuse import fuse, unfuse
from lightconv.tasks.schedules import schedule

_RATES = ("max_lr", "base_lr")  # learning rates that schedulers are given, in place of the optimizer's


class FineTuning(L.Callback):
    """Freeze and unfreeze by epoch, in a module that knows nothing of it.

    The optimizer gets all its groups, one a block, before the first step, so that any scheduler works with them; which
    stage it is follows from the epoch, also when a run is resumed. What is frozen has no gradients and is in
    evaluation: nothing is saved for its backward pass, its statistics stay. DistributedDataParallel is wrapped anew
    around what trains. When the run ends everything is as trainable as before.

    Args:
        stages: as `Stage`, or dictionaries of what it takes.
        decay: factor on the learning rate from a block to the one before it (Howard, Ruder 2018: 1/2.6).
        scheduler: called with the optimizer at the start of each stage, for the length of that stage; the module then
            has none.
        blocks: names of modules, from the head to the input; `lightconv.models.Pretrained` says so itself.
        cache: "memory", or a directory: while the whole backbone of a `Pretrained` is frozen, the head trains on
            features that are computed once, as `FeatureCache` does.
        copies: augmented copies of each image to cache; None leaves augmented images uncached.
        fuse: while the whole backbone of a `Pretrained` is frozen, compute its chains of convolution, BatchNorm2d,
            activation and pooling as blocks (`lightconv.fuse`), the same but for rounding.

    Raises:
        InputError: for stages that are none; and when the run starts, if the module does not fit them.
    """

    def __init__(
        self,
        stages: Sequence[Stage | dict[str, Any]],
        decay: float = 1.0,
        scheduler: Callable[..., LRScheduler] | None = None,
        blocks: Blocks | None = None,
        cache: str | Path | None = None,
        copies: int | None = None,
        fuse: bool = False,
    ) -> None:
        if not 0 < decay <= 1:
            raise InputError(f"decay={decay} is not above 0 and at most 1")
        self.stages, self.decay, self.scheduler, self.blocks = stages_of(stages), decay, scheduler, blocks
        self.cache = FeatureCache(cache, copies) if cache else None
        self.fuse = fuse
        self.stage = 0
        self._resumed: int | None = None
        self._names: list[list[str] | None] = []
        self._trainable: set[nn.Parameter] = set()
        self._modes: dict[nn.Module, bool] = {}
        self._rates: list[float] = []
        self._scales: list[float] = []

    def check(self, pl_module: L.LightningModule) -> None:
        """Make sure that the stages fit the module; a run does so when it starts.

        Raises:
            InputError: for a name that fits no module, more blocks than there are, or depths that are not known.
        """
        network, blocks = self._parts(pl_module)
        if self.decay != 1 and blocks is None:
            raise InputError("decay goes by depth: give FineTuning(blocks=[[names of the head], [last block], ...])")
        self._names = [stage.names(blocks) for stage in self.stages]
        for names in self._names:
            check_names(network, names)

    def begin(self, pl_module: L.LightningModule) -> None:
        """Freeze what the first stage freezes, for a run without this callback, such as a learning-rate finder's."""
        self.check(pl_module)
        self._trainable = {p for p in pl_module.parameters() if p.requires_grad}
        self._freeze(pl_module)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Enter the stage of the epoch, or that of the checkpoint, whose optimizer and scheduler are restored next."""
        if not isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy):
            raise InputError(f"FineTuning works on one device or with DDP, not with {type(trainer.strategy).__name__}")
        warnings.filterwarnings("ignore", message="Found .* module.s. in eval mode at the start of training")
        self._trainable = {p for p in pl_module.parameters() if p.requires_grad}
        self._modes = {module: module.training for module in pl_module.modules()}
        self.check(pl_module)
        self._group(trainer, pl_module)
        self._enter(trainer, pl_module, self._current(trainer) if self._resumed is None else self._resumed, show=True)
        self._resumed = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Enter the epoch's stage; a run stopped after the last step of an epoch resumes without the start of one."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Enter the epoch's stage, if it is another one; freeze again what something else may have woken up."""
        if self._current(trainer) != self.stage:
            self._enter(trainer, pl_module, self._current(trainer))
        else:
            self._freeze(pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give back what was frozen."""
        self._restore(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give back what was frozen; after an exception there is no teardown."""
        self._restore(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Which stage the optimizer's and the scheduler's state in the checkpoint belong to."""
        return {"stage": self.stage}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in that stage."""
        self._resumed = min(state_dict["stage"], len(self.stages) - 1)

    def _current(self, trainer: L.Trainer) -> int:
        return bisect_right([stage.epoch for stage in self.stages], trainer.current_epoch) - 1

    def _group(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        network, blocks = self._parts(pl_module)
        optimizer = _optimizer(trainer)
        flat = self.decay == 1 and all(stage.lr == 1 for stage in self.stages)
        if trainer.lr_scheduler_configs and not (flat and self.scheduler is None):
            raise InputError(
                "a scheduler and the rates of stages and depths both set learning rates: give it as "
                "FineTuning(scheduler=...), called at the start of each stage, in place of configure_optimizers"
            )
        if blocks is not None and not trainer.lr_scheduler_configs:
            split_by_depth(optimizer, depths(network, blocks), self.decay)
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._scales = [rate / max(self._rates) for rate in self._rates]

    def _enter(self, trainer: L.Trainer, pl_module: L.LightningModule, index: int, show: bool = False) -> None:
        self.stage = index
        self._freeze(pl_module)
        if self.fuse:
            self._fuse_frozen(self._parts(pl_module)[0])
        if isinstance(trainer.strategy, DDPStrategy):
            trainer.strategy.model = pl_module
            trainer.strategy.configure_ddp()  # which gradients it exchanges is fixed when it wraps
        if not trainer.lr_scheduler_configs or self.scheduler:
            self._schedule(trainer, _optimizer(trainer))
        if self.cache:
            self._serve(trainer, self._parts(pl_module)[0], self.cache, show)
        self._announce(trainer, pl_module)

    def _serve(self, trainer: L.Trainer, network: Any, cache: FeatureCache, show: bool) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        features = cache.features(trainer, network, data, show) if cache.serves(network, data) else {}
        if self.stage and any(isinstance(c, WeightAveraging) for c in trainer.callbacks):  # type: ignore[attr-defined]
            features.pop("validation", None)  # of averages, which move on after the backbone has trained
        data.serve(features)

    def _announce(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        training = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        everything = sum(p.numel() for p in pl_module.parameters())
        stage = self.stages[self.stage]
        trainer.print(f"from epoch {stage.epoch}: training {stage.train}, {training:,} of {everything:,} parameters")

    def _freeze(self, pl_module: L.LightningModule) -> None:
        freeze(self._parts(pl_module)[0], self._names[self.stage], self._trainable)

    def _fuse_frozen(self, network: nn.Module) -> None:
        unfuse(network)
        if isinstance(network, Pretrained) and network.frozen:
            with suppress(InputError):  # some have nothing to fuse
                fuse(network.backbone)

    def _schedule(self, trainer: L.Trainer, optimizer: Optimizer) -> None:
        factor = self.stages[self.stage].lr
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
            group.pop("initial_lr", None)  # the last stage's
        if self.scheduler:
            given = getattr(self.scheduler, "keywords", {})
            rates = {name: [given[name] * factor * s for s in self._scales] for name in _RATES if name in given}
            build = partial(self.scheduler, **rates)
            config = LRSchedulerConfig(**schedule(optimizer, build, self._steps(trainer)))
            trainer.strategy.lr_scheduler_configs = [config]

    def _steps(self, trainer: L.Trainer) -> float:
        """Steps of the present stage."""
        total = trainer.estimated_stepping_batches
        trainer.fit_loop.setup_data()  # which a run limited by steps has not needed to count them
        if trainer.num_training_batches == float("inf"):
            return total
        an_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        begins = [stage.epoch * an_epoch for stage in self.stages]
        return max(1, min([*begins, total][self.stage + 1], total) - begins[self.stage])

    def _parts(self, pl_module: L.LightningModule) -> tuple[nn.Module, Blocks | None]:
        if self.blocks is not None:
            return pl_module, self.blocks
        network = next((module for module in pl_module.modules() if isinstance(module, Pretrained)), None)
        return (network, network.blocks) if network else (pl_module, None)

    def _restore(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.cache and isinstance(data := trainer.datamodule, ImageData):  # type: ignore[attr-defined]
            data.serve({})
        if self.fuse:
            unfuse(pl_module)
        for parameter in self._trainable:
            parameter.requires_grad_(True)
        for module, training in self._modes.items():
            module.training = training
        self._trainable, self._modes = set(), {}


def _optimizer(trainer: L.Trainer) -> Optimizer:
    if len(trainer.optimizers) != 1:
        raise InputError(f"FineTuning works with one optimizer, configure_optimizers gives {len(trainer.optimizers)}")
    return trainer.optimizers[0]
