"""Dispatch: decide if a kernel of lightconv or torch's own operator serves a call, and give the reason.

======================  =========================================================================================
backend                 served by
======================  =========================================================================================
``auto`` (default)      on a GPU, the winner measured by ``lightconv tune``, else the first of `RULES` that applies;
                        on other devices, torch
``reference``           torch
``triton``              a kernel if one can serve the call, also in Triton's interpreter; else torch
======================  =========================================================================================

Under every backend, torch serves calls that no kernel can serve: see each operator's ``operator_unsupported_reason``.
``LIGHTCONV_BACKEND`` sets the default. The setting is process-wide, like torch.backends: backward passes run in threads
of their own, and compiled programs guard on it.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lightconv.errors import InputError
from lightconv.kernels import autotune
from lightconv.operators import autotune_file
from lightconv.operators.triton_kernels import INTERPRETED, TRITON

__all__ = [
    "BACKENDS",
    "GRADIENTS",
    "INTERPRETED",
    "RULES",
    "TRITON",
    "BackendName",
    "Call",
    "Dispatch",
    "Rule",
    "check_environment",
    "dispatch",
    "tensor_unsupported_reason",
    "transform_unsupported_reason",
    "use_backend",
    "wants_kernels",
]

BackendName = Literal["auto", "reference", "triton"]
BACKENDS: tuple[str, ...] = get_args(BackendName)

autotune.set_source(autotune_file.load)

# torch serves float64: the kernels accumulate in float32
_DTYPES = {torch.float16, torch.bfloat16, torch.float32}
_MINIMUM_CAPABILITY = (8, 0)  # Ampere: on Turing, Triton's float16 product spills registers


class Call(NamedTuple):
    """Features of one call, the input of the rules.

    Attributes:
        operator: operator name without its namespace.
        elements: number of elements of the images.
        products: products summed per output element of a convolution, r * s * channels per group.
        depthwise: True if each filter reads one channel.
        channels_last: True if the result is channels_last.
        pooled: True if the call max-pools its result, or takes the gradient of a pooled map.
        indices: True if max-pooling returns plane indices.
    """

    operator: str
    elements: int
    products: int = 0
    depthwise: bool = False
    channels_last: bool = False
    pooled: bool = False
    indices: bool = False


class Rule(NamedTuple):
    """Dispatch on a GPU for a group of calls.

    Attributes:
        applies: predicate that selects the calls.
        use_kernel: True if a kernel serves them, False if torch does.
        reason: reason, as `lightconv.explain` shows it.
    """

    applies: Callable[[Call], bool]
    use_kernel: bool
    reason: str


GRADIENTS = {"conv2d_input_gradient", "conv2d_weight_gradient"}
# Each rule rests on a documented reason to win or to lose. None has been measured with these kernels yet.
RULES = (
    Rule(
        # A half-precision map costs 8 bytes per element to write, activate and pool. On an H100 or A100 that takes as
        # long as about 2,400 operations. At half of cuDNN's speed, a fused convolution of up to 1,152 products per
        # element is therefore still no slower.
        applies=lambda call: call.operator == "conv_block" and call.pooled and call.products <= 1152,
        use_kernel=True,
        reason="fused: saves the memory traffic of the map before pooling",
    ),
    Rule(
        applies=lambda call: call.operator == "conv_block",
        use_kernel=False,
        reason="without pooling, or with this many products per output, cuDNN saves more than fusion",
    ),
    Rule(
        applies=lambda call: call.depthwise and call.channels_last,
        use_kernel=True,
        reason="depthwise in channels_last: cuDNN took 1.069 ms, a Triton kernel 0.181 ms (pytorch#175280)",
    ),
    Rule(
        applies=lambda call: call.operator in GRADIENTS and call.pooled,
        use_kernel=True,
        reason="fused: saves the memory traffic of the gradient before pooling",
    ),
    Rule(
        # PyTorch on its own Triton template: "on CUDA, profiling shows no gains on H100" (torch/_inductor/config.py)
        applies=lambda call: call.operator in {"conv2d", *GRADIENTS},
        use_kernel=False,
        reason="no Triton convolution is known to beat cuDNN here",
    ),
    Rule(
        applies=lambda call: call.operator == "max_pool2d" and call.elements >= 2**20 and not call.indices,
        use_kernel=True,
        reason="memory-bound: keeps 1 byte per window for backward instead of 8",
    ),
    Rule(
        applies=lambda call: call.operator == "max_pool2d",
        use_kernel=False,
        reason="small images, or indices requested: no memory traffic to save",
    ),
)


class Dispatch(NamedTuple):
    """Decision for one call.

    Attributes:
        use_kernel: True if a kernel serves the call, False if torch does.
        reason: reason, as `lightconv.explain` shows it.
    """

    use_kernel: bool
    reason: str


def _check_name(name: str) -> None:
    if name not in BACKENDS:
        raise InputError(f"unknown backend {name!r}: choose one of {', '.join(BACKENDS)}")
    if name == "triton" and not TRITON:
        raise InputError("backend 'triton' needs Triton, which is not installed: pip install triton (Linux)")


_backend = os.environ.get("LIGHTCONV_BACKEND", "auto")
# Raised at the first call so that `import lightconv` still works.
_environment_error: InputError | None = None
try:
    _check_name(_backend)
except InputError as error:
    _environment_error = InputError(f"LIGHTCONV_BACKEND: {error}")


def check_environment() -> None:
    """Check the default backend set by the environment.

    Raises:
        InputError: If LIGHTCONV_BACKEND is an unknown backend, or "triton" and Triton is not installed.
    """
    if _environment_error is not None:
        raise _environment_error


@contextmanager
def use_backend(name: BackendName) -> Iterator[None]:
    """Set the backend of convolution and max-pooling inside a ``with`` block or a decorated function.

    Args:
        name: "auto" for the measured or documented winner, "reference" for torch's operators, "triton" for lightconv's
            kernels wherever they can serve.

    Raises:
        InputError: If the name is unknown, or "triton" and Triton is not installed.

    Example:
        >>> import torch
        >>> import lightconv as lc
        >>> with lc.use_backend("reference"):
        ...     lc.functional.max_pool2d(torch.ones(1, 1, 4, 4), 2).shape
        torch.Size([1, 1, 2, 2])
    """
    global _backend  # noqa: PLW0603
    _check_name(name)
    previous = _backend
    _backend = name
    try:
        yield
    finally:
        _backend = previous


def wants_kernels(device: str) -> bool:
    """Return True if the current backend may use kernels on a device type.

    If not, a call leaves for torch here, before its arguments are looked at.
    """
    if _environment_error is not None:
        raise _environment_error
    return _backend == "triton" or (_backend == "auto" and device == "cuda")


def dispatch(call: Call, tensors: Sequence[Tensor | None], *options: Any) -> Dispatch:
    """Decide if a kernel or torch serves a call. A kernel must be able to serve it.

    Args:
        call: features of the call for the rules.
        tensors: tensor arguments of the call, images first.
        options: further arguments of the call. Tensors and options are part of the key of a measurement.
    """
    if _backend != "auto":
        return Dispatch(_backend == "triton", f"backend {_backend!r} is selected")
    rule = _first_rule(call)
    images = tensors[0]
    assert images is not None
    if autotune.is_enabled(images):
        training = torch.is_grad_enabled()
        needs_gradient = tuple(training and t is not None and t.requires_grad for t in tensors)
        # a measurement holds for exactly these tensors, gradients, options and precision
        in_tf32 = torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
        key = (call.operator, *map(autotune.tensor_key, tensors), needs_gradient, *options, in_tf32)
        measured = autotune.select(images, key, (rule.use_kernel, not rule.use_kernel))
        if measured != rule.use_kernel:
            return Dispatch(measured, "measured to be faster on this GPU by lightconv tune")
    return Dispatch(rule.use_kernel, rule.reason)


def _first_rule(call: Call) -> Rule:
    for rule in RULES:
        if rule.applies(call):
            return rule
    raise AssertionError(f"no rule for {call}")


def tensor_unsupported_reason(*tensors: Tensor | None) -> str | None:
    """Return the reason no kernel can work on these tensors, or None.

    Args:
        tensors: tensor arguments of a call; None for an argument that is absent.
    """
    if not TRITON:
        return "Triton is not installed"
    present = [tensor for tensor in tensors if tensor is not None]
    first = present[0]
    for tensor in present:
        if tensor.device != first.device or tensor.dtype != first.dtype:
            return "tensors differ in device or dtype"
    for tensor in present:
        if tensor.layout is not torch.strided:
            return f"no kernel for layout {tensor.layout}"
    if first.dtype not in _DTYPES:
        return f"no kernel for {first.dtype}"
    for tensor in present:
        if tensor.numel() == 0:
            return "a tensor is empty: nothing to compute"
    # a meta tensor has a shape alone: answer as for a GPU
    if INTERPRETED or first.device.type == "meta":
        return None
    if first.device.type != "cuda":
        return f"kernels need a GPU, this is a {first.device.type} tensor (TRITON_INTERPRET=1 interprets them)"
    if torch.version.hip is None and torch.cuda.get_device_capability(first.device) < _MINIMUM_CAPABILITY:
        return "GPUs before Ampere (compute capability 8.0) have no kernel"
    return None


def transform_unsupported_reason() -> str | None:
    """Return the reason a transform around the current call cannot contain the operators, or None.

    The operators support reverse mode and vmap. Forward mode would silently find no tangents. torch.func.grad rejects
    the formulas of torch.library.
    """
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation"
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        return "torch.jit.trace"
    if not torch._C._are_functorch_transforms_active():
        return None
    # Dynamo cannot ask for the kinds of the active transforms while it traces
    if torch.compiler.is_compiling():
        return "a compiled torch.func transform"
    functorch = torch._C._functorch
    for level in functorch.get_interpreter_stack():
        if level.key() != functorch.TransformType.Vmap:
            return "a torch.func transform other than vmap"
    return None
