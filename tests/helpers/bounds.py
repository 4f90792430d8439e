"""Proof, in Triton's interpreter, that no address a kernel computes leaves the tensor that it started from.

Masked-out lanes count too: on sm_100 a masked cp.async still dereferences its address (pytorch/pytorch#187081).

A launch hands every tensor's address to the kernel with a number of its own in the top 16 bits, which user addresses
leave free. Pointer arithmetic carries the number along, so each load and store knows which tensor its addresses come
from, however far they stray and whatever lies there. The number is checked and taken off just before memory is
touched; nothing is copied or moved. What is asked of a lane:

    masked out     a whole element between the tensor's first and last
    active         moreover one of the tensor's own elements, not one that its strides leave out
    descriptor     the same of lanes inside the described shape; the hardware fills the others with zeros

Atomics are refused outright: no sum of lightconv may depend on the order of blocks.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import GridExecutor, TensorDescHandle, TensorHandle, interpreter_builder
from triton.runtime.jit import TensorWrapper
from triton.tools.tensor_descriptor import TensorDescriptor

_ADDRESS_BITS = 48
_LARGEST_MAP = 2**26  # elements; a tensor that reaches further is not searched for gaps


class AddressError(AssertionError):
    """A kernel computed an address outside the tensor that it started from, or used an atomic."""


class _NumberedTensor(TensorWrapper):
    def __init__(self, tensor: Any, number: int) -> None:
        super().__init__(tensor.base if isinstance(tensor, TensorWrapper) else tensor, tensor.dtype)
        self.number = number

    def data_ptr(self) -> int:
        return self.base.data_ptr() + (self.number << _ADDRESS_BITS)


class _Memory:
    """The memory that an argument's shape and strides reach."""

    def __init__(self, name: str, tensor: Any) -> None:
        self.name = name
        self.shape, self.strides, self.itemsize = tuple(tensor.shape), tensor.stride(), tensor.element_size()
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        reach = 0 if 0 in self.shape else last + 1
        self.first, self.bytes = tensor.data_ptr(), reach * self.itemsize
        self.occupied = self._occupied(reach) if 0 < reach <= _LARGEST_MAP else None

    def _occupied(self, reach: int) -> np.ndarray:
        occupied = torch.zeros(reach, dtype=torch.bool)
        once = [size if stride else 1 for size, stride in zip(self.shape, self.strides, strict=True)]
        occupied.as_strided(once, self.strides).fill_(True)  # an expanded tensor cannot be written
        return occupied.numpy()

    def complaint(self, addresses: np.ndarray, active: np.ndarray, size: int) -> tuple[int, str] | None:
        """The worst of these accesses and what is wrong with it; None if all are right."""
        offsets = addresses.astype(np.int64) - self.first
        beyond = np.maximum(-offsets, offsets + size - self.bytes)
        worst = int(beyond.argmax())
        if beyond[worst] > 0:
            return worst, f"{beyond[worst]} bytes {'before' if offsets[worst] < 0 else 'behind'} the tensor"
        elements, rest = np.divmod(offsets, self.itemsize)
        if rest.any():
            return int(rest.argmax()), "not at the start of an element"
        if self.occupied is not None and (gap := active & ~self.occupied[elements]).any():
            return int(gap.argmax()), "between the tensor's elements, where its strides leave memory out"
        return None

    def __str__(self) -> str:
        return f"argument {self.name!r} (shape {self.shape}, strides {self.strides})"


