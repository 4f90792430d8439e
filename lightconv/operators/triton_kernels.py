"""The package's one import guard for Triton: kernel modules, or None for each of them without Triton.

    from lightconv.operators.triton_kernels import TRITON, implicit_gemm, launch

Test `TRITON` before you use one of the modules.
"""

import importlib.util

TRITON = importlib.util.find_spec("triton") is not None

if TRITON:
    from lightconv.kernels import depthwise, implicit_gemm, launch, max_pooling, tiles, weight_gradient
else:
    depthwise = implicit_gemm = launch = max_pooling = tiles = weight_gradient = None  # type: ignore[assignment]

INTERPRETED: bool = TRITON and launch.INTERPRETED
"""True if kernels run in Triton's interpreter instead of on a GPU."""

__all__ = [
    "INTERPRETED",
    "TRITON",
    "depthwise",
    "implicit_gemm",
    "launch",
    "max_pooling",
    "tiles",
    "weight_gradient",
]
