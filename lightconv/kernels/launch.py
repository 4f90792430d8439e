"""What every launch has in common: architecture, index width, precision, device, the interpreter's bfloat16."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED: bool = triton.knobs.runtime.interpret  # decided when kernels are decorated, so once and for all here
INTERPRETED_AS = "sm_80"  # the architecture whose tiles and loaders the interpreter runs

Outputs = tuple[Tensor, ...]


def architecture(tensor: Tensor) -> str:
    """The architecture of the GPU that holds a tensor, as its compiler calls it: "sm_90", "gfx942"."""
    if not tensor.is_cuda:
        return INTERPRETED_AS
    if torch.version.hip:
        return torch.cuda.get_device_properties(tensor.device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return f"sm_{major}{minor}"


def index_type(*tensors: Tensor) -> tl.dtype:
    """The narrowest integer that reaches every element: 64-bit address arithmetic costs registers."""
    reach = (sum((n - 1) * abs(s) for n, s in zip(t.shape, t.stride(), strict=True)) for t in tensors)
    furthest = max(*reach, *(t.numel() for t in tensors))  # an expanded tensor has more elements than memory
    return tl.int64 if furthest >= 2**31 - 2**16 else tl.int32  # a block may compute, and mask, a little beyond


def dot_precision(dtype: torch.dtype, architecture: str) -> Literal["tf32", "ieee"]:
    """How products are taken: float32's in TF32 only where torch's own convolution would, which is not on AMD."""
    switch = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    in_tf32 = dtype is torch.float32 and architecture.startswith("sm_") and switch.fp32_precision == "tf32"
    return "tf32" if in_tf32 else "ieee"


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def in_float32_when_interpreted(launcher: Callable[..., None]) -> Callable[..., None]:
    """Hand bfloat16 tensors to the interpreter as float32, which holds them exactly, and round the outputs.

    Triton's interpreter truncates float32 to bfloat16 and reads subnormals wrongly (triton-lang/triton#11584).
    Kernels accumulate in float32 and round once at the end, so this is the arithmetic that a GPU does.
    """

    @functools.wraps(launcher)
    def wrapper(outputs: Outputs, *args: Any, **options: Any) -> None:
        if not INTERPRETED or outputs[0].dtype is not torch.bfloat16:
            launcher(outputs, *args, **options)
            return
        widened = tuple(_widened(output) for output in outputs)
        launcher(widened, *(_widened(arg) for arg in args), **options)
        for output, wide in zip(outputs, widened, strict=True):
            if output is not wide:
                output.copy_(wide)

    return wrapper


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype is torch.bfloat16 else value
