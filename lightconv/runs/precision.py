"""Precision of a run, and whether the processor has instructions for it."""

import warnings

import lightning as L
import torch

from lightconv.errors import InputWarning

# x86's AVX-512 and AMX, and ARM's own; without one of them torch converts every operand to float32 and back
_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")


def has_bfloat16() -> bool:
    """Return True if the processor multiplies bfloat16 numbers by instructions of its own, or if torch cannot tell."""
    find = getattr(torch.cpu, "get_capabilities", None)  # early versions of torch have no such function
    if find is None:
        return True
    capabilities = find()
    return any(capabilities.get(name, False) for name in _INSTRUCTIONS)


def warn_of_slow_precision(trainer: L.Trainer) -> None:
    """Warn of bfloat16 on a processor without instructions for it."""
    if not str(trainer.precision).startswith("bf16") or trainer.strategy.root_device.type != "cpu" or has_bfloat16():
        return
    warnings.warn(
        f"trainer.precision={trainer.precision}: this processor has no bfloat16 instructions, without which training "
        "was measured 5.6 times slower than in 32-true. Leave trainer.precision out on this machine",
        InputWarning,
        stacklevel=2,
    )
