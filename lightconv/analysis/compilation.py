"""Compilation of kernels for GPUs that need not be present.

Launches are recorded instead of executed. Each recorded launch is then compiled as Triton's JIT would compile it, for
any architecture and on any machine:

    with record_launches("sm_90") as launches:
        implicit_gemm.forward(outputs, ...)          # tensors on the "meta" device: sizes and strides, no memory
    kernels = compile_kernels(launches)
"""

import inspect
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from lightconv.analysis import machine_code
from lightconv.errors import InputError
from lightconv.kernels import launch
from lightconv.operators.backend import use_backend
from lightconv.operators.library import LIBRARY


class Launch(NamedTuple):
    """A recorded launch of a kernel.

    Attributes:
        kernel: Triton's kernel.
        arguments: kernel arguments, keyed by name.
        options: launch options, such as num_warps.
        grid: number of blocks in each direction.
        architecture: architecture assumed by the launcher.
    """

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]
    grid: tuple[int, ...]
    architecture: str

    @property
    def name(self) -> str:
        """Algorithm, and kernel if its file has several: "implicit_gemm", "max_pooling.backward"."""
        algorithm = self.kernel.fn.__module__.rsplit(".", 1)[-1]
        part = self.kernel.__name__.removesuffix("kernel").strip("_")
        return f"{algorithm}.{part}" if part else algorithm


class Call(NamedTuple):
    """One call of a lightconv operator.

    Attributes:
        operator: operator's name: "conv2d", "conv2d_input_gradient", ...
        launches: recorded launches; empty if torch's matrix product serves the call.
    """

    operator: str
    launches: list[Launch]


class CompiledKernel(NamedTuple):
    """A compiled kernel.

    Attributes:
        name: name of the launch.
        architecture: architecture compiled for.
        warps: warps per block.
        registers: registers per thread.
        spilled: bytes per thread spilled from registers to memory; on AMD the number of spilled registers.
        shared: shared memory per block, in bytes.
        code_bytes: size of the machine code in bytes, without the padding of the last cache line.
        seconds: compile time in seconds; None if Triton's cache had the kernel.
        machine_code: listing by NVIDIA's disassembler, or AMD's assembly.
        code: all instructions.
        loop: instructions of the main loop.
        ttir: Triton's intermediate code before any layout is chosen.
    """

    name: str
    architecture: str
    warps: int
    registers: int
    spilled: int
    shared: int
    code_bytes: int
    seconds: float | None
    machine_code: str
    code: machine_code.Instructions
    loop: machine_code.Instructions
    ttir: str


