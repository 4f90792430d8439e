"""A model's convolutions and max-poolings on lightconv's operators, in place, and back.

Only a layer's class is exchanged, for one that inherits from lightconv.nn's and from its own: whatever the layer holds
(parameters, buffers, hooks, mode), whoever else holds it and its isinstance stay. What is pickled, or written by
torch.save, is of the class before: it loads where lightconv is not installed, and is swapped again after loading.
"""

import copy
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from lightconv.errors import InputError
from lightconv.nn.modules import Conv2d, MaxPool2d

Pattern = str | type[nn.Module]


@dataclass(frozen=True)
class SwapReport:
    """What `swap` did.

    Attributes:
        swapped: the layers that it changed, by their names in the model.
        left: why it left the others as they are, by their names.
    """

    swapped: dict[str, nn.Module]
    left: dict[str, str]

    def __str__(self) -> str:
        lines = [f"  {name}: {reason}" for name, reason in self.left.items()]
        return "\n".join([f"layers swapped: {len(self.swapped)}, left: {len(self.left)}", *lines])


def swap(
    model: nn.Module, include: Pattern | Iterable[Pattern] = "*", exclude: Pattern | Iterable[Pattern] = ()
) -> SwapReport:
    """Run a model's torch.nn.Conv2d and MaxPool2d on lightconv's operators, in place; `restore` undoes it.

    Subclasses follow unless they compute in their own way. A model that is swapped already stays as it is.

    Args:
        model: any module; a layer counts under the first of its names in ``named_modules()``.
        include: names in the manner of a shell ("layer1.*", "*.conv2"), or classes, of the layers to swap.
        exclude: the same, of those to leave.

    Raises:
        InputError: if a pattern fits no layer, or there is nothing to swap; the model is then unchanged.
    """
    layers: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.MaxPool2d)
    }
    if not layers:
        raise InputError(
            f"nothing to swap: {type(model).__name__} has no torch.nn.Conv2d or MaxPool2d (those within a ScriptModule "
            "or an exported program cannot be changed)"
        )
    wanted, unwanted = _fitting(layers, include), _fitting(layers, exclude)
    reasons: dict[str, str | None] = {}
    for name, layer in layers.items():
        if name not in wanted:
            reasons[name] = "not included"
        elif name in unwanted:
            reasons[name] = "excluded"
        else:
            reasons[name] = layer_unsupported_reason(layer)
    left = {name: reason for name, reason in reasons.items() if reason is not None}
    report = SwapReport({name: layer for name, layer in layers.items() if name not in left}, left)
    if not report.swapped and not any(isinstance(layer, Conv2d | MaxPool2d) for layer in layers.values()):
        raise InputError(f"nothing to swap in {type(model).__name__}: {report}")
    for layer in report.swapped.values():
        original: Any = type(layer).__bases__[-1] if is_parametrized(layer) else type(layer)
        exchange(layer, original, _swapped_class(original))
    return report


def restore(model: nn.Module) -> None:
    """Give every layer of a model that `swap` changed its class back; what else is lightconv's stays."""
    for module in model.modules():
        if isinstance(module, _Swapped):
            exchange(module, _swapped_class(module._original), module._original)


def _fitting(layers: dict[str, nn.Module], patterns: Pattern | Iterable[Pattern]) -> set[str]:
    """The names of the layers that fit at least one pattern."""
    fitting = set()
    for pattern in [patterns] if isinstance(patterns, str | type) else patterns:
        names = {name for name, layer in layers.items() if _fits(name, layer, pattern)}
        if not names:
            raise InputError(f"{pattern!r} fits no convolution or max-pooling; there are {', '.join(layers)}")
        fitting |= names
    return fitting


def _fits(name: str, layer: nn.Module, pattern: Pattern) -> bool:
    if isinstance(pattern, str):
        return name == pattern or fnmatchcase(name, pattern)
    return isinstance(layer, pattern)


def layer_unsupported_reason(layer: nn.Module) -> str | None:
    """Why a layer is to stay as it is; None if it can be swapped."""
    if isinstance(layer, Conv2d | MaxPool2d):
        return "lightconv's already"
    if isinstance(layer, LazyModuleMixin):
        return "lazy: its class changes with its first batch, swap after that"
    kind = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.MaxPool2d
    for method in ("forward", "_conv_forward"):
        if method in vars(layer) or getattr(type(layer), method, None) is not getattr(kind, method, None):
            return f"{type(layer).__name__} with a {method} of its own"
    return None


class _Swapped:
    """What makes a class one that a layer was given by `swap`."""

    _original: Any

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin: Any = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(vars(self), memo))
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        rebuild, (_, *arguments), *state = tuple(super().__reduce_ex__(1))  # since 2, pickle insists on the own class
        return rebuild, (self._original, *arguments), *state


def class_before(module: nn.Module) -> type[nn.Module]:
    """A module's class as it was before `swap`."""
    return module._original if isinstance(module, _Swapped) else type(module)


@functools.cache
def _swapped_class(original: Any) -> Any:
    ours = Conv2d if issubclass(original, nn.Conv2d) else MaxPool2d
    # of the same names: repr stays, and torch.fx goes on to take what is of torch.nn for a leaf
    names = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(original.__name__, (_Swapped, ours, original), {**names, "_original": original})


def exchange(layer: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    """Exchange a layer's class, or the one beneath that torch.nn.utils.parametrize made for this layer alone."""
    own = type(layer)
    if own is not old:
        bases = tuple(new if base is old else base for base in own.__bases__)
        # parametrize forbids to pickle the class that it makes, and lets it be copied only as it inherits from ours
        new = type(own.__name__, bases, {"__deepcopy__": _Swapped.__deepcopy__, **vars(own)})
    layer.__class__ = new
