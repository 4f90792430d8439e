"""Fuse convolution, normalisation, activation and pooling of an existing model into blocks, in place, and undo it.

A fused convolution computes its whole chain; the modules after it return their input. BatchNorm2d in evaluation is an
affine map per filter k, and becomes part of the convolution's weight and bias::

    scale[k]  = gamma[k] / sqrt(var[k] + eps)
    weight'[k] = weight[k] * scale[k]
    bias'[k]   = (bias[k] - mean[k]) * scale[k] + beta[k]
"""

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
from lightconv.surgery.chains import NORMS, Chain, activation_name, find_chains, full_name
from lightconv.surgery.swap import exchange_class, original_class

_FOLDING_COST = 2**16  # pixels that a CPU normalises in the time of the small operators for scale and shift
# set on the modules of a chain, and stored in their pickles
_ATTRIBUTES = ("unfused", "norms", "absorbed", "activation", "pool")


class Row(NamedTuple):
    """Result of `fuse` for one convolution.

    Attributes:
        name: name of the convolution in the model.
        block: classes computed as one, the convolution's first; "" if it was left alone.
        reason: why the convolution was left alone, or why its block ends there.
    """

    name: str
    block: str
    reason: str


class Fusion(NamedTuple):
    """Result of `fuse`. Printing it shows a table with one row per convolution.

    Attributes:
        rows: a row per convolution, in the order of ``model.named_modules()``.

    Example:
        >>> import lightconv as lc
        >>> fusion = lc.fuse(nn.Sequential(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.Conv2d(6, 2, 1)))
        >>> fusion.fused
        (Row(name='0', block='Conv2d, ReLU', reason='followed by Conv2d'),)
        >>> fusion.left
        (Row(name='2', block='', reason='its output is returned'),)
    """

    rows: tuple[Row, ...]

    @property
    def fused(self) -> tuple[Row, ...]:
        """Rows of the fused convolutions."""
        return tuple(row for row in self.rows if row.block)

    @property
    def left(self) -> tuple[Row, ...]:
        """Rows of the convolutions left alone."""
        return tuple(row for row in self.rows if not row.block)

    def __str__(self) -> str:
        lines = [("convolution", "fused", "ends because"), *self.rows]
        names, blocks, _ = zip(*lines, strict=True)
        name_width = max(map(len, names))
        block_width = max(map(len, blocks))
        return "\n".join(f"{name:<{name_width}}  {block:<{block_width}}  {why}".rstrip() for name, block, why in lines)


class Fused(nn.Module):
    """Base of the modules of a fused chain.

    Attributes:
        unfused: class of the module outside a chain.
        norms: the chain's BatchNorm2d, if any; a tuple, so that it is not registered as a submodule again.
    """

    unfused: type[Any]
    norms: tuple[Any, ...]

    @property
    def runs_unfused(self) -> bool:
        """True while each module of the chain must compute its own part.

        BatchNorm2d in training needs the convolution's output for its statistics. A frozen norm in autocast returns
        float32, and a fused convolution would not.
        """
        # A loop, because any() takes longer and every module of a chain asks at every call.
        for norm in self.norms:
            if isinstance(norm, nn.BatchNorm2d):
                if norm.training:
                    return True
            elif returns_float32(norm):
                return True
        return False


class FusedConv2d(Fused, ConvBlock):
    """A convolution computing its whole chain.

    Attributes:
        absorbed: modules after the convolution; a tuple, so that they are not registered as submodules again.
    """

    absorbed: tuple["_Absorbed", ...]

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.runs_unfused:
            return Conv2d._conv_forward(self, input, weight, bias)
        if not self.should_fold(input):
            output = Conv2d._conv_forward(self, input, weight, bias)
            for module in self.absorbed:
                output = module.unfused_forward(output)
            return output
        for norm in self.norms:
            weight, bias = fold_norm(weight, bias, norm)
        return super()._conv_forward(input, weight, bias)

    def should_fold(self, input: Tensor) -> bool:
        """True if folding BatchNorm2d into the filters costs less than normalising the output. True without one.

        Args:
            input: images of the convolution, (n, c, h, w).
        """
        if not self.norms:
            return True
        pixels = input.numel() // (self.in_channels * math.prod(self.stride))
        pays: Any = _FOLDING_COST + 2 * self.weight.numel() <= self.out_channels * pixels
        # torch.export may leave image sizes open. Either result is right then, and evaluating pays would fix the sizes.
        return isinstance(pays, torch.SymBool) or pays


