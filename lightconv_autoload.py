"""``LIGHTCONV=1 python script.py``: what Lightning asks, for every Trainer and Fabric, which callbacks to add.

Beside the package, not within: where the variable is not set, neither lightconv nor Triton is imported.
"""

import os
from typing import Any


def callbacks() -> list[Any]:
    """A KernelSwap if LIGHTCONV is 1; none if it is 0, empty or not set.

    Raises:
        InputError: for any other value.
    """
    value = os.environ.get("LIGHTCONV", "")
    if value in {"", "0"}:
        return []
    if value != "1":
        from lightconv.errors import InputError  # noqa: PLC0415

        raise InputError(f"LIGHTCONV={value} means nothing: 1 runs every Trainer's model on lightconv, 0 none")
    from lightconv.callbacks.kernel_swap import DefaultKernelSwap  # noqa: PLC0415

    return [DefaultKernelSwap()]
