"""Turn convolution, normalisation, activation and pooling of an existing model into blocks, in place and back."""

import functools
import math
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightconv.errors import InputError
from lightconv.nn.modules import Conv2d, ConvBlock, MaxPool2d
from lightconv.operators.geometry import pair
from lightconv.surgery.chains import NORMS, Chain, activation_of, chains, full_name
from lightconv.surgery.swap import class_before, exchange

_FOLDING = 2**16  # elements of a map that a CPU normalises while small operators work out scale and shift
_ATTRIBUTES = ("unfused", "norms", "absorbed", "activation", "pool")


class Row(NamedTuple):
    """What became of a convolution.

    Attributes:
        name: within the model.
        block: the classes that are computed as one, the convolution's first; "" where it was left alone.
        reason: why it was left alone, or why nothing more is part of the block.
    """

    name: str
    block: str
    reason: str


class Fusion(NamedTuple):
    """What `fuse` did, a row a convolution; printing shows a table."""

    rows: tuple[Row, ...]

    @property
    def fused(self) -> tuple[Row, ...]:
        """The blocks."""
        return tuple(row for row in self.rows if row.block)

    @property
    def left(self) -> tuple[Row, ...]:
        """The convolutions that stayed as they were."""
        return tuple(row for row in self.rows if not row.block)

    def __str__(self) -> str:
        lines = [("convolution", "computed as one", "and no more, since"), *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(2)]
        return "\n".join(f"{name:<{widths[0]}}  {block:<{widths[1]}}  {why}".rstrip() for name, block, why in lines)


class Fused(nn.Module):
    """What the modules of a chain have while it is fused.

    Attributes:
        unfused: the class otherwise.
        norms: the chain's BatchNorm2d, if any; in a tuple, so that it is not registered a second time.
    """

    unfused: type[Any]
    norms: tuple[Any, ...]

    @property
    def apart(self) -> bool:
        """Whether each module computes its own part at the moment: for statistics of a batch its map is needed."""
        for norm in self.norms:  # noqa: SIM110  any() takes longer, and every module asks at every call
            if norm.training if isinstance(norm, nn.BatchNorm2d) else _promotes(norm):
                return True
        return False


class FusedConv2d(Fused, ConvBlock):
    """A convolution that also computes what follows it: the modules ``absorbed``, also in a tuple."""

    absorbed: tuple["_Absorbed", ...]

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.apart or not self.folds(input):
            maps = Conv2d._conv_forward(self, input, weight, bias)
            for module in () if self.apart else self.absorbed:
                maps = module.alone(maps)
            return maps
        for norm in self.norms:
            weight, bias = _folded(weight, bias, norm)
        return super()._conv_forward(input, weight, bias)

    def folds(self, input: Tensor) -> bool:
        """Whether multiplying a BatchNorm2d into the filters costs less than the pass over the map that it saves."""
        if not self.norms:
            return True
        pixels = input.numel() // (self.in_channels * math.prod(self.stride))
        pays: Any = _FOLDING + 2 * self.weight.numel() <= self.out_channels * pixels
        # of images whose size torch.export leaves open either is right, and asking would fix it
        return isinstance(pays, torch.SymBool) or pays


class _Absorbed(Fused):
    """Hands on what the convolution before it has computed already.

    Attributes:
        kind: the class that it is a subclass of, so that isinstance holds.
    """

    kind: Any

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if self.apart else input

    def alone(self, input: Tensor) -> Tensor:
        """Compute its own part."""
        return super().forward(input)

    def __reduce__(self) -> tuple[Any, ...]:
        return _new, (self.kind,), vars(self)  # pickle finds no class that is made on demand


