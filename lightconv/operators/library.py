"""The torch.library namespace ``lightconv``, home of every operator.

lightconv.functional calls an operator only if a kernel can serve the call. Called directly, an operator falls back to
torch's operators, but does not check the geometry as torch does.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.library import Library, register_autograd, register_fake

from lightconv.kernels.window import Window

LIBRARY = Library("lightconv", "FRAGMENT")


Function = TypeVar("Function", bound=Callable[..., Any])


def implementation_of(name: str) -> Callable[[Function], Function]:
    """Register the decorated function as an operator's computation for CPU and CUDA tensors.

    The function takes the arguments of the schema, except that a `Window` replaces stride, padding and dilation.

    Args:
        name: operator, defined in `LIBRARY`.
    """

    def register(function: Function) -> Function:
        for key in ("CPU", "CUDA"):
            LIBRARY.impl(name, _pack_window(name, function), key)
        return function

    return register


def fake_of(name: str) -> Callable[[Function], Function]:
    """Register the decorated function as an operator's fake: it allocates outputs of the right shape and strides.

    The function takes the same arguments as the operator's implementation.

    Args:
        name: operator, defined in `LIBRARY`.
    """

    def register(function: Function) -> Function:
        register_fake(f"{LIBRARY.ns}::{name}", _pack_window(name, function), lib=LIBRARY)
        return function

    return register


def backward_of(name: str, setup_context: Callable[..., None]) -> Callable[[Function], Function]:
    """Register the decorated function as an operator's backward pass.

    Args:
        name: operator, defined in `LIBRARY`.
        setup_context: function of (ctx, inputs, output) that saves what backward needs.
    """

    def register(function: Function) -> Function:
        register_autograd(f"{LIBRARY.ns}::{name}", function, setup_context=setup_context, lib=LIBRARY)
        return function

    return register


def _pack_window(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Pass an operator's arguments on with one `Window` in place of the int lists stride, padding and dilation."""
    schema = getattr(torch.ops.lightconv, name).default._schema
    start = [argument.name for argument in schema.arguments].index("stride")
    end = start + len(Window._fields)

    def call(*arguments: Any) -> Any:
        window = Window.of(*arguments[start:end])
        return function(*arguments[:start], window, *arguments[end:])

    return call
