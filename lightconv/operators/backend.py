"""Who serves a call, lightconv's kernel or torch's own operator, and why.

======================  =========================================================================================
backend                 served by
======================  =========================================================================================
``auto`` (default)      on a GPU, what ``lightconv tune`` measured, else the first of `RULES`; else torch
``reference``           torch
``triton``              a kernel wherever one can serve, also in Triton's interpreter; elsewhere torch
======================  =========================================================================================

What no kernel can serve, torch serves under every backend: see each operator's ``refusal``. ``LIGHTCONV_BACKEND`` sets
the default. The switch is process-wide, like torch.backends: backward passes run in threads of their own and compiled
programs guard on it.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightconv.errors import InputError
from lightconv.kernels import autotune
from lightconv.operators import autotune_file

BACKENDS = ("auto", "reference", "triton")
TRITON = importlib.util.find_spec("triton") is not None

if TRITON:
    from lightconv.kernels.launch import INTERPRETED
else:
    INTERPRETED = False

autotune.set_source(autotune_file.load)

_DTYPES = {torch.float16, torch.bfloat16, torch.float32}


class Call(NamedTuple):
    """What the choice of who serves a call depends on."""

    operator: str
    elements: int  # of the images
    terms: int = 0  # that a convolution sums for an element of its map
    depthwise: bool = False
    channels_last: bool = False
    pooled: bool = False  # of a gradient: whether it is the pooled map's
    indices: bool = False  # whether max-pooling is to return them


class Rule(NamedTuple):
    """On a GPU, who serves the calls to which it applies."""

    applies: Callable[[Call], bool]
    kernel: bool
    reason: str


GRADIENTS = {"conv2d_input_gradient", "conv2d_weight_gradient"}
# For each the documented reason to win or to lose; none has been measured with these kernels yet.
RULES = (
    Rule(
        # a map of half precision costs 8 bytes an element to write, activate and pool, as long as some 2,400 operations
        # on an H100 or A100: at half of cuDNN's pace a fused product of up to 1,152 terms is still no slower
        lambda call: call.operator == "conv_block" and call.pooled and call.terms <= 1152,
        True,
        "fused: the map before pooling, which weighs more than the product, is never written",
    ),
    Rule(
        lambda call: call.operator == "conv_block",
        False,
        "many terms an element: cuDNN's product saves more than fusing does",
    ),
    Rule(
        lambda call: call.depthwise and call.channels_last,
        True,
        "depthwise in channels_last: cuDNN took 1.069 ms where a Triton kernel took 0.181 (pytorch#175280)",
    ),
    Rule(
        lambda call: call.operator in GRADIENTS and call.pooled,
        True,
        "fused: the gradient of the map before pooling is never written",
    ),
    Rule(
        lambda call: call.operator in {"conv2d", *GRADIENTS},
        False,
        "no Triton convolution is known to beat cuDNN here",
    ),
    Rule(
        lambda call: call.operator == "max_pool2d" and call.elements >= 2**20 and not call.indices,
        True,
        "bound by memory, and one byte a window is kept instead of eight",
    ),
    Rule(lambda call: call.operator == "max_pool2d", False, "small, or with indices: nothing to save"),
)


class Dispatch(NamedTuple):
    """Who serves a call, and why."""

    kernel: bool
    reason: str


def _checked(name: str) -> str:
    if name not in BACKENDS:
        raise InputError(f"unknown backend {name!r}: choose one of {', '.join(BACKENDS)}")
    if name == "triton" and not TRITON:
        raise InputError("backend 'triton' needs Triton, which is not installed: pip install triton (Linux)")
    return name


_backend = os.environ.get("LIGHTCONV_BACKEND", "auto")
_mistake: InputError | None = None  # in the environment: told at the first call, since an import can only fail
try:
    _checked(_backend)
except InputError as error:
    _mistake = InputError(f"LIGHTCONV_BACKEND: {error}")


def check_environment() -> None:
    """Make sure that a default can be served.

    Raises:
        InputError: if LIGHTCONV_BACKEND names an unknown backend, or "triton" where Triton is not installed.
    """
    if _mistake is not None:
        raise _mistake


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


def wants_kernels(device: str) -> bool:
    """Whether the current backend may ask for kernels on a device: the quick way out for everybody else."""
    if _mistake is not None:
        raise _mistake
    return _backend == "triton" or (_backend == "auto" and device == "cuda")


def dispatch(call: Call, tensors: Sequence[Tensor | None], *options: Any) -> Dispatch:
    """Who serves a call that a kernel can serve.

    Args:
        call: what the rules ask for.
        tensors: that it is made with, the images first.
        options: that it is made with.
    """
    if _backend != "auto":
        return Dispatch(_backend == "triton", f"asked for: backend {_backend!r}")
    rule = next(rule for rule in RULES if rule.applies(call))
    images = tensors[0]
    assert images is not None
    if autotune.is_enabled(images):
        trained = torch.is_grad_enabled()
        gradients = tuple(trained and t is not None and t.requires_grad for t in tensors)
        in_tf32 = torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
        key = (call.operator, *map(autotune.tensor_key, tensors), gradients, *options, in_tf32)
        if autotune.select(images, key, (rule.kernel, not rule.kernel)) != rule.kernel:
            return Dispatch(not rule.kernel, "measured on this GPU by lightconv tune")
    return Dispatch(rule.kernel, rule.reason)


def tensor_unsupported_reason(*tensors: Tensor | None) -> str | None:
    """Why no kernel can work on these tensors; None if one can."""
    given = [t for t in tensors if t is not None]
    first = given[0]
    if not TRITON:
        return "Triton is not installed"
    if any(t.device != first.device for t in given) or any(t.dtype != first.dtype for t in given):
        return "tensors of different devices or dtypes"
    other = next((t.layout for t in given if t.layout is not torch.strided), None)
    if other is not None:
        return f"layout {other}"
    if first.dtype not in _DTYPES:
        return f"no kernel for {first.dtype}"
    if any(t.numel() == 0 for t in given):
        return "an empty tensor leaves nothing to compute"
    if INTERPRETED or first.device.type == "meta":  # shapes alone: as a GPU would be served
        return None
    if first.device.type != "cuda":
        return f"kernels need a GPU, this is a {first.device.type} tensor (TRITON_INTERPRET=1 interprets them)"
    if torch.version.hip is None and torch.cuda.get_device_capability(first.device) < (8, 0):
        return "GPUs before Ampere (compute capability 8.0) have no kernel"
    return None


def transform_unsupported_reason() -> str | None:
    """Why the operators, which know reverse mode and vmap, cannot be part of what surrounds the call; None if they can.

    Forward mode would silently find no tangents, and torch.func.grad refuses torch.library's formulas.
    """
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation"
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        return "torch.jit.trace"
    if not torch._C._are_functorch_transforms_active():
        return None
    if torch.compiler.is_compiling():  # which transforms they are cannot be asked while Dynamo traces
        return "a compiled torch.func transform"
    functorch = torch._C._functorch
    if any(level.key() != functorch.TransformType.Vmap for level in functorch.get_interpreter_stack()):
        return "a torch.func transform other than vmap"
    return None
