"""Compile what a launcher would launch for a GPU that need not be there; only where kernels are not interpreted."""

from collections.abc import Callable
from typing import Any

from lightconv.analysis.compilation import Compiled, compiled, recorded


def compile_launches(launcher: Callable[..., Any], *args: Any, architecture: str, **kwargs: Any) -> list[Compiled]:
    """Compile every kernel that `launcher(*args, **kwargs)` starts, in order, launching none."""
    with recorded(architecture) as launches:
        launcher(*args, **kwargs)
    return compiled(launches)
