"""Settings and fixtures of all tests.

A process either interprets Triton kernels or compiles them: `pytest` interprets, `-m gpu` and `-m compile` compile.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("-m"):
        # before lightconv is imported: a kernel is decorated once, for the interpreter or the compiler
        os.environ["TRITON_INTERPRET"] = "1"
    for variable in ("LIGHTCONV", "LIGHTCONV_BACKEND"):
        os.environ.pop(variable, None)
    os.environ.setdefault("MPLBACKEND", "agg")

    from jaxtyping import install_import_hook

    install_import_hook(["lightconv.data", "lightconv.models", "lightconv.tasks"], "helpers.support.check_types")
    import helpers.support  # noqa: F401  the hook looks the type checker up, and does not import it

    if os.environ.get("TRITON_INTERPRET"):
        speed_up_interpreter()


def speed_up_interpreter() -> None:
    """Remove work of Triton's interpreter that takes more than half of its time and changes no result."""
    import dataclasses
    import functools
    import inspect

    from triton.runtime import interpreter

    # the overflow check repeats every integer operation in 64 bits, and reports nothing
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)

    # per call of a jit function, the interpreter searches triton.language for functions to patch: search once
    is_builtin = interpreter.tl.core.is_builtin
    builtins = functools.cache(lambda package: inspect.getmembers(package, is_builtin))

    def patch_builtin(package, builder, scope):
        for name, member in builtins(package):
            if getattr(package, name) is member:
                interpreter._patch_attr(package, name, member, builder, scope)

    interpreter._patch_builtin = patch_builtin

    # a helper is called within a kernel, and the kernel's call has patched triton.language already
    patch_lang = interpreter._patch_lang

    def patch_once(function):
        helper = function.__module__.startswith("lightconv.") and interpreter.tl.load.__name__ == "<lambda>"
        return None if helper else patch_lang(function)

    interpreter._patch_lang = patch_once

    # the interpreter builds a block's type and name anew per operation: build each once
    block_type = interpreter.tl.block_type
    initialize, known = block_type.__init__, {}

    def remember(self, element_ty, shape):
        sizes = tuple(getattr(size, "value", size) for size in shape)
        key = (type(element_ty), str(element_ty), sizes)
        if key not in known:
            initialize(self, element_ty, shape)
            known[key] = dict(self.__dict__)
        self.__dict__.update(known[key])

    block_type.__init__ = remember


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    interpreting = bool(os.environ.get("TRITON_INTERPRET"))
    for item in items:
        if "gpu" in item.keywords and (interpreting or not torch.cuda.is_available()):
            item.add_marker(pytest.mark.skip(reason="needs a GPU and `pytest -m gpu`"))
        if "pages" in item.keywords and not config.getoption("-m"):
            item.add_marker(pytest.mark.skip(reason="runs whole pages: `make pages`"))
        if "compile" in item.keywords and interpreting:
            item.add_marker(pytest.mark.skip(reason="compiles kernels: `pytest -m compile`"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Device of a test: "cpu" for Triton's interpreter, or "cuda"."""
    return request.param


@pytest.fixture
def kernels():
    """Use lightconv's kernels wherever they can serve."""
    import lightconv as lc

    with lc.use_backend("triton"):
        yield


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the files that the wheel installs."""
    folder = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=Path(__file__).parents[1], check=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder
