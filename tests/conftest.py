"""One process interprets Triton kernels or compiles them: `pytest` does the one, `-m gpu`, `-m compile` the other."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("-m"):
        os.environ["TRITON_INTERPRET"] = "1"  # before lightconv is imported: kernels are decorated once
    for variable in ("LIGHTCONV", "LIGHTCONV_BACKEND"):
        os.environ.pop(variable, None)
    os.environ.setdefault("MPLBACKEND", "agg")

    from jaxtyping import install_import_hook

    install_import_hook(["lightconv.data", "lightconv.models", "lightconv.tasks"], "helpers.support.checked")
    import helpers.support  # noqa: F401  the hook looks the checker up, and does not import it

    if os.environ.get("TRITON_INTERPRET"):
        quicken_the_interpreter()


def quicken_the_interpreter() -> None:
    """Leave out what takes more than half of the interpreter's time and changes no result."""
    import dataclasses
    import functools
    import inspect

    from triton.runtime import interpreter

    # repeats every integer operation in 64 bits, and reports nothing
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)

    # for every helper function, triton.language is searched anew for what is to be patched
    is_builtin = interpreter.tl.core.is_builtin
    builtins = functools.cache(lambda package: inspect.getmembers(package, is_builtin))

    def patch_builtin(package, builder, scope):
        for name, member in builtins(package):
            if getattr(package, name) is member:
                interpreter._patch_attr(package, name, member, builder, scope)

    interpreter._patch_builtin = patch_builtin

    # a helper function of ours is called within a kernel, for which triton.language has been patched already
    patch_lang = interpreter._patch_lang

    def patch_once(function):
        helper = function.__module__.startswith("lightconv.") and interpreter.tl.load.__name__ == "<lambda>"
        return None if helper else patch_lang(function)

    interpreter._patch_lang = patch_once

    # the type of a block is built anew for every operation, with its name
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
        if "compile" in item.keywords and interpreting:
            item.add_marker(pytest.mark.skip(reason="compiles kernels: `pytest -m compile`"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where kernels run: in Triton's interpreter on a CPU, or on the GPU."""
    return request.param


@pytest.fixture
def kernels():
    """Serve everything that they can by lightconv's kernels."""
    import lightconv as lc

    with lc.use_backend("triton"):
        yield


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel installs."""
    folder = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=Path(__file__).parents[1], check=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder
