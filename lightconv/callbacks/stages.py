"""Stages of fine-tuning: the modules to train, and the optimizer's parameter groups by depth."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from lightconv.errors import InputError

Blocks = Sequence[Sequence[str]]
_BLOCKS_BEFORE_HEAD = {"head": 0, "last_block": 1}


@dataclass(frozen=True)
class Stage:
    """One stage of fine-tuning: its first epoch, the modules it trains, and its learning rate.

    All other modules are frozen: they get no gradients and run in evaluation mode, so BatchNorm keeps its statistics
    and dropout is off.

    Attributes:
        epoch: first epoch of the stage, counted from 0.
        train: modules to train. "head"; a number of blocks before the head, counted from the last; "last_block", the
            same as 1; "all"; or names of modules, with shell wildcards.
        lr: factor on the optimizer's learning rates.

    Example:
        >>> blocks = [["head"], ["backbone.4", "backbone.5"], ["backbone.0"]]
        >>> Stage(epoch=5, train="last_block", lr=0.1).names(blocks)
        ['head', 'backbone.4', 'backbone.5']
    """

    epoch: int
    train: Literal["head", "last_block", "all"] | str | int | Sequence[str]
    lr: float = 1.0

    def names(self, blocks: Blocks | None) -> list[str] | None:
        """Return name patterns of the modules to train, None for all modules.

        Args:
            blocks: module names per block, from the head to the input. None if the depths are unknown.

        Raises:
            InputError: If the stage counts blocks and there are none or too few.
        """
        if self.train == "all":
            return None
        train = _BLOCKS_BEFORE_HEAD.get(self.train, self.train) if isinstance(self.train, str) else self.train
        if isinstance(train, str):
            return [train]
        if not isinstance(train, int):
            return list(train)
        if blocks is None:
            raise InputError(
                f"train={self.train} counts blocks, and only lightconv.models.Pretrained knows its blocks: give "
                "FineTuning(blocks=[[names of the head], [names of the last block], ...]), or names of modules"
            )
        if not 0 <= train < len(blocks):
            raise InputError(
                f"train={self.train} counts blocks before the head: this network has {len(blocks) - 1}, so choose 0 "
                f"(the head alone) to {len(blocks) - 1}"
            )
        names: list[str] = []
        for block in blocks[: train + 1]:
            names.extend(block)
        return names


def parse_stages(settings: Sequence[Stage | dict[str, Any]]) -> list[Stage]:
    """Build stages from a configuration.

    Raises:
        InputError: If a stage has unknown or missing keys, if its factor is not positive, or if the epochs do not
            start at 0 and increase.
    """
    try:
        stages = [stage if isinstance(stage, Stage) else Stage(**stage) for stage in settings]
    except TypeError as error:
        raise InputError(f"a stage has the keys epoch, train and lr: {error}") from error
    epochs = [stage.epoch for stage in stages]
    if not epochs or epochs[0] != 0 or epochs != sorted(set(epochs)):
        raise InputError(f"stages begin at epochs {epochs}: the first must begin at 0, each later than the one before")
    for stage in stages:
        if not stage.lr > 0:
            raise InputError(f"lr={stage.lr} of a stage is a factor on the optimizer's learning rate: set it above 0")
    return stages


def check_names(network: nn.Module, patterns: list[str] | None) -> None:
    """Look up every pattern among the modules' names.

    Raises:
        InputError: If a pattern matches no module.
    """
    known = [name for name, _ in network.named_modules() if name]
    for pattern in patterns or ():
        if not any(fnmatchcase(name, pattern) for name in known):
            suggestions = difflib.get_close_matches(pattern, known, n=3) or known[:3]
            raise InputError(
                f"train: {pattern} is no module of {type(network).__name__}; choose head, last_block, all, a number of "
                f"blocks, or names like {', '.join(suggestions)}"
            )


def train_only(network: nn.Module, patterns: list[str] | None, trainable: set[nn.Parameter]) -> None:
    """Train only the named modules and their children; freeze the rest.

    Modules around a trained module are in training mode, too.

    Args:
        network: network to change in place.
        patterns: patterns of module names, None for all modules.
        trainable: parameters that may train at all. Parameters frozen by the user are not among them.
    """
    modules = dict(network.named_modules())
    in_training_mode: set[str] = set()
    trained_parameters: set[nn.Parameter] = set()
    for name, module in modules.items():
        if _is_within(name, patterns):
            in_training_mode.update([name, *_enclosing_names(name)])
            trained_parameters.update(module.parameters(recurse=False))
    # train() sets all children, so parents must come first; named_modules() has them in this order
    for name, module in modules.items():
        module.train(name in in_training_mode)
    for parameter in network.parameters():
        parameter.requires_grad_(parameter in trained_parameters and parameter in trainable)
        if not parameter.requires_grad:
            # a gradient left over from the last stage would still move it
            parameter.grad = None


def trains_module(network: nn.Module, module: nn.Module, patterns: Sequence[str] | None) -> bool:
    """Return True if ``train_only`` with these patterns trains a module; one outside the network is never frozen."""
    for name, candidate in network.named_modules():
        if candidate is module:
            return _is_within(name, patterns)
    return True


def _is_within(name: str, patterns: Sequence[str] | None) -> bool:
    """Return True if a pattern matches the module or one that contains it."""
    if patterns is None:
        return True
    for candidate in [*_enclosing_names(name), name]:
        # the network itself has the name "", which would match "*"
        if candidate and any(fnmatchcase(candidate, pattern) for pattern in patterns):
            return True
    return False


def _enclosing_names(name: str) -> list[str]:
    """Return the names of all modules that contain a module; "" is the network itself."""
    if not name:
        return []
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts))]


def parameter_depths(network: nn.Module, blocks: Blocks) -> dict[nn.Parameter, int]:
    """Return the number of blocks between each parameter and the head, 0 for the head's own.

    A shared parameter has the depth of its module nearest to the head. Parameters outside all blocks count to the
    deepest block.
    """
    depths: dict[nn.Parameter, int] = {}
    for depth, block in enumerate(blocks):
        for name, module in network.named_modules():
            if _is_within(name, block):
                for parameter in module.parameters(recurse=False):
                    depths.setdefault(parameter, depth)
    for parameter in network.parameters():
        depths.setdefault(parameter, len(blocks) - 1)
    return depths


def split_by_depth(optimizer: Optimizer, depths: Mapping[nn.Parameter, int], decay: float) -> None:
    """Split each parameter group of an optimizer by depth, with learning rate ``lr * decay**depth``."""
    groups = list(optimizer.param_groups)
    # a parameter may be in one group only, so the old groups go first
    optimizer.param_groups.clear()
    for group in groups:
        parameters_at: dict[int, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            parameters_at.setdefault(depths.get(parameter, 0), []).append(parameter)
        for depth, parameters in sorted(parameters_at.items()):
            optimizer.add_param_group({**group, "params": parameters, "lr": group["lr"] * decay**depth})