@contextmanager
def record_launches(architecture: str) -> Iterator[list[Launch]]:
    """Record all launches within a ``with`` block instead of launching.

    Args:
        architecture: architecture to simulate, a member of `tiles.ARCHITECTURES`.

    Yields:
        A list that receives the launches in order.

    Raises:
        InputError: If this process interprets kernels.
    """
    if launch.INTERPRETED:
        raise InputError("TRITON_INTERPRET is set, and a process that interprets kernels cannot compile them: unset it")
    launches: list[Launch] = []

    def record(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        # launchers pass kernel arguments and launch options by keyword, side by side
        signature = inspect.signature(kernel.fn)
        by_name = {name: options.pop(name) for name in signature.parameters if name in options}
        named = signature.bind(*arguments, **by_name).arguments
        launches.append(Launch(kernel, dict(named), options, tuple(grid), architecture))

    # Both patches are process-wide: launches of other threads would be recorded, too.
    with (
        mock.patch.object(JITFunction, "run", record),
        mock.patch.object(launch, "INTERPRETED_AS", architecture),
    ):
        yield launches


class _OperatorRecorder(TorchDispatchMode):
    """Dispatch mode to run lightconv's operators as on a GPU, on meta tensors, and to record their launches."""

    def __init__(self, architecture: str) -> None:
        super().__init__()
        self.architecture = architecture
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace != LIBRARY.ns:
            return func(*args, **kwargs)
        # the operator's CUDA registration runs although its tensors are on the meta device
        with record_launches(self.architecture) as launches:
            result = func._op_dk(torch._C.DispatchKey.CUDA, *args, **kwargs)
        operator = func._schema.name.partition("::")[2]
        self.calls.append(Call(operator, launches))
        return result


def training_step(module: nn.Module, images: Tensor, architecture: str) -> list[Call]:
    """Record the operators called by a forward and a backward pass on a GPU, in order, and their launches.

    Args:
        module: module made of ``lightconv.nn``, on the meta device.
        images: input, (n, c, h, w), on the meta device.
        architecture: architecture to simulate, a member of `tiles.ARCHITECTURES`.

    Raises:
        InputError: If this process interprets kernels.
    """
    recorder = _OperatorRecorder(architecture)
    with use_backend("triton"), recorder:
        output = module(images)
        if output.requires_grad:
            output.backward(torch.empty_like(output))
    return recorder.calls


def target(architecture: str) -> GPUTarget:
    """Return the compiler's target for "sm_90" or "gfx942"."""
    if architecture.startswith("sm_"):
        return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    return GPUTarget("hip", architecture, 64)


def specialization(call: Launch) -> tuple[ASTSource, Any]:
    """Return the specialised source that Triton's JIT would compile for a launch, and the compiler's options."""
    kernel = call.kernel
    backend = make_backend(target(call.architecture))
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, special, options = binder(*call.arguments.values(), debug=False, instrumentation_mode="", **call.options)
    parsed, signature, constants, attributes = kernel._pack_args(backend, options, bound, special, None)
    return ASTSource(kernel, signature, constants, attributes), parsed


def compile_kernels(launches: Sequence[Launch]) -> list[CompiledKernel]:
    """Compile the kernels of recorded launches on all cores.

    Each distinct kernel is compiled once. Triton's cache is used.

    Args:
        launches: recorded launches.

    Returns:
        One compiled kernel per launch, in order; equal launches share one.
    """
    keys = []
    distinct: dict[str, tuple[str, str, ASTSource, Any]] = {}
    for call in launches:
        source, options = specialization(call)
        key = f"{call.name} {call.architecture} {source.hash()} {options.hash()}"
        keys.append(key)
        distinct[key] = (call.name, call.architecture, source, options)
    with knobs.compilation.scope(), ThreadPoolExecutor(os.cpu_count()) as pool:
        knobs.compilation.listener = _keep_seconds
        kernels = pool.map(lambda arguments: compile_kernel(*arguments), distinct.values())
        compiled = dict(zip(distinct, kernels, strict=True))
    return [compiled[key] for key in keys]


# Triton calls its listener in the thread that compiles, so each thread finds its own kernel's time here.
_this_thread = threading.local()


def _keep_seconds(*, times: Any, cache_hit: bool, **_: Any) -> None:
    microseconds = times.total
    _this_thread.seconds = None if cache_hit else microseconds / 1e6


def compile_kernel(name: str, architecture: str, source: ASTSource, options: Any) -> CompiledKernel:
    """Compile one specialised kernel, and read its resources and its machine code."""
    result = triton.compile(source, target=target(architecture), options=dict(options.__dict__))
    if "cubin" in result.asm:
        resources, listing = nvidia_resources(result.asm["cubin"])
        code = nvidia_instructions(result.asm["cubin"], listing)
    else:
        listing = result.asm["amdgcn"]
        resources = amd_resources(listing)
        code = machine_code.instructions(listing)
    return CompiledKernel(
        name=name,
        architecture=architecture,
        warps=options.num_warps,
        registers=resources["registers"],
        spilled=resources["spilled"],
        shared=result.metadata.shared,
        code_bytes=resources.get("code_bytes", machine_code.SASS_BYTES * len(code)),
        seconds=_this_thread.seconds,
        machine_code=listing,
        code=code,
        loop=machine_code.main_loop(code),
        ttir=result.asm["ttir"],
    )


def nvidia_resources(cubin: bytes) -> tuple[dict[str, int], str]:
    """Return the registers and spilled bytes per thread, and the disassembled code."""
    usage = read_cubin(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", cubin)
    # STACK counts a thread's local memory; these kernels have no local arrays, so it holds spilled registers only
    resources = {
        "registers": _number_after("REG:", usage),
        "spilled": _number_after("STACK:", usage),
    }
    return resources, read_cubin(knobs.nvidia.cuobjdump.path, "--dump-sass", cubin)


def nvidia_instructions(cubin: bytes, listing: str) -> machine_code.Instructions:
    """Return a kernel's instructions from nvdisasm's JSON, else from the columns of cuobjdump's listing."""
    try:
        return machine_code.parse_sass_json(read_cubin(knobs.nvidia.nvdisasm.path, "-json", cubin))
    except (OSError, RuntimeError, subprocess.CalledProcessError, LookupError, ValueError):
        # nvdisasm is missing, or older than its option -json, of CUDA 12
        return machine_code.instructions(listing)


def read_cubin(program: str, option: str, cubin: bytes) -> str:
    """Return what a program of CUDA prints about a compiled kernel."""
    # the programs read files only
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [program, option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def amd_resources(assembly: str) -> dict[str, int]:
    """Return the registers and spilled registers per thread, and the bytes of code, from the compiler's notes."""
    separator = r"[:=\s]+"
    spilled_vector = _number_after(r"\.vgpr_spill_count" + separator, assembly)
    spilled_scalar = _number_after(r"\.sgpr_spill_count" + separator, assembly)
    return {
        "registers": _number_after(r"\.vgpr_count" + separator, assembly),
        "spilled": spilled_vector + spilled_scalar,
        "code_bytes": _number_after("codeLenInByte" + separator, assembly),
    }


def _number_after(pattern: str, text: str) -> int:
    return int(re.search(pattern + r"(\d+)", text)[1])  # type: ignore[index]


def index_bits(kernel: CompiledKernel) -> int:
    """Return the width of the widest integers in blocks of addresses, 32 or 64 bits."""
    widths = re.findall(r"tt\.addptr .*, tensor<(?:\d+x)+i(\d+)", kernel.ttir)
    return max(map(int, widths), default=32)
