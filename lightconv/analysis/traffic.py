"""Memory traffic of a forward and a backward pass, counted exactly on any machine.

The pass runs on meta tensors: shapes and strides without values. It takes no memory and almost no time, and
the operators return the same results as on a GPU. Every operator is counted below autograd, just before torch's
dispatcher hands it to a device:

=========  =============================================================================================
operators  calls that write memory; views, detach, empty and the like move nothing and are left out
launches   least number of kernels started: one per operator, except in `launch_count`
read       bytes of the operators' input tensors; an expanded tensor counts the memory behind it
written    bytes of the operators' results, and of tensors changed in place
saved      bytes kept from forward to backward: each storage once, from its first to its last kept element;
           the module's own parameters and buffers are left out, because they are in memory anyway
=========  =============================================================================================

For torch's operators this is a lower bound: cuDNN adds the bias in a separate kernel, converts layouts, fills with
zeros, and reads a gradient once more for each gradient computed from it. Tensors that an autograd function keeps
outside ``save_for_backward`` are not seen.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from lightconv.operators.backend import use_backend
from lightconv.operators.geometry import in_format, is_channels_last
from lightconv.operators.meta import on_meta

# operators that read only the shape and dtype of their first argument, not its values
_DO_NOT_READ_THE_FIRST = re.compile(r"aten::(\w+_like|new_\w+|copy_|fill_|zero_)")


@dataclass(frozen=True)
class Traffic:
    """Memory traffic of one forward and backward pass.

    Attributes:
        operators: number of operators called.
        launches: number of kernels started.
        read: bytes read.
        written: bytes written.
        saved: bytes kept for backward.

    Example:
        >>> print(Traffic(operators=2, launches=3, read=4_000, written=5_000, saved=6_000))
        2 operators, 3 launches, 4,000 bytes read, 5,000 written, 6,000 saved for backward
    """

    operators: int
    launches: int
    read: int
    written: int
    saved: int

    def __str__(self) -> str:
        return (
            f"{self.operators} operators, {self.launches} launches, {self.read:,} bytes read, "
            f"{self.written:,} written, {self.saved:,} saved for backward"
        )


class Operator(NamedTuple):
    """One operator call's share of the traffic.

    Attributes:
        name: qualified name, such as "aten::relu".
        launches: number of kernels started.
        read: bytes read.
        written: bytes written.
    """

    name: str
    launches: int
    read: int
    written: int


def traffic(module: nn.Module, *inputs: Any) -> Traffic:
    """Count the memory traffic of one forward and backward pass on any machine.

    The module runs on meta tensors in place of its parameters and buffers, so none of them is read or changed.

    Args:
        module: module to count.
        *inputs: arguments of the module; only shape, strides, dtype and requires_grad of tensors matter.

    Example:
        >>> import torch
        >>> traffic(torch.nn.ReLU(), torch.zeros(4, 5, requires_grad=True))
        Traffic(operators=2, launches=2, read=240, written=160, saved=80)
    """
    forward, backward, saved = passes(module, *inputs)
    operators = [*forward, *backward]
    launches, read, written = 0, 0, 0
    for operator in operators:
        launches += operator.launches
        read += operator.read
        written += operator.written
    return Traffic(len(operators), launches, read, written, saved)


def passes(module: nn.Module, *inputs: Any) -> tuple[list[Operator], list[Operator], int]:
    """Count the operators of a forward and a backward pass one by one.

    Args:
        module: module to count.
        *inputs: arguments of the module.

    Returns:
        The operators of the forward pass in order, those of the backward pass, and the bytes saved between them.
    """
    state = {name: on_meta(t) for name, t in (*module.named_parameters(), *module.named_buffers())}
    inputs = tree_map_only(Tensor, on_meta, inputs)
    forward = _OperatorCounter()
    backward = _OperatorCounter()
    saved = _SavedBytes(owned=state.values())
    with forward, saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        results = functional_call(module, state, inputs)
    outputs = [t for t in _tensors(results) if t.requires_grad]
    # the loss makes the outputs' gradients, so they are not counted
    cotangents = [torch.ones_like(t) for t in outputs]
    with backward:
        torch.autograd.backward(outputs, cotangents)
    return forward.operators, backward.operators, saved.total()


def compare(ours: nn.Module, theirs: nn.Module, *inputs: Any) -> tuple[Traffic, Traffic]:
    """Count one module on lightconv's kernels and another on torch's operators, with the same inputs.

    Args:
        ours: module to count under backend "triton".
        theirs: module to count under backend "reference".
        *inputs: arguments of both modules.

    Returns:
        The traffic of `ours`, then of `theirs`.

    Raises:
        InputError: If Triton is not installed.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import lightconv as lc
        >>> block = lc.nn.ConvBlock(1, 6, 5, padding=2, activation="relu", pool=2)
        >>> unfused = nn.Sequential(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2))
        >>> ours, theirs = compare(block, unfused, torch.zeros(8, 1, 28, 28))
        >>> ours.operators, theirs.operators
        (2, 6)
    """
    with use_backend("triton"):
        our_traffic = traffic(ours, *inputs)
    with use_backend("reference"):
        their_traffic = traffic(theirs, *inputs)
    return our_traffic, their_traffic


class _OperatorCounter(TorchDispatchMode):
    """Dispatch mode to list the operators called within it."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Operator] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is torch.ops.aten.convolution.default:
            # Unlike a GPU's, the meta kernel forgets channels_last. Without it, later operators would not copy as they
            # do on a GPU.
            result = in_format(result, is_channels_last(*args[:2]))
        names = [argument.name for argument in func._schema.arguments]
        arguments = dict(zip(names, args, strict=False)) | kwargs
        written = [*changed_tensors(func, arguments), *new_tensors(func, arguments, result)]
        if written:
            operator = Operator(
                name=func._schema.name,
                launches=launch_count(func._schema.name, arguments),
                read=distinct_bytes(read_tensors(func, arguments)),
                written=distinct_bytes(written),
            )
            self.operators.append(operator)
        return result


