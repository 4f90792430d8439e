"""Compile Triton kernels for GPUs that need not be there, and say what came out.

    compile_kernel    one kernel from the types of its arguments
    compile_launches  every kernel that a launcher starts, specialised by its real arguments as Triton's JIT would

Both work only in a process that does not interpret, which is what `pytest -m compile` starts.
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

Position = tuple[int, ...]  # of an argument, or of an element of a tuple argument: (argument, element)


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


def compile_kernel(
    kernel: JITFunction,
    arguments: Mapping[str, Any],
    constants: Mapping[str, Any],
    architecture: str,
    options: Mapping[str, Any],
) -> Compiled:
    """Compile a kernel from the types of its arguments.

    Args:
        kernel: a function decorated by `triton.jit`.
        arguments: type by name: "*fp16" (a pointer, 16-byte aligned), "i32", "i64", "i32:16" (a multiple of 16, which
            is what lets loads be vectorised), "tensordesc<fp16[64,32]>"; a tuple of these for a tuple argument, where
            an element that is not a string is a value known when compiling, as Triton makes of every argument equal
            to 1: `"x_strides": ("i32:16", 1, "i32:16", "i32:16")`.
        constants: value by name of the constexpr arguments, and of None or 1 passed to an ordinary one.
        architecture: "sm_80", "sm_90", "gfx942".
        options: `num_warps`, `num_stages`, `maxnreg`: see `Tile.options`.
    """
    types = [arguments.get(name, "constexpr") for name in kernel.arg_names]
    signature, known, attributes = {}, {}, {}
    for position, (name, type_) in enumerate(zip(kernel.arg_names, types, strict=True)):
        if name in constants:
            known[(position,)] = constants[name]
        elif name not in arguments:
            raise TypeError(f"{kernel.__name__}: neither a type nor a value for {name!r}")
        signature[name] = _signature(type_, (position,), known, attributes)
    return _compile(ASTSource(kernel, signature, known, attributes), architecture, options)


def _signature(type_: Any, at: Position, known: dict[Position, Any], attributes: dict[Position, Any]) -> Any:
    # an argument's entry in the signature; its known values and its alignment are filed under its position
    if isinstance(type_, tuple):
        return tuple(_signature(element, (*at, i), known, attributes) for i, element in enumerate(type_))
    if not isinstance(type_, str):
        known[at] = type_
        return "constexpr"
    name, _, divisor = type_.partition(":")
    if divisor or name.startswith("*"):
        attributes[at] = [["tt.divisibility", 16]]
    return name


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
