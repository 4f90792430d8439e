"""Who serves a call, lightconv's kernel or torch's own operator, and why.

======================  ==========  =====================================================================
backend                 served by   reason
======================  ==========  =====================================================================
``auto`` (default)      torch       no kernel here has been measured to be quicker than cuDNN yet
``reference``           torch       asked for
``triton``              kernel      asked for, wherever a kernel can serve; elsewhere torch, see `refusal`
======================  ==========  =====================================================================

``LIGHTCONV_BACKEND`` sets the default. The switch is process-wide, like torch.backends: backward passes run in
threads of their own and compiled programs guard on it.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lightconv.errors import InputError

BACKENDS = ("auto", "reference", "triton")
TRITON = importlib.util.find_spec("triton") is not None

if TRITON:
    from lightconv.kernels.launch import INTERPRETED
else:
    INTERPRETED = False

_DTYPES = {torch.float16, torch.bfloat16, torch.float32}
_MAX_BLOCKS = 65535  # CUDA's limit on every grid axis but the first


def _checked(name: str) -> str:
    if name not in BACKENDS:
        raise InputError(f"unknown backend {name!r}: choose one of {', '.join(BACKENDS)}")
    if name == "triton" and not TRITON:
        raise InputError("backend 'triton' needs Triton, which is not installed: pip install triton (Linux)")
    return name


_backend = _checked(os.environ.get("LIGHTCONV_BACKEND", "auto"))


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose who serves convolution and max-pooling inside a ``with`` block or a decorated function.

    Args:
        name: "auto", "reference" (torch's operators) or "triton" (lightconv's kernels wherever they can serve).

    Raises:
        InputError: for an unknown name, or "triton" where Triton is not installed.
    """
    global _backend  # noqa: PLW0603
    previous, _backend = _backend, _checked(name)
    try:
        yield
    finally:
        _backend = previous


def wants_kernels() -> bool:
    """Whether the current backend asks for kernels at all: the quick way out for everybody else."""
    return _backend == "triton"


def refusal(*tensors: Tensor | None) -> str | None:
    """Why no kernel can work on these tensors; None if one can."""
    given = [t for t in tensors if t is not None]
    first = given[0]
    if not TRITON:
        return "Triton is not installed"
    if any(t.device != first.device for t in given) or any(t.dtype != first.dtype for t in given):
        return "tensors of different devices or dtypes"
    if any(t.layout is not torch.strided for t in given):
        return f"layout {first.layout}"
    if first.dtype not in _DTYPES:
        return f"no kernel for {first.dtype}"
    if any(t.numel() == 0 for t in given):
        return "an empty tensor leaves nothing to compute"
    if INTERPRETED:
        return None
    if first.device.type != "cuda":
        return f"kernels need a GPU, this is a {first.device.type} tensor (TRITON_INTERPRET=1 interprets them)"
    if torch.version.hip is None and torch.cuda.get_device_capability(first.device) < (8, 0):
        return "GPUs before Ampere (compute capability 8.0) have no kernel"
    return None


def transform_refusal() -> str | None:
    """Why the operators, which know reverse mode only, cannot be part of what surrounds the call; None if they can."""
    if torch.compiler.is_compiling():
        return None
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a torch.func transform"
    return None


def grid_refusal(*blocks: int) -> str | None:
    """Why a launch of this many blocks along an axis other than the first is impossible; None if it is not."""
    return f"more than {_MAX_BLOCKS} blocks along one axis" if max(blocks) > _MAX_BLOCKS else None