class _Checker:
    def __init__(self) -> None:
        self.launched: list[str] = []
        self.memories: dict[int, _Memory] = {}

    def patches(self) -> Iterator[Any]:
        builder = interpreter_builder
        yield mock.patch.object(GridExecutor, "_init_args_hst", self.launch(GridExecutor._init_args_hst))
        yield mock.patch.object(GridExecutor, "__call__", _unwrapping_errors(GridExecutor.__call__))
        yield mock.patch.object(builder, "create_masked_load", partial(self.load, builder.create_masked_load))
        yield mock.patch.object(builder, "create_masked_store", partial(self.store, builder.create_masked_store))
        yield mock.patch.object(builder, "create_atomic_rmw", self.atomic)
        yield mock.patch.object(builder, "create_atomic_cas", self.atomic)
        materialize = _without_filled_lanes(TensorDescHandle.materialize_pointers)
        yield mock.patch.object(TensorDescHandle, "materialize_pointers", materialize)

    def launch(self, copied_to_host: Callable[..., Any]) -> Callable[..., Any]:
        def numbered(executor: GridExecutor, *args: Any) -> tuple[list[Any], dict[str, Any]]:
            self.launched.append(executor.fn.__name__)
            self.memories.clear()
            positional, named = copied_to_host(executor, *args)
            names = executor.arg_names[: len(positional)]
            return (
                [self.numbered(name, arg) for name, arg in zip(names, positional, strict=True)],
                {name: self.numbered(name, arg) for name, arg in named.items()},
            )

        return numbered

    def numbered(self, name: str, arg: Any) -> Any:
        if isinstance(arg, tuple):
            parts = [self.numbered(f"{name}[{position}]", part) for position, part in enumerate(arg)]
            return type(arg)(*parts) if hasattr(arg, "_fields") else tuple(parts)
        if isinstance(arg, TensorDescriptor):
            return replace(arg, base=self.numbered(name, arg.base))
        if not hasattr(arg, "data_ptr"):
            return arg
        number = len(self.memories) + 1
        self.memories[number] = _Memory(name, arg)
        return _NumberedTensor(arg, number)

    def load(self, real: Callable[..., Any], pointers: TensorHandle, mask: Any, *args: Any, **options: Any) -> Any:
        return real(self.checked("load", pointers, mask), mask, *args, **options)

    def store(self, real: Callable[..., Any], pointers: TensorHandle, value: Any, mask: Any, *args: Any) -> Any:
        return real(self.checked("store", pointers, mask), value, mask, *args)

    def atomic(self, *_: Any) -> None:
        raise AddressError(f"{self.launched[-1]} uses an atomic")

    def checked(self, access: str, pointers: TensorHandle, mask: Any) -> TensorHandle:
        """The same pointers without their numbers, once every lane has been found to be where it may be."""
        active = np.broadcast_to(_values(mask), pointers.data.shape)
        numbers = pointers.data >> np.uint64(_ADDRESS_BITS)
        addresses = pointers.data & np.uint64(2**_ADDRESS_BITS - 1)
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        for number in np.unique(numbers):
            lanes = numbers == number
            self.check(access, int(number), addresses[lanes], active[lanes], size)
        return TensorHandle(addresses, pointers.dtype)

    def check(self, access: str, number: int, addresses: np.ndarray, active: np.ndarray, size: int) -> None:
        where = f"{self.launched[-1]}, program {interpreter_builder.grid_idx}"
        memory = self.memories.get(number)
        if memory is None:
            raise AddressError(f"{where}: {access} through a pointer that comes from no argument")
        if complaint := memory.complaint(addresses, active, size):
            lane, words = complaint
            raise AddressError(
                f"{where}: {'active' if active[lane] else 'masked-out'} {access} from {memory} is {words}"
            )


def _unwrapping_errors(call: Callable[..., None]) -> Callable[..., None]:
    # the interpreter wraps what a kernel raises, once for every function it is inside of
    def unwrapped(executor: GridExecutor, *args: Any, **kwargs: Any) -> None:
        try:
            call(executor, *args, **kwargs)
        except InterpreterError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, AddressError):
                cause = cause.__cause__
            raise cause or error from None

    return unwrapped


def _without_filled_lanes(materialize: Callable[..., Any]) -> Callable[..., Any]:
    # lanes outside the described shape never become addresses on the GPU: here they point at the base
    def without(descriptor: TensorDescHandle, offsets: list[TensorHandle]) -> tuple[TensorHandle, Any]:
        pointers, inside = materialize(descriptor, offsets)
        pointers.data = np.where(_values(inside), pointers.data, descriptor.base.data)
        return pointers, inside

    return without


def _values(mask: Any) -> np.ndarray:
    # until Triton 3.8 a descriptor's mask is a bare array
    return np.asarray(mask.data)


@contextmanager
def checked_addresses() -> Iterator[list[str]]:
    """Raise AddressError at the first address that a kernel launched inside the block should not have computed.

    Yields:
        The names of the kernels launched so far: look that there are some.
    """
    checker = _Checker()
    with ExitStack() as stack:
        for patch in checker.patches():
            stack.enter_context(patch)
        yield checker.launched
