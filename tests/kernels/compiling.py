"""Compile Triton kernels for GPUs that need not be there, and say what came out.

A launcher is called with its real arguments, and what Triton's JIT would compile for them is compiled. Works only in a
process that does not interpret, which is what `pytest -m compile` starts.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature


class Compiled(NamedTuple):
    """What the compiler made of a kernel."""

    name: str
    registers: int  # a thread
    stack: int  # bytes a thread; 0 means no spills. AMD: the number of spilled registers
    shared: int  # bytes a block
    sass: str  # machine code; AMD: assembly
    ttir: str  # Triton's own intermediate code, before any choice of layout


def target(architecture: str) -> GPUTarget:
    """The compiler's name of "sm_90" or "gfx942"."""
    if architecture.startswith("sm_"):
        return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    return GPUTarget("hip", architecture, 64)


def compile_launches(launcher: Callable[..., Any], *args: Any, architecture: str, **kwargs: Any) -> list[Compiled]:
    """Compile every kernel that `launcher(*args, **kwargs)` starts, in order, launching none.

    Tensors are best made on the "meta" device, which gives them sizes and strides and no memory. The launcher sees the
    stated architecture; Triton's JIT itself says how the arguments specialise.
    """
    launches = []

    def record(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launches.append((kernel, arguments, options))

    modules = [m for name, m in sys.modules.items() if name.startswith("lightconv.") and hasattr(m, "architecture")]
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(JITFunction, "run", record))
        for module in modules:
            patches.enter_context(mock.patch.object(module, "architecture", return_value=architecture))
        launcher(*args, **kwargs)
    return [_compile_launch(*launch, architecture) for launch in launches]


def _compile_launch(kernel: JITFunction, args: Any, options: dict[str, Any], architecture: str) -> Compiled:
    backend = make_backend(target(architecture))
    bound, specialization, options = create_function_from_signature(kernel.signature, kernel.params, backend)(
        *args, debug=False, instrumentation_mode="", **options
    )
    parsed, signature, known, attributes = kernel._pack_args(backend, options, bound, specialization, None)
    return _compile(ASTSource(kernel, signature, known, attributes), architecture, parsed.__dict__)


def _compile(source: ASTSource, architecture: str, options: Mapping[str, Any]) -> Compiled:
    compiled = triton.compile(source, target=target(architecture), options=dict(options))
    asm, shared = compiled.asm, compiled.metadata.shared
    if "cubin" in asm:
        return Compiled(source.name, *_nvidia(asm["cubin"]), shared=shared, sass=_sass(asm["cubin"]), ttir=asm["ttir"])
    return Compiled(source.name, *_amd(asm["amdgcn"]), shared=shared, sass=asm["amdgcn"], ttir=asm["ttir"])


def _cuobjdump(cubin: bytes, what: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, what, file.name], capture_output=True, text=True, check=True).stdout


def _sass(cubin: bytes) -> str:
    return _cuobjdump(cubin, "--dump-sass")


def _nvidia(cubin: bytes) -> tuple[int, int]:
    usage = _cuobjdump(cubin, "--dump-resource-usage")
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage).group(1)) for name in ("REG", "STACK"))
    return registers, stack


def _amd(assembly: str) -> tuple[int, int]:
    count = {name: int(re.search(rf"\.{name}:\s+(\d+)", assembly).group(1)) for name in (
        "vgpr_count", "vgpr_spill_count", "sgpr_spill_count",
    )}  # fmt: skip
    return count["vgpr_count"], count["vgpr_spill_count"] + count["sgpr_spill_count"]


def index_arithmetic(kernel: Compiled) -> int:
    """The widest integers, in bits, that blocks of addresses are made of."""
    offsets = re.findall(r"tt\.addptr .*, tensor<(?:\d+x)+i(\d+)", kernel.ttir)
    return max(map(int, offsets), default=32)
