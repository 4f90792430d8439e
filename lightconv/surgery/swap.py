"""Run a model's convolutions and max-poolings on lightconv's operators, in place, and undo it.

`swap` exchanges a layer's class for one that inherits from lightconv's module and from the layer's own class. The
layer keeps its parameters, buffers, hooks and mode. It passes the same isinstance checks, and every reference to it
stays valid.

The new class equals the layer's own class in look-ups, such as ``{nn.Conv2d: ...}[type(layer)]``. Only
``type(layer) is nn.Conv2d`` differs. A layer that is given a qconfig, for torch.ao.quantization, gets its own class
back.

A pickle or a ``torch.save`` file of a swapped model holds the original classes. It loads without lightconv; swap the
model again after loading it.
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
    """Result of `swap`. Printing it lists the layers left and the reasons.

    Attributes:
        swapped: layers of a new class, keyed by their name in the model.
        left: reasons to leave the other layers, keyed by their name in the model.

    Example:
        >>> import lightconv as lc
        >>> report = lc.swap(nn.Sequential(nn.Conv2d(1, 6, 5), nn.MaxPool2d(2)), include="0")
        >>> list(report.swapped), report.left
        (['0'], {'1': 'does not match include'})
    """

    swapped: dict[str, nn.Module]
    left: dict[str, str]

    def __str__(self) -> str:
        lines = [f"  {name}: {reason}" for name, reason in self.left.items()]
        return "\n".join([f"layers swapped: {len(self.swapped)}, left: {len(self.left)}", *lines])


def swap(
    model: nn.Module,
    include: Pattern | Iterable[Pattern] = "*",
    exclude: Pattern | Iterable[Pattern] = (),
) -> SwapReport:
    """Run a model's torch.nn.Conv2d and MaxPool2d on lightconv's operators, in place; `restore` undoes it.

    Subclasses are swapped, too, unless they override ``forward`` or ``_conv_forward``. Swapping a model twice changes
    nothing.

    Args:
        model: any module. A layer with several names is known by the first in ``model.named_modules()``.
        include: layers to swap, one or several names with shell wildcards ("layer1.*", "*.conv2") or classes.
        exclude: layers to leave, in the same form.

    Returns:
        The layers swapped, and the reason for each layer left.

    Raises:
        InputError: If a pattern matches no layer, or if there is nothing to swap. The model is then unchanged.

    Example:
        >>> from torch import nn
        >>> import lightconv as lc
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2))
        >>> print(lc.swap(model, exclude=nn.MaxPool2d))
        layers swapped: 1, left: 1
          2: matches exclude
        >>> isinstance(model[0], lc.nn.Conv2d)
        True
    """
    layers: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.MaxPool2d)
    }
    if not layers:
        raise InputError(
            f"nothing to swap: {type(model).__name__} has no torch.nn.Conv2d or MaxPool2d. Layers within a "
            "ScriptModule or an exported program cannot be swapped."
        )
    included = _matching_names(layers, include)
    excluded = _matching_names(layers, exclude)
    swapped: dict[str, nn.Module] = {}
    left: dict[str, str] = {}
    for name, layer in layers.items():
        reason = layer_unsupported_reason(layer)
        if name not in included:
            reason = "does not match include"
        elif name in excluded:
            reason = "matches exclude"
        if reason is None:
            swapped[name] = layer
        else:
            left[name] = reason
    report = SwapReport(swapped, left)
    if not swapped and not any(isinstance(layer, Conv2d | MaxPool2d) for layer in layers.values()):
        raise InputError(f"nothing to swap in {type(model).__name__}: {report}")
    for layer in swapped.values():
        original: Any = type(layer)
        if is_parametrized(layer):
            # parametrize derived a class for this layer; the layer's own class is its base
            original = original.__bases__[-1]
        exchange_class(layer, original, _swapped_class(original))
    return report


def restore(model: nn.Module) -> None:
    """Give every swapped layer its original class back.

    Modules built from ``lightconv.nn`` stay as they are. Restoring a model twice changes nothing.

    Args:
        model: a model, or a part of one.

    Example:
        >>> from torch import nn
        >>> import lightconv as lc
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 5), nn.MaxPool2d(2))
        >>> report = lc.swap(model)
        >>> lc.restore(model)
        >>> type(model[0])
        <class 'torch.nn.modules.conv.Conv2d'>
    """
    for module in model.modules():
        if isinstance(module, _SwappedLayer):
            exchange_class(module, _swapped_class(module._original_class), module._original_class)


def _matching_names(layers: dict[str, nn.Module], patterns: Pattern | Iterable[Pattern]) -> set[str]:
    """Return the names of the layers matching at least one pattern.

    Raises:
        InputError: If a pattern matches no layer.
    """
    if isinstance(patterns, str | type):
        patterns = [patterns]
    matching = set()
    for pattern in patterns:
        names = {name for name, layer in layers.items() if _matches(name, layer, pattern)}
        if not names:
            raise InputError(f"{pattern!r} matches no convolution or max-pooling; there are {', '.join(layers)}")
        matching |= names
    return matching


def _matches(name: str, layer: nn.Module, pattern: Pattern) -> bool:
    if isinstance(pattern, str):
        # a name may itself contain wildcard characters
        return name == pattern or fnmatchcase(name, pattern)
    return isinstance(layer, pattern)


def layer_unsupported_reason(layer: nn.Module) -> str | None:
    """Return why `swap` leaves a layer, None if it can swap it."""
    if isinstance(layer, Conv2d | MaxPool2d):
        return "already a lightconv layer"
    if getattr(layer, "qconfig", None) is not None:
        return "has a qconfig: torch.ao.quantization replaces it"
    if isinstance(layer, LazyModuleMixin):
        return "lazy layer: swap it after its first batch, which changes its class"
    kind = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.MaxPool2d
    for method in ("forward", "_conv_forward"):
        is_replaced = method in vars(layer)
        if is_replaced or getattr(type(layer), method, None) is not getattr(kind, method, None):
            return f"{type(layer).__name__} overrides {method}"
    return None


class _EqualToOriginal(type):
    """Metaclass of the classes created by `swap`: each equals its original class and has its hash.

    torch.ao.quantization, thop, captum and others look up ``type(layer)`` in tables of torch's classes. They find a
    swapped layer, and treat it as the layer that it was.
    """

    def __eq__(cls, other: object) -> bool:
        return cls is other or cls._key() is other

    def __hash__(cls) -> int:
        return type.__hash__(cls._key())

    def _key(cls) -> Any:
        # vars(): a class that parametrize derives from a swapped one is another class, as it is from the original
        return vars(cls).get("_original_class", cls)


class _SwappedLayer:
    """Mixin of the classes created by `swap`. Pickles hold the original class instead."""

    _original_class: Any

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # torch.ao.quantization replaces layers that have a qconfig, some of them only if `type(layer) is nn.Conv2d`
        if name == "qconfig" and value is not None:
            restore(self)  # type: ignore[arg-type]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # by default a copy is built as a pickle is, and so would be of the original class
        twin: Any = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(vars(self), memo))
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Protocol 1 passes the class as the first argument of the function that rebuilds the object. From protocol 2
        # on, pickle refuses any class but the object's own.
        reduced: Any = super().__reduce_ex__(1)
        rebuild, (_, *other_arguments), *state = reduced
        return (rebuild, (self._original_class, *other_arguments), *state)


def original_class(module: nn.Module) -> type[nn.Module]:
    """Return a module's class without `swap`."""
    if isinstance(module, _SwappedLayer):
        return module._original_class
    return type(module)