class _Absorbed(Fused):
    """A module of a chain after the convolution. It returns its input, already computed by the convolution.

    Attributes:
        kind: original class, a base of the module's class, so that isinstance holds.
    """

    kind: Any

    def forward(self, input: Tensor) -> Tensor:
        if self.runs_unfused:
            return super().forward(input)
        return input

    def unfused_forward(self, input: Tensor) -> Tensor:
        """Compute the module's own part."""
        return super().forward(input)

    def __reduce__(self) -> tuple[Any, ...]:
        # the class is created on demand, so pickle cannot look it up by name
        return _new, (self.kind,), vars(self)


class _AbsorbedNorm(_Absorbed):
    """A norm of a chain. It still calls its inner modules; they return their input like the norm itself.

    Attributes:
        calls: names of the inner modules.
    """

    calls: tuple[str, ...]

    def forward(self, input: Tensor) -> Tensor:
        if self.runs_unfused:
            return super().forward(input)
        for name in self.calls:
            input = getattr(self, name)(input)
        return input

    def unfused_forward(self, input: Tensor) -> Tensor:
        # without the inner modules: they are absorbed themselves and follow
        norm: Any = self
        return F.batch_norm(input, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


@functools.cache
def absorbed_class(kind: Any) -> Any:
    """Create the class of an absorbed module."""
    calls = NORMS.get(full_name(kind))
    base = _Absorbed if calls is None else _AbsorbedNorm
    return type(f"Absorbed{kind.__name__}", (base, kind), {"__module__": __name__, "kind": kind, "calls": calls})


def _new(kind: Any) -> Any:
    """Create an absorbed module without attributes. Pickles of fused models hold this function's name."""
    absorbed = absorbed_class(kind)
    return absorbed.__new__(absorbed)


def fuse(model: nn.Module) -> Fusion:
    """Compute convolution, BatchNorm2d, activation and non-overlapping max-pooling as one ConvBlock, in place.

    Modules, Parameters, names, state dict, hooks and optimizers stay valid. The convolution's class becomes
    `FusedConv2d`, and the modules absorbed return their input. `unfuse` undoes it.

    Pooling may precede a non-decreasing activation, because the two commute. Functions in a forward (``F.relu``,
    ``+``) cannot be removed from it, and stay. timm's BatchNormAct2d counts as a BatchNorm2d followed by its inner
    modules. torchvision's FrozenBatchNorm2d counts as a BatchNorm2d that stays in evaluation. timm's
    FrozenBatchNormAct2d counts as both.

    A chain with BatchNorm2d is fused in evaluation. While its BatchNorm2d is in training, each module computes its own
    part. The statistics are folded into the filters anew at each call, so they are never out of date. If the filters
    are large and the output is small, folding costs more than it saves; the statistics are then applied to the output.

    The forward is traced once, with the default values of its arguments and with the attributes set at the moment. If
    torch.fx cannot trace a forward, fuse assumes that it calls submodules with children as a whole; it reads these with
    the default values of their arguments.

    Fuse last. A hook registered, a module replaced or a module called by itself within a chain after fusing sees other
    outputs than before. Unfuse before the forward's attributes change, before an output within a chain is read, before
    modules are converted (SyncBatchNorm), and before the model is scripted or pickled for a machine without lightconv.
    Unfused, the modules of a swapped model have torch.nn's classes again.

    Args:
        model: any module, in training or in evaluation.

    Returns:
        A row per convolution: its block, and why the block ends there or why there is none.

    Raises:
        InputError: If there is nothing to fuse. The model is then unchanged.

    Example:
        >>> from torch import nn
        >>> import lightconv as lc
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 5), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()).eval()
        >>> print(lc.fuse(model))
        convolution  fused                      ends because
        0            Conv2d, BatchNorm2d, ReLU  followed by Flatten
    """
    chains = find_chains(model)
    rows = []
    reasons: Counter[str] = Counter()
    for chain in chains:
        block = ""
        if chain.absorbed:
            block = ", ".join(type(module).__name__ for module in (chain.convolution, *chain.absorbed))
        rows.append(Row(chain.name, block, chain.end_reason))
        reasons[chain.end_reason] += 1
    fusion = Fusion(tuple(rows))
    if not fusion.fused:
        why = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3)) or "it has no Conv2d"
        raise InputError(f"{type(model).__name__} has no convolution to fuse with the modules after it: {why}")
    for chain in chains:
        if chain.absorbed:
            fuse_chain(chain)
    return fusion


