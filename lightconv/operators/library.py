"""The torch.library namespace ``lightconv``, home of every operator.

lightconv.functional passes an operator only arguments that a kernel can serve. In a direct call an operator falls back
to torch's operators, but does not check the geometry as torch does.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.library import Library, register_fake

from lightconv.kernels.window import Window

LIBRARY = Library("lightconv", "FRAGMENT")


def implement(name: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register an operator's computation and its output shapes.

    Both functions take the arguments of the schema, except that a `Window` replaces stride, padding and dilation.

    Args:
        name: operator, defined in `LIBRARY`.
        implementation: computation for CPU and CUDA tensors.
        fake: allocation of empty outputs with the right shape, dtype and strides.
    """
    schema = getattr(torch.ops.lightconv, name).default._schema
    position = [argument.name for argument in schema.arguments].index("stride")
    computed = _pack_window(implementation, position)
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, computed, key)
    register_fake(f"lightconv::{name}", _pack_window(fake, position), lib=LIBRARY)


def _pack_window(function: Callable[..., Any], position: int) -> Callable[..., Any]:
    """Pass the three int lists at a position on as one `Window`."""
    end = position + len(Window._fields)

    def call(*arguments: Any) -> Any:
        window = Window.of(*arguments[position:end])
        return function(*arguments[:position], window, *arguments[end:])

    return call