class _AbsorbedNorm(_Absorbed):
    """Still calls what its class calls on the normalised map: those modules hand on what has been computed already.

    Attributes:
        calls: their names.
    """

    calls: tuple[str, ...]

    def forward(self, input: Tensor) -> Tensor:
        if self.apart:
            return super().forward(input)
        for name in self.calls:
            input = getattr(self, name)(input)
        return input

    def alone(self, input: Tensor) -> Tensor:
        norm: Any = self
        return F.batch_norm(input, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


@functools.cache
def _absorbed_class(kind: Any) -> Any:
    calls = NORMS.get(full_name(kind))
    base = _Absorbed if calls is None else _AbsorbedNorm
    return type(f"Absorbed{kind.__name__}", (base, kind), {"__module__": __name__, "kind": kind, "calls": calls})


def _new(kind: Any) -> Any:
    absorbed = _absorbed_class(kind)
    return absorbed.__new__(absorbed)


def fuse(model: nn.Module) -> Fusion:
    """Compute convolution, BatchNorm2d, activation and non-overlapping max-pooling as one ConvBlock where they meet.

    In place: modules, Parameters, names, state dict, hooks and optimizers stay what they are; the convolution's class
    becomes `FusedConv2d`, and the modules that it computes hand on what they are given. `unfuse` takes it back. A
    pooling before an activation that never decreases is as good as one after it. What a forward does by functions
    (``F.relu``, ``+``) cannot be taken out of it, and stays. timm's BatchNormAct2d is a BatchNorm2d that calls what is
    within, torchvision's FrozenBatchNorm2d (of both also timm's in one) a BatchNorm2d that is never in training.

    A chain with BatchNorm2d is fused in evaluation; while the BatchNorm2d is in training each module computes its own
    part. Its statistics are multiplied into the filters anew in each call, so that they are never out of date; where
    the filters are large and the map is small, that would cost more than it saves: they are applied to the map.

    A forward is read once, as attributes and arguments are set by default. Unfuse before such an attribute changes, a
    map within a chain is looked at, its modules are converted (SyncBatchNorm), the model is scripted, or pickled for
    where lightconv is not installed. What `swap` changed is of torch.nn again then.

    Fuse last: what is registered, replaced or called by itself within a chain afterwards meets other maps. A forward
    that torch.fx cannot trace is expected to call those of its submodules that have modules within as a whole; others
    are read with the default values of their arguments.

    Args:
        model: any module, in training or in evaluation.

    Returns:
        A row for every convolution: what it is fused with, and why with nothing, or nothing more.

    Raises:
        InputError: if there is nothing to fuse; the model is as it was.
    """
    found = chains(model)
    rows = tuple(_row(chain) for chain in found)
    if not any(chain.absorbed for chain in found):
        reasons = Counter(row.reason for row in rows).most_common(3)
        why = "; ".join(f"{reason} ({count})" for reason, count in reasons) or "it has no Conv2d"
        raise InputError(f"{type(model).__name__} has no convolution to fuse with what follows it: {why}")
    for chain in found:
        if chain.absorbed:
            _absorb(chain)
    return Fusion(rows)


def unfuse(model: nn.Module) -> None:
    """Let every module compute its own part again: undo `fuse`, on a model or a part of it."""
    for convolution in model.modules():
        if isinstance(convolution, FusedConv2d):
            for module in (*convolution.absorbed, convolution):
                fused = FusedConv2d if module is convolution else _absorbed_class(module.kind)
                exchange(module, fused, module.unfused)
                for name in _ATTRIBUTES:
                    vars(module).pop(name, None)


def acts_as(module: nn.Module, images: Tensor | None = None) -> type[nn.Module]:
    """The class that says what a module computes at the moment, of these images if they are given, fused or not."""
    if not isinstance(module, Fused):
        return type(module)
    if isinstance(module, FusedConv2d):
        apart = module.apart or not (images is None or module.folds(images))
        return Conv2d if apart else ConvBlock
    return module.kind if isinstance(module, _Absorbed) and module.apart else nn.Identity


def _row(chain: Chain) -> Row:
    kinds = [type(module).__name__ for module in (chain.convolution, *chain.absorbed)]
    return Row(chain.name, ", ".join(kinds) if chain.absorbed else "", chain.end)


def _absorb(chain: Chain) -> None:
    norms = tuple(m for m in chain.absorbed if full_name(type(m)) in NORMS)
    activation = next(filter(None, map(activation_of, chain.absorbed)), "identity")
    pool = next((pair(m.kernel_size) for m in chain.absorbed if isinstance(m, nn.MaxPool2d)), (1, 1))
    _become(chain.convolution, FusedConv2d, norms=norms, absorbed=chain.absorbed, activation=activation, pool=pool)
    for module in chain.absorbed:
        kind: Any = MaxPool2d if isinstance(module, nn.MaxPool2d) else type(module)
        _become(module, _absorbed_class(kind), norms=norms)


def _become(module: nn.Module, kind: type[nn.Module], **attributes: Any) -> None:
    vars(module).update(attributes, unfused=class_before(module))
    module.__class__ = kind


def _promotes(norm: Any) -> bool:
    """Whether a frozen BatchNorm2d, which is written out in torch's arithmetic, returns float32 in autocast."""
    device = norm.weight.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _folded(weight: Tensor, bias: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
    """Filters and bias that give what BatchNorm2d makes of their map by its statistics."""
    precise = torch.float64 if weight.dtype is torch.float64 else torch.float32
    scale = torch.rsqrt(norm.running_var.to(precise) + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean if bias is None else bias - norm.running_mean
    shift = shift * scale if norm.bias is None else torch.addcmul(norm.bias.to(precise), shift.to(precise), scale)
    return (weight * scale.view(-1, 1, 1, 1)).to(weight.dtype), shift.to(weight.dtype)
