"""What several tests share: PyTorch's own samples, and what it means to equal torch."""

from collections.abc import Callable
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import torch
import torch.nn.functional as F
from beartype import BeartypeConf, beartype
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db

import lightconv as lc

# importing PyTorch's samples forbids to set torch.backends.cudnn.benchmark, which users may
torch.backends.disable_global_flags.__globals__["__allow_nonbracketed_mutation_flag"] = True

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as everywhere in Python


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check annotations at run time, except for `Literal`: an unknown choice raises lightconv's own InputError."""
    function.__annotations__ = {name: _without_literals(hint) for name, hint in function.__annotations__.items()}
    return _beartype(function)


def _without_literals(hint: Any) -> Any:
    """Replace a `Literal`, alone or in a union, by the types of its values."""
    if get_origin(hint) is Literal:
        return Union[tuple(type(value) for value in get_args(hint))]  # noqa: UP007
    if get_origin(hint) in {Union, UnionType}:
        return Union[tuple(_without_literals(part) for part in get_args(hint))]  # noqa: UP007
    return hint


def opinfo(name: str) -> Any:
    """PyTorch's own record of one operator, with its samples and error inputs."""
    return next(op for op in op_db if op.name == f"nn.functional.{name}")


def with_integers(value: Any) -> Any:
    """The same tensor (shape, strides, dtype) filled with -3..3, whose products and sums are exact in any dtype."""
    if not isinstance(value, Tensor):
        return value
    result = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
    result.copy_(torch.randint(-3, 4, value.shape, device=value.device))
    return result.requires_grad_(value.requires_grad)


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values in another arrangement in memory (one image repeated, for "expanded")."""
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        return F.pad(tensor, (1, 2, 1, 0)).repeat_interleave(2, -1)[..., 1:, 2:-4:2]
    if layout == "expanded":
        return tensor[:1].expand_as(tensor)
    return tensor


def leaves(args: Any) -> list[Tensor]:
    """The arguments that want a gradient."""
    return [a for a in args if isinstance(a, Tensor) and a.requires_grad]


def assert_same(actual: Any, expected: Any, exactly: bool = False) -> None:
    """Equal values, dtype, shape and strides, of one tensor or a tuple of them."""
    if isinstance(expected, tuple):
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert_same(a, e, exactly)
        return
    tolerance = {"rtol": 0, "atol": 0} if exactly else {}
    torch.testing.assert_close(actual, expected, equal_nan=True, check_stride=True, **tolerance)


def assert_same_gradients(actual: Any, expected: Any, inputs: list[Tensor], exactly: bool = False) -> None:
    """Equal gradients of the first output for a random small-integer cotangent."""
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
    """What a call raises, and in what words."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        return type(error), str(error)
    return None


def ours_and_torchs(name: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """The same call by lightconv's kernel and by torch."""
    with lc.use_backend("triton"):
        ours = getattr(lc.functional, name)(*args, **kwargs)
    return ours, getattr(torch.nn.functional, name)(*args, **kwargs)
