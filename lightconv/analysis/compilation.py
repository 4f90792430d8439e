"""Compile kernels for GPUs that need not be there.

The launches of a call are recorded in place of being made, and what Triton's JIT would compile for each is compiled,
for any architecture and on any machine.

    with recorded("sm_90") as launches:
        implicit_gemm.forward(outputs, ...)          # tensors on the "meta" device: sizes and strides, no memory
    kernels = compiled(launches)
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

_SASS_BYTES = 16  # of an instruction, since sm_70


class Launch(NamedTuple):
    """A kernel's launch that did not happen.

    Attributes:
        kernel: of Triton's.
        arguments: by name.
        options: num_warps and the like.
        grid: blocks in each direction.
        architecture: for which it was meant.
    """

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]
    grid: tuple[int, ...]
    architecture: str

    @property
    def name(self) -> str:
        """The algorithm, and the kernel where its file has several: "implicit_gemm", "max_pooling.backward"."""
        part = self.kernel.__name__.removesuffix("kernel").strip("_")
        return ".".join([self.kernel.fn.__module__.rsplit(".", 1)[-1], *([part] if part else [])])


class Call(NamedTuple):
    """One call of a lightconv operator.

    Attributes:
        operator: "conv2d", "conv2d_input_gradient", ...
        launches: that it makes; none where torch's matrix product serves it.
    """

    operator: str
    launches: list[Launch]


class Compiled(NamedTuple):
    """What the compiler made of a kernel.

    Attributes:
        name: the launch's.
        architecture: compiled for.
        warps: of a block.
        registers: of a thread.
        spilled: bytes of a thread that did not fit its registers; AMD: registers.
        shared: bytes of a block.
        code_bytes: of machine code, without what fills the last line of the cache.
        seconds: that the compiler took; None if it was in Triton's cache.
        machine_code: as the disassembler prints it; AMD: assembly.
        code: its instructions.
        loop: those of them in which the kernel spends its time.
        ttir: Triton's own intermediate code, before any choice of layout.
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
def recorded(architecture: str) -> Iterator[list[Launch]]:
    """Collect the launches of a ``with`` block in place of launching, as a GPU of this architecture would see them.

    Raises:
        InputError: in a process that interprets kernels.
    """
    if launch.INTERPRETED:
        raise InputError("TRITON_INTERPRET is set, and a process that interprets kernels cannot compile them: unset it")
    launches: list[Launch] = []

    def record(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        given = inspect.signature(kernel.fn).bind(*arguments).arguments
        launches.append(Launch(kernel, dict(given), options, tuple(grid), architecture))

    with (
        mock.patch.object(JITFunction, "run", record),
        mock.patch.object(launch, "INTERPRETED_AS", architecture),
    ):
        yield launches


class _Recorder(TorchDispatchMode):
    """Runs lightconv's operators as for a GPU, on tensors without memory, and keeps their launches."""

    def __init__(self, architecture: str) -> None:
        super().__init__()
        self.architecture = architecture
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace != LIBRARY.ns:
            return func(*args, **(kwargs or {}))
        with recorded(self.architecture) as launches:
            result = func._op_dk(torch._C.DispatchKey.CUDA, *args, **(kwargs or {}))
        self.calls.append(Call(func._schema.name.partition("::")[2], launches))
        return result


def training_step(module: nn.Module, images: Tensor, architecture: str) -> list[Call]:
    """The operators that a forward and a backward pass calls on a GPU, in order, and what they launch.

    Args:
        module: on the "meta" device, made of ``lightconv.nn``.
        images: on the "meta" device.
        architecture: one of `tiles.ARCHITECTURES`.
    """
    recorder = _Recorder(architecture)
    with use_backend("triton"), recorder:
        output = module(images)
        if output.requires_grad:
            output.backward(torch.empty_like(output))
    return recorder.calls


def target(architecture: str) -> GPUTarget:
    """The compiler's name of "sm_90" or "gfx942"."""
    if architecture.startswith("sm_"):
        return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    return GPUTarget("hip", architecture, 64)


def specialization(call: Launch) -> tuple[ASTSource, Any]:
    """What Triton's JIT would compile for a launch: the specialised source, and the compiler's options."""
    kernel, backend = call.kernel, make_backend(target(call.architecture))
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, special, options = binder(*call.arguments.values(), debug=False, instrumentation_mode="", **call.options)
    parsed, signature, constants, attributes = kernel._pack_args(backend, options, bound, special, None)
    return ASTSource(kernel, signature, constants, attributes), parsed


def compiled(launches: Sequence[Launch]) -> list[Compiled]:
    """Compile what launches would run, each distinct kernel once, on all cores; Triton's cache is used."""
    sources = [specialization(call) for call in launches]
    names = [(call.name, call.architecture) for call in launches]
    keys = [f"{name} {source.hash()} {options.hash()}" for name, (source, options) in zip(names, sources, strict=True)]
    distinct = {key: (*name, *source) for key, name, source in zip(keys, names, sources, strict=True)}
    with knobs.compilation.scope(), ThreadPoolExecutor(os.cpu_count()) as pool:
        knobs.compilation.listener = _note_seconds
        results = dict(zip(distinct, pool.map(lambda given: _compiled(*given), distinct.values()), strict=True))
    return [results[key] for key in keys]


_this_thread = threading.local()


def _note_seconds(*, times: Any, cache_hit: bool, **_: Any) -> None:
    _this_thread.seconds = None if cache_hit else times.total / 1e6


def _compiled(name: str, architecture: str, source: ASTSource, options: Any) -> Compiled:
    result = triton.compile(source, target=target(architecture), options=dict(options.__dict__))
    asm = result.asm
    figures, listing = _nvidia(asm["cubin"]) if "cubin" in asm else _amd(asm["amdgcn"])
    code = machine_code.instructions(listing)
    return Compiled(
        name=name,
        architecture=architecture,
        warps=options.num_warps,
        shared=result.metadata.shared,
        seconds=_this_thread.seconds,
        machine_code=listing,
        code=code,
        loop=machine_code.main_loop(code),
        ttir=asm["ttir"],
        **({"code_bytes": _SASS_BYTES * len(code)} | figures),
    )


def _nvidia(cubin: bytes) -> tuple[dict[str, int], str]:
    usage = _cuobjdump(cubin, "--dump-resource-usage")
    registers, spilled = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))  # type: ignore[index]
    return {"registers": registers, "spilled": spilled}, _cuobjdump(cubin, "--dump-sass")


def _cuobjdump(cubin: bytes, what: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = knobs.nvidia.cuobjdump.path
        return subprocess.run([tool, what, file.name], capture_output=True, text=True, check=True).stdout


def _amd(assembly: str) -> tuple[dict[str, int], str]:
    def figure(name: str) -> int:
        return int(re.search(rf"{name}[:=\s]+(\d+)", assembly)[1])  # type: ignore[index]

    spilled = figure(r"\.vgpr_spill_count") + figure(r"\.sgpr_spill_count")
    return {
        "registers": figure(r"\.vgpr_count"),
        "spilled": spilled,
        "code_bytes": figure("codeLenInByte"),
    }, assembly


def index_bits(kernel: Compiled) -> int:
    """The widest integers that blocks of addresses are made of."""
    offsets = re.findall(r"tt\.addptr .*, tensor<(?:\d+x)+i(\d+)", kernel.ttir)
    return max(map(int, offsets), default=32)