def unfuse(model: nn.Module) -> None:
    """Undo `fuse`: every module computes its own part again.

    Without fused modules it changes nothing.

    Args:
        model: a fused model, or a part of one; chains whose convolution is in that part are unfused as a whole.

    Example:
        >>> from torch import nn
        >>> import lightconv as lc
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 5), nn.ReLU())
        >>> report = lc.fuse(model)
        >>> lc.unfuse(model)
        >>> type(model[0])
        <class 'torch.nn.modules.conv.Conv2d'>
    """
    for convolution in model.modules():
        if isinstance(convolution, FusedConv2d):
            for module in convolution.absorbed:
                unfuse_module(module, absorbed_class(module.kind))
            unfuse_module(convolution, FusedConv2d)


def unfuse_module(module: Fused, fused: type[nn.Module]) -> None:
    """Exchange the fused class of a module for its own, and delete the attributes of the chain."""
    exchange_class(module, fused, module.unfused)
    for name in _ATTRIBUTES:
        vars(module).pop(name, None)


def effective_class(module: nn.Module, images: Tensor | None = None) -> type[nn.Module]:
    """Return the class of the computation that a module performs at the moment.

    Outside a fused chain it is the module's own class. A fused convolution is a ConvBlock or a Conv2d, and an absorbed
    module is an nn.Identity unless its chain runs unfused.

    Args:
        module: any module.
        images: input of a fused convolution, (n, c, h, w); its size decides about folding.
    """
    if not isinstance(module, Fused):
        return type(module)
    if isinstance(module, FusedConv2d):
        is_folded = images is None or module.should_fold(images)
        if is_folded and not module.runs_unfused:
            return ConvBlock
        return Conv2d
    if isinstance(module, _Absorbed) and module.runs_unfused:
        return module.kind
    return nn.Identity


def fuse_chain(chain: Chain) -> None:
    """Let the convolution of a chain compute all of it."""
    norms: tuple[nn.Module, ...] = ()
    activation = "identity"
    pool: Any = (1, 1)
    for module in chain.absorbed:
        name = activation_name(module)
        if name is not None:
            activation = name
        elif isinstance(module, nn.MaxPool2d):
            pool = pair(module.kernel_size)
        else:
            norms = (module,)
    options = {"norms": norms, "absorbed": chain.absorbed, "activation": activation, "pool": pool}
    change_class(chain.convolution, FusedConv2d, **options)
    for module in chain.absorbed:
        # an absorbed pooling runs on lightconv's operator while its chain runs unfused
        kind: Any = MaxPool2d if isinstance(module, nn.MaxPool2d) else type(module)
        change_class(module, absorbed_class(kind), norms=norms)


def change_class(module: nn.Module, kind: type[nn.Module], **attributes: Any) -> None:
    """Give a module a fused class and the attributes of its chain."""
    vars(module).update(attributes, unfused=original_class(module))
    module.__class__ = kind


def returns_float32(frozen_norm: Any) -> bool:
    """True if a frozen BatchNorm2d returns float32 in autocast: it is composed of torch's arithmetic operators."""
    device = frozen_norm.weight.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def fold_norm(weight: Tensor, bias: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
    """Fold BatchNorm2d's statistics and affine parameters into a convolution's weight and bias.

    Args:
        weight: filters, (k, c, r, s).
        bias: one value per filter, (k,).
        norm: the BatchNorm2d or a frozen one.

    Returns:
        The new weight, (k, c, r, s), and the new bias, (k,), in the weight's dtype.
    """
    # half precision would round scale and shift
    precise = torch.float64 if weight.dtype is torch.float64 else torch.float32
    scale = torch.rsqrt(norm.running_var.to(precise) + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean if bias is None else bias - norm.running_mean
    shift = shift * scale if norm.bias is None else torch.addcmul(norm.bias.to(precise), shift.to(precise), scale)
    # (k,) -> (k, 1, 1, 1)
    scale = scale.view(-1, 1, 1, 1)
    return (weight * scale).to(weight.dtype), shift.to(weight.dtype)
