import contextlib
import itertools
import os
import subprocess
import sys

import pytest
import torch

import lightconv as lc
from lightconv.operators import backend


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process without the interpreter of this one."""
    clean = {k: v for k, v in os.environ.items() if k not in {"TRITON_INTERPRET", "LIGHTCONV_BACKEND"}}
    return subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, check=False
    )


def test_unknown_backend():
    with (
        pytest.raises(ValueError, match="unknown backend 'cudnn': choose one of auto, reference, triton"),
        lc.use_backend("cudnn"),
    ):
        pass


def test_previous_backend_returns_after_an_error():
    with contextlib.suppress(KeyError), lc.use_backend("triton"):
        assert backend.wants_kernels("cpu")
        with lc.use_backend("reference"):
            assert not backend.wants_kernels("cpu")
        assert backend.wants_kernels("cpu")
        raise KeyError
    assert not backend.wants_kernels("cpu")


def test_decorated_function():
    assert lc.use_backend("triton")(backend.wants_kernels)("cpu")
    assert not backend.wants_kernels("cpu")


def test_default_from_the_environment():
    code = "import lightconv; print(lightconv.operators.backend.wants_kernels('cpu'))"
    assert python(code, LIGHTCONV_BACKEND="triton").stdout.strip() == "True"
    assert python(code).stdout.strip() == "False"
    mistaken = python(code, LIGHTCONV_BACKEND="fast").stderr
    assert "InputError: LIGHTCONV_BACKEND: unknown backend 'fast': choose one of auto" in mistaken


def test_torch_serves_a_cpu_without_the_interpreter():
    code = """
import torch, lightconv as lc
x, w = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 3, 3)
print(lc.operators.backend.tensor_unsupported_reason(x, w))
with lc.use_backend("triton"):
    assert torch.equal(lc.functional.conv2d(x, w), torch.nn.functional.conv2d(x, w))
"""
    result = python(code)
    assert "kernels need a GPU" in result.stdout, result.stderr


def test_without_triton():
    code = """
import sys, importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "triton" else find(name, *a)
import torch, lightconv as lc
assert lc.nn.ConvBlock(1, 2, 3, pool=2)(torch.randn(1, 1, 8, 8)).shape == (1, 2, 3, 3)
assert torch.ops.lightconv.conv2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), None, (1, 1), (0, 0), (1, 1), 1) == 4
assert "lightconv.kernels.implicit_gemm" not in sys.modules
try:
    with lc.use_backend("triton"): pass
except ValueError as error:
    print(error)
try:
    lc.tune(lc.models.LeNet(), torch.ones(1, 1, 28, 28))
except ValueError as error:
    print(error)
"""
    result = python(code)
    assert "pip install triton" in result.stdout, result.stderr
    assert "cannot measure them here: Triton is not installed" in result.stdout


def test_operators_load_without_lightning():
    result = python("import sys, lightconv; print('lightning' in sys.modules)")
    assert result.stdout.strip() == "False", result.stderr


def test_sparse_and_mixed_tensors_are_unsupported(kernels):
    dense = torch.ones(1, 1, 4, 4)
    assert "layout torch.sparse_coo" in backend.tensor_unsupported_reason(dense, dense.to_sparse())
    assert "differ in device or dtype" in backend.tensor_unsupported_reason(dense, dense.half())


def test_every_rule_is_first_for_some_call():
    operators = ("conv2d", "conv_block", "max_pool2d", *backend.GRADIENTS)
    sizes = (1, 2**20)
    products = (25, 4608)
    flags = itertools.product((False, True), repeat=4)
    calls = [
        backend.Call(operator, size, count, *options)
        for operator, size, count, options in itertools.product(operators, sizes, products, flags)
    ]
    first = [next(rule for rule in backend.RULES if rule.applies(call)) for call in calls]
    assert set(first) == set(backend.RULES)


def test_auto_wants_kernels_on_a_gpu_only():
    assert backend.wants_kernels("cuda")
    assert not backend.wants_kernels("cpu")
    assert not backend.wants_kernels("meta")


def test_meta_tensors_are_served_as_on_a_gpu(kernels, monkeypatch):
    monkeypatch.setattr(backend, "INTERPRETED", False)
    x, w = (torch.empty(s, device="meta") for s in [(2, 3, 8, 8), (4, 3, 3, 3)])
    assert backend.tensor_unsupported_reason(x, w) is None
    assert lc.functional.conv_block(x, w, pool=2).shape == (2, 4, 3, 3)
