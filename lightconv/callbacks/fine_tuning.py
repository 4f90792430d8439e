"""Train a pretrained network in stages: first the head, then more and more blocks before it."""

import math
import warnings
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightconv.callbacks.feature_cache import FeatureCache
from lightconv.callbacks.stages import (
    Blocks,
    Stage,
    check_names,
    parameter_depths,
    parse_stages,
    split_by_depth,
    train_only,
    trains_module,
)
from lightconv.data import ImageData
from lightconv.errors import InputError
from lightconv.models import Pretrained
from lightconv.surgery.fuse import fuse, unfuse
from lightconv.tasks.schedules import build_schedule, check_schedule_end, check_scheduler

_RATE_ARGUMENTS = ("max_lr", "base_lr")  # learning rates given to a scheduler instead of to the optimizer


class FineTuning(L.Callback):
    """Freeze and unfreeze parts of any LightningModule by epoch.

    The stage follows from the epoch, also in a resumed run. Frozen modules get no gradients and run in evaluation
    mode: nothing is saved for their backward pass, and BatchNorm keeps its statistics. The optimizer has one parameter
    group per block from the first step on, so that any scheduler works. DistributedDataParallel is wrapped again at
    the start of each stage. When the run ends, all parameters and modes are as they were before it.

    Args:
        stages: stages in order, as `Stage` or as dictionaries of its attributes.
        decay: factor on the learning rate from a block to the next deeper one (Howard, Ruder 2018: 1/2.6).
        scheduler: factory called with the optimizer at the start of each stage. Its length is that of the stage. The
            module itself then has no scheduler.
        blocks: module names per block, from the head to the input. A `lightconv.models.Pretrained` knows its own.
        cache: "memory", a directory, or None. While the whole backbone of a Pretrained is frozen, the head trains on
            features computed once, as in `lightconv.callbacks.feature_cache.FeatureCache`.
        copies: number of augmented copies of each image to cache. None leaves augmented images uncached.
        fuse: while the whole backbone of a Pretrained is frozen, compute its chains of convolution, BatchNorm2d,
            activation and pooling as single blocks, as in `lightconv.fuse`. Results differ by rounding only.

    Raises:
        InputError: If the stages are invalid. At the start of a run also if they do not match the module.

    Example:
        >>> stages = [Stage(epoch=0, train="head"), Stage(epoch=5, train="last_block", lr=0.1)]
        >>> trainer = L.Trainer(max_epochs=10, callbacks=[FineTuning(stages, cache="memory")], logger=False)
    """

    def __init__(
        self,
        stages: Sequence[Stage | dict[str, Any]],
        decay: float = 1.0,
        scheduler: Callable[..., LRScheduler] | None = None,
        blocks: Blocks | None = None,
        cache: Literal["memory"] | str | Path | None = None,
        copies: int | None = None,
        fuse: bool = False,
    ) -> None:
        if not 0 < decay <= 1:
            raise InputError(f"decay={decay} is not above 0 and at most 1")
        self.stages = parse_stages(stages)
        self.decay = decay
        self.scheduler = scheduler
        self.blocks = blocks
        self.cache = FeatureCache(cache, copies) if cache else None
        self.fuse = fuse
        self.stage = 0
        self._resumed_stage: int | None = None
        self._patterns: list[list[str] | None] = []
        self._trainable: set[nn.Parameter] = set()
        self._modes: dict[nn.Module, bool] = {}
        self._rates: list[float] = []  # per parameter group, before any stage's factor

    def check(self, pl_module: L.LightningModule) -> None:
        """Check the stages against the module, and the access to the cache. Called at the start of a run.

        Raises:
            InputError: If a name matches no module, if a stage counts more blocks than there are, if depths are needed
                and unknown, or if the cache's directory cannot be written.
        """
        if self.cache:
            self.cache.check()
        network, blocks = self._network_and_blocks(pl_module)
        if self.decay != 1 and blocks is None:
            raise InputError(
                f"decay={self.decay} lowers the learning rate per block, and this network's blocks are unknown: give "
                "FineTuning(blocks=[[modules of the head], [modules of the last block], ...]), from output to input"
            )
        self._patterns = [stage.names(blocks) for stage in self.stages]
        for patterns in self._patterns:
            check_names(network, patterns)

    def trains(self, pl_module: L.LightningModule, module: nn.Module) -> bool:
        """Return True if any stage trains a module of this LightningModule; call ``check`` first."""
        network, _ = self._network_and_blocks(pl_module)
        return any(trains_module(network, module, patterns) for patterns in self._patterns)

    def begin(self, pl_module: L.LightningModule) -> None:
        """Freeze layers as the first stage does, without a Trainer's hooks: for a learning-rate range test."""
        self.check(pl_module)
        self._trainable = _trainable_parameters(pl_module)
        self._freeze(pl_module)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Enter the current epoch's stage, or a checkpoint's.

        Lightning restores optimizer and scheduler right after this hook, so both must already have the shape they had
        when the checkpoint was saved.
        """
        if not isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy):
            raise InputError(f"FineTuning works on one device or with DDP, not with {type(trainer.strategy).__name__}")
        check_scheduler(self.scheduler, trainer)
        # Lightning takes modules in eval mode for an oversight
        warnings.filterwarnings("ignore", message="Found .* module.s. in eval mode at the start of training")
        self._trainable = _trainable_parameters(pl_module)
        self._modes = {module: module.training for module in pl_module.modules()}
        self.check(pl_module)
        self._group_parameters(trainer, pl_module)
        stage = self._current_stage(trainer) if self._resumed_stage is None else self._resumed_stage
        self._enter_stage(trainer, pl_module, stage, show_progress=True)
        self._resumed_stage = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Enter the current epoch's stage, and check that its schedule lasts to its end.

        Lightning skips on_train_epoch_start if it resumes from the last step of an epoch.

        Raises:
            InputError: If a resumed run is longer than the schedule that its checkpoint restores.
        """
        self.on_train_epoch_start(trainer, pl_module)
        if self.scheduler is not None:
            first, steps = self._stage_span(trainer)
            check_schedule_end(self.scheduler, trainer, first + steps)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Enter the epoch's stage if it is a new one, else freeze again what other code may have unfrozen."""
        stage = self._current_stage(trainer)
        if stage != self.stage:
            self._enter_stage(trainer, pl_module, stage)
        else:
            self._freeze(pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Unfreeze everything."""
        self._restore(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Unfreeze everything. Lightning calls no teardown after an exception."""
        self._restore(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the stage of the optimizer's and scheduler's states in the same checkpoint."""
        return {"stage": self.stage}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Start the resumed run in the checkpoint's stage."""
        self._resumed_stage = min(state_dict["stage"], len(self.stages) - 1)

    def _current_stage(self, trainer: L.Trainer) -> int:
        # the last stage that starts at or before the epoch
        first_epochs = [stage.epoch for stage in self.stages]
        return bisect_right(first_epochs, trainer.current_epoch) - 1

    def _group_parameters(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Split the optimizer's groups by depth and store their learning rates."""
        network, blocks = self._network_and_blocks(pl_module)
        optimizer = _single_optimizer(trainer)
        has_scheduler = bool(trainer.lr_scheduler_configs)
        sets_rates = self.decay != 1 or self.scheduler is not None or any(stage.lr != 1 for stage in self.stages)
        if has_scheduler and sets_rates:
            raise InputError(
                "the module's scheduler and the rates of stages and depths both set learning rates: remove it from "
                "configure_optimizers and give it as FineTuning(scheduler=...), called at the start of each stage"
            )
        # A scheduler already holds one rate per group, and OneCycleLR fails if groups are added. All rates are equal
        # then, so there is nothing to split.
        if blocks is not None and not has_scheduler:
            split_by_depth(optimizer, parameter_depths(network, blocks), self.decay)
        self._rates = [group["lr"] for group in optimizer.param_groups]

    def _enter_stage(
        self, trainer: L.Trainer, pl_module: L.LightningModule, stage: int, show_progress: bool = False
    ) -> None:
        self.stage = stage
        network, _ = self._network_and_blocks(pl_module)
        self._freeze(pl_module)
        if self.fuse:
            unfuse(network)
            if isinstance(network, Pretrained) and network.frozen:
                with suppress(InputError):  # raised if a backbone has nothing to fuse
                    fuse(network.backbone)
        if isinstance(trainer.strategy, DDPStrategy):
            # DDP decides which gradients to exchange when it wraps. Replicas would diverge after unfreezing.
            trainer.strategy.model = pl_module
            trainer.strategy.configure_ddp()
        if not trainer.lr_scheduler_configs or self.scheduler:
            self._set_rates(trainer, _single_optimizer(trainer))
        if self.cache:
            self._serve_features(trainer, network, self.cache, show_progress)
        trained = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        total = sum(p.numel() for p in pl_module.parameters())
        settings = self.stages[stage]
        trainer.print(f"from epoch {settings.epoch}: training {settings.train}, {trained:,} of {total:,} parameters")

    def _serve_features(self, trainer: L.Trainer, network: Any, cache: FeatureCache, show_progress: bool) -> None:
        """Let the datamodule deliver features in place of images, if the cache applies to this stage."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        features = {}
        if cache.can_cache(network, data):
            features = cache.features(trainer, network, data, show_progress)
        averages = any(isinstance(c, WeightAveraging) for c in trainer.callbacks)  # type: ignore[attr-defined]
        if self.stage > 0 and averages:
            # Validation uses averaged weights. Once the backbone has trained, its average keeps moving while the
            # backbone itself is frozen, so stored features would not be those of the averaged backbone.
            features.pop("validation", None)
        data.serve(features)

    def _freeze(self, pl_module: L.LightningModule) -> None:
        network, _ = self._network_and_blocks(pl_module)
        train_only(network, self._patterns[self.stage], self._trainable)

    def _set_rates(self, trainer: L.Trainer, optimizer: Optimizer) -> None:
        """Set the stage's learning rates and build its scheduler."""
        factor = self.stages[self.stage].lr
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
            # left by the last stage's scheduler; the next one would take it for its own base rate
            group.pop("initial_lr", None)
        if self.scheduler is None:
            return
        # one rate per parameter group, in the proportions of the depths
        arguments = getattr(self.scheduler, "keywords", {})
        largest = max(self._rates)
        rates = {}
        for name in _RATE_ARGUMENTS:
            if name in arguments:
                rates[name] = [arguments[name] * factor * (rate / largest) for rate in self._rates]
        factory = partial(self.scheduler, **rates)
        _, steps = self._stage_span(trainer)
        schedule = build_schedule(
            optimizer,
            factory,
            steps=steps,
            epochs_per_validation=trainer.check_val_every_n_epoch or 1,
        )
        config = LRSchedulerConfig(**schedule)
        trainer.strategy.lr_scheduler_configs = [config]

    def _stage_span(self, trainer: L.Trainer) -> tuple[int, float]:
        """Return the first optimizer step of the current stage and its number of steps."""
        total = trainer.estimated_stepping_batches
        # in a run limited by steps, Lightning has not counted the batches yet
        trainer.fit_loop.setup_data()
        if trainer.num_training_batches == float("inf"):
            return 0, total  # an iterable data set without a length
        steps_per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        first = self.stages[self.stage].epoch * steps_per_epoch
        end = total
        if self.stage + 1 < len(self.stages):
            end = min(total, self.stages[self.stage + 1].epoch * steps_per_epoch)
        return first, max(1, end - first)  # torch's schedulers need at least one step

    def _network_and_blocks(self, pl_module: L.LightningModule) -> tuple[nn.Module, Blocks | None]:
        if self.blocks is not None:
            return pl_module, self.blocks
        for module in pl_module.modules():
            if isinstance(module, Pretrained):
                return module, module.blocks
        return pl_module, None

    def _restore(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.cache:
            data = trainer.datamodule  # type: ignore[attr-defined]
            if isinstance(data, ImageData):
                data.serve({})
        if self.fuse:
            unfuse(pl_module)
        for parameter in self._trainable:
            parameter.requires_grad_(True)
        for module, training in self._modes.items():
            module.training = training
        self._trainable = set()
        self._modes = {}


def _trainable_parameters(module: nn.Module) -> set[nn.Parameter]:
    # a set compares tensors by identity: equal parameters of different layers are both kept
    return {parameter for parameter in module.parameters() if parameter.requires_grad}


def _single_optimizer(trainer: L.Trainer) -> Optimizer:
    if len(trainer.optimizers) != 1:
        raise InputError(
            f"FineTuning works with one optimizer, but configure_optimizers returns {len(trainer.optimizers)}"
        )
    return trainer.optimizers[0]
