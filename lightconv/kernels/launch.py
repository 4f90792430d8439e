"""Parts of every launch: architecture, integer type of addresses, precision, device, and bfloat16 when interpreted."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED: bool = triton.knobs.runtime.interpret  # fixed here, because kernels are decorated once
INTERPRETED_AS = "sm_80"  # the interpreter runs the tiles and loaders of this architecture

Outputs = tuple[Tensor, ...]


def architecture(tensor: Tensor) -> str:
    """Return the compiler's name of a tensor's GPU: "sm_90", "gfx942"."""
    if not tensor.is_cuda:
        return INTERPRETED_AS
    if torch.version.hip:
        return torch.cuda.get_device_properties(tensor.device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return f"sm_{major}{minor}"


def index_type(*tensors: Tensor) -> tl.dtype:
    """Return the narrowest integer type for the addresses of these tensors: 64 bits cost registers."""
    furthest = 0
    for tensor in tensors:
        last = sum((size - 1) * abs(stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        # an expanded tensor has more elements than memory, and kernels count both
        furthest = max(furthest, last, tensor.numel())
    # a block may compute, and mask, addresses a little beyond its tensors
    return tl.int64 if furthest >= 2**31 - 2**16 else tl.int32


def dot_precision(dtype: torch.dtype, architecture: str) -> Literal["tf32", "ieee"]:
    """Return the precision of products: "tf32" for float32 if torch's own convolution takes TF32, else "ieee"."""
    switch = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    # AMD's convolutions in torch do not take TF32
    in_tf32 = dtype is torch.float32 and architecture.startswith("sm_") and switch.fp32_precision == "tf32"
    return "tf32" if in_tf32 else "ieee"


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Make a tensor's GPU the current device, because Triton launches on the current device."""
    if tensor.is_cuda:
        return torch.cuda.device(tensor.device)
    return nullcontext()


def in_float32_when_interpreted(launcher: Callable[..., None]) -> Callable[..., None]:
    """Decorate a launcher: the interpreter gets bfloat16 tensors as float32, and the outputs are rounded.

    Hazard: Triton's interpreter truncates float32 to bfloat16 and reads subnormals wrongly (triton-lang/triton#11584).
    float32 holds every bfloat16 number exactly. Kernels accumulate in float32 and round once at the end, so this is the
    arithmetic of a GPU.

    Args:
        launcher: function of a tuple of outputs, the first of them a tensor, and of inputs.
    """

    @functools.wraps(launcher)
    def wrapper(outputs: tuple[Tensor | None, ...], *args: Any, **options: Any) -> None:
        assert outputs[0] is not None
        if not INTERPRETED or outputs[0].dtype is not torch.bfloat16:
            launcher(outputs, *args, **options)
            return
        wide_outputs = tuple(map(_widen, outputs))
        wide_options = {name: _widen(value) for name, value in options.items()}
        launcher(wide_outputs, *map(_widen, args), **wide_options)
        for output, wide in zip(outputs, wide_outputs, strict=True):
            if output is not None and output is not wide:
                output.copy_(wide)

    return wrapper


def _widen(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype is torch.bfloat16:
        return value.float()
    return value
