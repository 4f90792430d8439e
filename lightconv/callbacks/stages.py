"""What a stage of fine-tuning trains: names, modes, gradients, and the optimizer's groups by depth."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightconv.errors import InputError

Blocks = Sequence[Sequence[str]]
_DEPTHS = {"head": 0, "last_block": 1}


@dataclass(frozen=True)
class Stage:
    """From an epoch on, what trains, and how fast.

    Attributes:
        epoch: the stage's first epoch, counted from 0.
        train: "head"; a number of blocks before it, from the last; "last_block", which is 1; "all"; or names of
            modules as a shell writes them; they are put in training mode. All else is frozen: no gradients, and in
            evaluation, so that BatchNorm keeps its statistics and dropout is off.
        lr: factor on the optimizer's learning rates.
    """

    epoch: int
    train: str | int | Sequence[str]
    lr: float = 1.0

    def names(self, blocks: Blocks | None) -> list[str] | None:
        """Patterns of the modules that train, None for all.

        Raises:
            InputError: if the stage goes by depth and there are no blocks, or not so many.
        """
        if self.train == "all":
            return None
        train = _DEPTHS.get(self.train, self.train) if isinstance(self.train, str) else self.train
        if isinstance(train, str):
            return [train]
        if not isinstance(train, int):
            return list(train)
        if blocks is None:
            raise InputError(
                f"train={self.train} goes by depth, and only lightconv.models.Pretrained says what is how deep: give "
                "FineTuning(blocks=[[names of the head], [names of the last block], ...]), or names of modules"
            )
        if not 0 <= train < len(blocks):
            raise InputError(f"train={self.train}: the network has {len(blocks) - 1} blocks before its head")
        return [name for block in blocks[: train + 1] for name in block]


def stages_of(settings: Sequence[Stage | dict[str, Any]]) -> list[Stage]:
    """Stages out of a configuration, in order.

    Raises:
        InputError: for one that is none, or epochs that do not begin at 0 and rise.
    """
    try:
        stages = [stage if isinstance(stage, Stage) else Stage(**stage) for stage in settings]
    except TypeError as error:
        raise InputError(f"a stage has an epoch, what to train, and a factor lr: {error}") from error
    epochs = [stage.epoch for stage in stages]
    if not epochs or epochs[0] != 0 or epochs != sorted(set(epochs)):
        raise InputError(f"stages begin at epochs {epochs}: the first at 0, each later than the one before")
    if slow := [stage.lr for stage in stages if not stage.lr > 0]:
        raise InputError(f"a stage's lr={slow[0]} is a factor on the optimizer's, above 0")
    return stages


def check_names(network: nn.Module, names: list[str] | None) -> None:
    """Raise InputError for a pattern that fits no module."""
    known = [name for name, _ in network.named_modules() if name]
    for pattern in names or ():
        if not any(fnmatchcase(name, pattern) for name in known):
            close = difflib.get_close_matches(pattern, known, n=3)
            raise InputError(
                f"train: {pattern} is no module of {type(network).__name__}; choose head, last_block, all, a number of "
                f"blocks, or names like {', '.join(close or known[:3])}"
            )


def freeze(network: nn.Module, names: list[str] | None, trainable: set[nn.Parameter]) -> None:
    """Leave gradients and training mode to the modules named and all within them.

    What contains one that trains is in training mode, too.

    Args:
        network: changed in place.
        names: patterns of module names, None for all.
        trainable: what may train at all; what its owner has frozen stays so.
    """
    modules = dict(network.named_modules())
    training = {name for name in modules if _within(name, names)}
    above = {name[:end] for name in training for end in _dots(name)}
    wanted = {id(p) for name in training for p in modules[name].parameters(recurse=False)}
    for name, module in modules.items():
        module.train(name in training or name in above)  # parents come before their children
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) in wanted and parameter in trainable)
        if not parameter.requires_grad:
            parameter.grad = None


def _within(name: str, patterns: Sequence[str] | None) -> bool:
    if patterns is None:
        return True
    parents = [name[:end] for end in _dots(name)] + [name]
    return any(fnmatchcase(parent, pattern) for parent in parents[1:] for pattern in patterns)


def _dots(name: str) -> list[int]:
    """Where the names of what contains a module end; the first is the network's own, empty one."""
    return [0, *(i for i, character in enumerate(name) if character == ".")] if name else []


def depths(network: nn.Module, blocks: Blocks) -> dict[nn.Parameter, int]:
    """How many blocks lie behind each parameter; those of no block count to the first, the deepest.

    A parameter that several modules share has the depth of the one nearest to the head.
    """
    found: dict[nn.Parameter, int] = {}
    for depth, block in enumerate(blocks):
        for name, module in network.named_modules():
            if _within(name, block):
                for parameter in module.parameters(recurse=False):
                    found.setdefault(parameter, depth)
    return {parameter: found.get(parameter, len(blocks) - 1) for parameter in network.parameters()}


def split_by_depth(optimizer: Optimizer, depth: dict[nn.Parameter, int], decay: float) -> None:
    """Make a group of each depth within each of the optimizer's groups, with ``decay`` to the depth of its rate."""
    groups = list(optimizer.param_groups)
    optimizer.param_groups.clear()
    for group in groups:
        members: dict[int, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            members.setdefault(depth.get(parameter, 0), []).append(parameter)
        for level, parameters in sorted(members.items()):
            optimizer.add_param_group({**group, "params": parameters, "lr": group["lr"] * decay**level})