@functools.cache
def _swapped_class(original: Any) -> Any:
    """Create the class of a swapped layer."""
    base = Conv2d if issubclass(original, nn.Conv2d) else MaxPool2d
    # The name and module of the original: repr stays the same, and torch.fx takes whatever is of torch.nn as a leaf.
    attributes = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "_original_class": original,
    }
    metaclass: Any = _EqualToOriginal
    if type(original) is not type:  # such as a subclass of an abstract class
        metaclass = type("_EqualToOriginal", (_EqualToOriginal, type(original)), {})
    return metaclass(original.__name__, (_SwappedLayer, base, original), attributes)


def exchange_class(layer: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    """Exchange a layer's class in place.

    torch.nn.utils.parametrize and fully_shard derive a class for a layer alone, with ``old`` as a base. Such a layer
    gets a copy of its class with ``new`` in place of ``old``.

    Args:
        layer: module to change.
        old: class of the layer, or a base of its class.
        new: class to put in place of ``old``.
    """
    own = type(layer)
    if own is not old:
        bases = tuple(new if base is old else base for base in own.__bases__)
        # Classes of parametrize forbid pickling, so a copy needs __deepcopy__. Parametrize adds one only if the layer's
        # class has none: a layer parametrized while swapped inherits ours, and must keep it when it is restored.
        new = type(own.__name__, bases, {"__deepcopy__": _SwappedLayer.__deepcopy__, **vars(own)})
    layer.__class__ = new
