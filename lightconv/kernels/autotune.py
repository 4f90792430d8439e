"""Choices that may be measured: who serves a call, and by which tile.

A choice is a question: a key, which holds all that it depends on, and its options, of which the first is the rule's.
Answers are what ``lightconv tune`` measured on a kind of GPU; one that is no longer among the options is passed over.

Where results are to be the same everywhere, they cannot depend on what was measured somewhere: under
torch.use_deterministic_algorithms no answer is looked up. Nor is one while torch.compile traces, which fuses what
surrounds a layer and chooses for itself; tiles within lightconv's operators are chosen when those run.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

Key = tuple[Any, ...]  # of strings, numbers, None, and tuples of them
Answers = Mapping[Key, Any]
Option = TypeVar("Option")

NO_ANSWERS: Answers = {}


class Question(NamedTuple):
    """A question, and the option that was taken."""

    key: Key
    options: tuple[Any, ...]
    answer: Any


def _nothing(gpu: str) -> Answers:
    return NO_ANSWERS


_source: Callable[[str], Answers] = _nothing
_tried: Answers | None = None  # in place of the source's
_noted: list[Question] | None = None


def is_enabled(like: Tensor) -> bool:
    """Whether there may be an answer for a call on this tensor: the quick way out for everybody else."""
    if torch.compiler.is_compiling():
        return False
    if _tried is not None:
        return True
    return like.is_cuda and not torch.are_deterministic_algorithms_enabled() and bool(_of_gpu(like.device.index))


def select(like: Tensor, key: Key, options: tuple[Option, ...]) -> Option:
    """The option that was measured to be the fastest; the first where none was."""
    known = measured_for(like).get(key)
    chosen = next((option for option in options if option == known), options[0])
    if _noted is not None:
        _noted.append(Question(key, options, chosen))
    return chosen


def measured_for(like: Tensor) -> Answers:
    """The answers that hold for calls on the device of a tensor."""
    if _tried is not None:
        return _tried
    return _of_gpu(like.device.index) if is_enabled(like) else NO_ANSWERS


def tensor_key(tensor: Tensor | None) -> Key | None:
    """A tensor as part of a key: dtype, sizes and strides."""
    if tensor is None:
        return None
    strides = (stride if size > 1 else 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return str(tensor.dtype), tuple(tensor.shape), tuple(strides)


def set_source(source: Callable[[str], Answers]) -> None:
    """Look answers up in a source, by a GPU's name, from now on."""
    global _source  # noqa: PLW0603
    _source = source
    _of_gpu.cache_clear()


@cache
def _of_gpu(index: int) -> Answers:
    return _source(torch.cuda.get_device_name(index))


@contextmanager
def override(answers: Answers) -> Iterator[None]:
    """Let these answers hold, and no others, inside a ``with`` block, on any device."""
    global _tried  # noqa: PLW0603
    previous, _tried = _tried, answers
    try:
        yield
    finally:
        _tried = previous


@contextmanager
def record() -> Iterator[list[Question]]:
    """Collect what is asked inside a ``with`` block."""
    global _noted  # noqa: PLW0603
    previous, _noted = _noted, []
    try:
        yield _noted
    finally:
        _noted = previous
