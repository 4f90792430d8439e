"""What a forward and a backward pass move through memory, counted exactly on any machine.

The pass runs on meta tensors, which have shapes and strides but no values: it is immediate, costs no memory, and asks
the operators for the results that they would write on a GPU. Counted is every operator at the dispatcher's boundary
below autograd, where torch hands it to a device:

=========  =============================================================================================
operators  calls that write something; views, detach, empty and the like move nothing and are left out
launches   kernels started, at least: one an operator, but for those in `_LAUNCHES`
read       bytes of the tensors given to each operator; an expanded tensor counts the memory behind it
written    bytes of each operator's results, and of what it changes in place
saved      bytes kept from forward to backward, each storage once, from the first to the last element kept;
           not the module's own parameters and buffers, which are there anyway
=========  =============================================================================================

For torch's side this is a lower bound: cuDNN adds the bias in a kernel of its own, converts layouts, fills with zeros,
and reads a gradient once more for each of the gradients made of it. What an autograd function keeps elsewhere than in
``save_for_backward`` is not seen.
"""

import math
import re
from collections.abc import Callable, Iterable
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

# kernels an operator starts, from its arguments by name; all others start one
_LAUNCHES: dict[str, Callable[[dict[str, Any]], int]] = {
    # one for each gradient asked for, of the image, the weight and the bias
    "aten::convolution_backward": lambda arguments: sum(arguments["output_mask"]),
    # partial sums side by side, then their sum in a fixed order
    "lightconv::conv2d_weight_gradient": lambda _: 2,
}
# of their first argument these want the shape and dtype, not the values
_DO_NOT_READ_THE_FIRST = re.compile(r"aten::(\w+_like|new_\w+|copy_|fill_|zero_)")


@dataclass(frozen=True)
class Traffic:
    """What one forward and backward pass does to memory.

    Attributes:
        operators: operators called.
        launches: kernels started.
        read: bytes read.
        written: bytes written.
        saved: bytes kept for backward.
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
    """One operator's share: its name, "aten::relu", and what it adds to each figure of `Traffic`."""

    name: str
    launches: int
    read: int
    written: int


def traffic(module: nn.Module, *inputs: Any) -> Traffic:
    """Count one forward and backward pass; the head of this file says what and how.

    Args:
        module: run on stand-ins for its parameters and buffers; these are neither read nor changed.
        inputs: its arguments, of which tensors count by shape, strides, dtype and requires_grad, not by value.
    """
    forward, backward, saved = passes(module, *inputs)
    called = [*forward, *backward]
    launches, read, written = (sum(getattr(o, name) for o in called) for name in ("launches", "read", "written"))
    return Traffic(len(called), launches, read, written, saved)


def passes(module: nn.Module, *inputs: Any) -> tuple[list[Operator], list[Operator], int]:
    """The operators of the forward and of the backward pass, in order, and the bytes saved between them."""
    state = {name: on_meta(t) for name, t in (*module.named_parameters(), *module.named_buffers())}
    inputs = tree_map_only(Tensor, on_meta, inputs)
    forward, backward, saved = _Counter(), _Counter(), _Saved(state.values())
    with forward, saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        results = functional_call(module, state, inputs)
    outputs = [t for t in tree_leaves(results) if isinstance(t, Tensor) and t.requires_grad]
    cotangents = [torch.ones_like(t) for t in outputs]  # made by the loss, so not counted
    with backward:
        torch.autograd.backward(outputs, cotangents)
    return forward.operators, backward.operators, saved.total()


def compare(ours: nn.Module, theirs: nn.Module, *inputs: Any) -> tuple[Traffic, Traffic]:
    """Count one module on lightconv's kernels and another on torch's operators, with the same inputs.

    Raises:
        InputError: where Triton is not installed.
    """
    with use_backend("triton"):
        our_traffic = traffic(ours, *inputs)
    with use_backend("reference"):
        return our_traffic, traffic(theirs, *inputs)


class _Counter(TorchDispatchMode):
    """Lists the operators called within it."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Operator] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is torch.ops.aten.convolution.default:
            # the meta kernel forgets channels_last, a GPU does not: what follows copies where it would there
            result = in_format(result, is_channels_last(*args[:2]))
        names = [argument.name for argument in func._schema.arguments]
        self._count(func, dict(zip(names, args, strict=False)) | kwargs, result)
        return result

    def _count(self, func: Any, arguments: dict[str, Any], result: Any) -> None:
        written = [*_changed(func, arguments), *_fresh(func, arguments, result)]
        if not written:
            return
        launches = _LAUNCHES.get(func._schema.name, lambda _: 1)(arguments)
        read = distinct_bytes(_read(func, arguments))
        self.operators.append(Operator(func._schema.name, launches, read, distinct_bytes(written)))


def _changed(func: Any, arguments: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operator changes in place; not those of which it changes the shape alone."""
    if torch.Tag.inplace_view in func.tags:
        return []
    written = {a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    return _tensors([value for name, value in arguments.items() if name in written])


def _fresh(func: Any, arguments: dict[str, Any], result: Any) -> list[Tensor]:
    """The results that an operator fills: they are no views of its arguments, and not left empty."""
    if "empty" in func._schema.name:
        return []
    given = {_storage(t) for t in _tensors(arguments)}
    return [t for t in _tensors(result) if _storage(t) not in given]


def _read(func: Any, arguments: dict[str, Any]) -> list[Tensor]:
    """The tensors whose values an operator uses."""
    unread = {a.name for a in func._schema.arguments if a.is_out}
    if _DO_NOT_READ_THE_FIRST.fullmatch(func._schema.name):
        unread.add(func._schema.arguments[0].name)
    return _tensors([value for name, value in arguments.items() if name not in unread])


class _Saved:
    """Notes what autograd keeps for backward.

    Args:
        owned: tensors that are kept anyway.
    """

    def __init__(self, owned: Iterable[Tensor]) -> None:
        self._owned = {_storage(t) for t in owned}
        # the storages are held, lest another one takes a freed one's address
        self._spans: dict[int, tuple[torch.UntypedStorage, int, int]] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        """Autograd's hook: called with each tensor that it saves."""
        key, first = _storage(tensor), int(tensor.storage_offset()) * tensor.element_size()
        last = first + _span(tensor) * tensor.element_size()
        if key not in self._owned:
            storage, earliest, latest = self._spans.get(key, (tensor.untyped_storage(), first, last))
            self._spans[key] = storage, min(first, earliest), max(last, latest)
        return tensor

    def total(self) -> int:
        """Bytes saved."""
        return sum(last - first for _, first, last in self._spans.values())


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _span(tensor: Tensor) -> int:
    """Elements of memory from a tensor's first to its last."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _bytes(tensor: Tensor) -> int:
    """Memory behind a tensor: less than its elements where it is expanded, or its windows overlap."""
    distinct = math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return min(distinct, _span(tensor)) * tensor.element_size()


def distinct_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of several tensors, of which some may be the same piece of memory."""
    distinct = {(_storage(t), t.storage_offset(), tuple(t.shape), t.stride()): t for t in tensors}
    return sum(map(_bytes, distinct.values()))
