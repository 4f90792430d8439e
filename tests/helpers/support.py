"""Helpers of several tests: PyTorch's own samples, layouts in memory, and equality with torch."""

from collections.abc import Callable, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import torch
import torch.nn.functional as F
from beartype import BeartypeConf, beartype
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db

import lightconv as lc

# importing PyTorch's samples forbids to set torch.backends.cudnn.benchmark, but users may set it
torch.backends.disable_global_flags.__globals__["__allow_nonbracketed_mutation_flag"] = True

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as everywhere in Python


def check_types(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check annotations at run time, except for `Literal`: tests of unknown choices expect lightconv's InputError."""
    function.__annotations__ = {name: _without_literals(hint) for name, hint in function.__annotations__.items()}
    return _beartype(function)


def _without_literals(hint: Any) -> Any:
    """Replace a `Literal`, alone or in a union or sequence, by the types of its values."""
    if get_origin(hint) is Literal:
        return Union[tuple(type(value) for value in get_args(hint))]  # noqa: UP007
    if get_origin(hint) in {Union, UnionType}:
        return Union[tuple(_without_literals(part) for part in get_args(hint))]  # noqa: UP007
    if get_origin(hint) is Sequence:
        return Sequence[_without_literals(get_args(hint)[0])]
    return hint


def opinfo(name: str) -> Any:
    """Return PyTorch's own record of an operator, with its samples and error inputs."""
    (record,) = [op for op in op_db if op.name == f"nn.functional.{name}"]
    return record


def fill_with_integers(value: Any) -> Any:
    """Return a tensor of the same shape, strides and dtype, filled with -3..3: its products and sums are exact.

    Anything but a tensor is returned unchanged.
    """
    if not isinstance(value, Tensor):
        return value
    result = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
    result.copy_(torch.randint(-3, 4, value.shape, device=value.device))
    return result.requires_grad_(value.requires_grad)


def in_layout(tensor: Tensor, layout: str) -> Tensor:
    """Return the same values in another layout in memory; for "expanded", one image repeated."""
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        return F.pad(tensor, (1, 2, 1, 0)).repeat_interleave(2, -1)[..., 1:, 2:-4:2]
    if layout == "expanded":
        return tensor[:1].expand_as(tensor)
    return tensor


def leaves(arguments: Any) -> list[Tensor]:
    """Return the arguments that need a gradient."""
    return [value for value in arguments if isinstance(value, Tensor) and value.requires_grad]


def assert_same(actual: Any, expected: Any, exactly: bool = False) -> None:
    """Assert equal values, dtype, shape and strides of a tensor, or of each tensor of a tuple."""
    if isinstance(expected, tuple):
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert_same(a, e, exactly)
        return
    tolerance = {"rtol": 0, "atol": 0} if exactly else {}
    torch.testing.assert_close(actual, expected, equal_nan=True, check_stride=True, **tolerance)


def assert_same_gradients(actual: Any, expected: Any, inputs: list[Tensor], exactly: bool = False) -> None:
    """Assert equal gradients of the first output for a random cotangent of small integers."""
    actual, expected = (out[0] if isinstance(out, tuple) else out for out in (actual, expected))
    cotangent = torch.randint(-2, 3, expected.shape, device=expected.device).to(expected.dtype)
    tolerance = {"rtol": 0, "atol": 0} if exactly else {}
    for ours, theirs in zip(
        torch.autograd.grad(actual, inputs, cotangent),
        torch.autograd.grad(expected, inputs, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, equal_nan=True, **tolerance)


def error_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[type[Exception], str] | None:
    """Return the type and the message of the exception that a call raises, or None."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        return type(error), str(error)
    return None


def call_both(name: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Call a function by lightconv's kernel and by torch, and return both results."""
    with lc.use_backend("triton"):
        ours = getattr(lc.functional, name)(*args, **kwargs)
    return ours, getattr(torch.nn.functional, name)(*args, **kwargs)


def record_calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[tuple[Any, ...]]:
    """Replace a function by one that records its positional arguments, and return the growing list of them."""
    calls = []
    function = getattr(owner, name)

    def record(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, record)
    return calls


def call_and_record_saved(function: Callable[[], Any]) -> tuple[Any, list[Tensor]]:
    """Call a function, and return its result and the tensors that autograd saves for backward."""
    saved = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    return result, saved