def launch_count(name: str, arguments: dict[str, Any]) -> int:
    """Return how many kernels an operator starts at least."""
    if name == "aten::convolution_backward":
        # one per gradient asked for: of the image, the weight and the bias
        return sum(arguments["output_mask"])
    if name == "lightconv::conv2d_weight_gradient":
        # partial sums side by side, then their sum in a fixed order
        return 2
    return 1


def changed_tensors(func: Any, arguments: dict[str, Any]) -> list[Tensor]:
    """Return the tensors with values changed in place by an operator."""
    if torch.Tag.inplace_view in func.tags:
        # such an operator changes the shape alone
        return []
    changed = []
    for argument in func._schema.arguments:
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        if is_written and argument.name in arguments:
            changed.append(arguments[argument.name])
    return _tensors(changed)


def new_tensors(func: Any, arguments: dict[str, Any], result: Any) -> list[Tensor]:
    """Return the results filled by an operator: neither views of its arguments nor left empty."""
    if "empty" in func._schema.name:
        return []
    inputs = set(map(_storage, _tensors(arguments)))
    return [t for t in _tensors(result) if _storage(t) not in inputs]


def read_tensors(func: Any, arguments: dict[str, Any]) -> list[Tensor]:
    """Return the tensors with values used by an operator."""
    first_unread = _DO_NOT_READ_THE_FIRST.fullmatch(func._schema.name) is not None
    read = []
    for index, argument in enumerate(func._schema.arguments):
        unread = argument.is_out or (first_unread and index == 0)
        if argument.name in arguments and not unread:
            read.append(arguments[argument.name])
    return _tensors(read)


class _SavedBytes:
    """Counter of the bytes kept by autograd for backward.

    Args:
        owned: tensors to leave out, because they are in memory anyway.
    """

    def __init__(self, owned: Iterable[Tensor]) -> None:
        self._owned = set(map(_storage, owned))
        # Hazard: a storage is identified by its address. The storages are kept alive here, because another one could
        # take the address of one that was freed.
        self._spans: dict[int, tuple[torch.UntypedStorage, int, int]] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        """Count a tensor; autograd calls this hook with each tensor that it saves."""
        key = _storage(tensor)
        if key in self._owned:
            return tensor
        first = int(tensor.storage_offset()) * tensor.element_size()
        last = first + _span(tensor) * tensor.element_size()
        storage, earliest, latest = self._spans.get(key, (tensor.untyped_storage(), first, last))
        self._spans[key] = storage, min(first, earliest), max(last, latest)
        return tensor

    def total(self) -> int:
        """Return the bytes saved."""
        return sum(last - first for _, first, last in self._spans.values())


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _span(tensor: Tensor) -> int:
    """Return the number of elements of memory from a tensor's first to its last."""
    if tensor.numel() == 0:
        return 0
    last = 0
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        last += (size - 1) * stride
    return last + 1


def tensor_bytes(tensor: Tensor) -> int:
    """Return the memory behind a tensor, in bytes.

    It is less than the tensor's elements take if the tensor is expanded or its windows overlap.
    """
    # expanded dimensions have stride 0
    distinct = math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return min(distinct, _span(tensor)) * tensor.element_size()


def distinct_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the memory behind several tensors, in bytes; equal views of the same memory count once."""
    distinct = {}
    for tensor in tensors:
        view = (_storage(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        distinct[view] = tensor
    return sum(map(tensor_bytes, distinct.values()))
