"""Entry point for ``LIGHTCONV=1 python script.py``: Lightning calls it for the callbacks of every Trainer and Fabric.

It lies beside the package, so that neither lightconv nor Triton is imported if the variable is not set.
"""

import os
from typing import Any


def callbacks() -> list[Any]:
    """Return a KernelSwap if LIGHTCONV is 1, and no callback if it is 0, empty or not set.

    Raises:
        InputError: If LIGHTCONV has any other value.
    """
    value = os.environ.get("LIGHTCONV", "")
    if value in {"", "0"}:
        return []
    if value != "1":
        from lightconv.errors import InputError  # noqa: PLC0415

        raise InputError(f"LIGHTCONV={value} is unknown: set 1 to run every Trainer's model on lightconv, or 0")
    from lightconv.callbacks.kernel_swap import DefaultKernelSwap  # noqa: PLC0415

    return [DefaultKernelSwap()]
