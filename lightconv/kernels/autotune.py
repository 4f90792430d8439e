"""Measurable decisions: lightconv's kernel or torch, and the tile of a kernel.

A decision is a question with a key and options. The key holds everything the decision depends on. The first option is
the choice of the rules and tables. ``lightconv tune`` measures the options on a GPU and stores the fastest as the
answer for GPUs of the same name. A stored answer is ignored if it is no longer among the options.

Stored answers are not used in two cases:

- Under torch.use_deterministic_algorithms: results must be the same on every machine, and a measurement is not.
- While torch.compile traces: it fuses a layer with its surroundings and chooses by itself. Tiles are still looked up
  when lightconv's operators run.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

Key = tuple[Any, ...]  # strings, numbers, None, and tuples of them
Answers = Mapping[Key, Any]
Source = Callable[[str], Answers]  # a GPU's name -> its stored answers
Option = TypeVar("Option")

NO_ANSWERS: Answers = {}


class Question(NamedTuple):
    """A decision and its outcome.

    Attributes:
        key: everything the decision depends on.
        options: possible outcomes; the first is the rule's.
        answer: option in use.
    """

    key: Key
    options: tuple[Any, ...]
    answer: Any


def _no_source(gpu: str) -> Answers:
    return NO_ANSWERS


@dataclass
class _State:
    """Settings of the whole process, like torch.backends: backward passes run in threads of their own."""

    source: Source = _no_source
    override: Answers | None = None  # replaces the source's answers
    record: list[Question] | None = None


_state = _State()


def is_enabled(like: Tensor) -> bool:
    """Return True if there may be an answer for a call on this tensor.

    Callers ask this first, because it is cheaper than building a key.
    """
    if torch.compiler.is_compiling():
        return False
    if _state.override is not None:
        return True
    if not like.is_cuda or torch.are_deterministic_algorithms_enabled():
        return False
    return bool(_gpu_answers(like.device.index))


def select(like: Tensor, key: Key, options: tuple[Option, ...]) -> Option:
    """Return the option measured to be the fastest, or the first one if none was measured.

    Args:
        like: tensor on the device of the call.
        key: everything the decision depends on.
        options: possible outcomes; the first is the rule's.
    """
    answer = answers_for(like).get(key)
    selected = options[0]
    # take our own option, not the equal answer: answers come from a file as plain tuples
    for option in options:
        if option == answer:
            selected = option
            break
    if _state.record is not None:
        _state.record.append(Question(key, options, selected))
    return selected


def answers_for(like: Tensor) -> Answers:
    """Return the answers in use on the device of a tensor."""
    if _state.override is not None:
        return _state.override
    if is_enabled(like):
        return _gpu_answers(like.device.index)
    return NO_ANSWERS


def tensor_key(tensor: Tensor | None) -> Key | None:
    """Return a tensor's part of a key: dtype, sizes and strides. The stride of a side of length 1 counts as 0."""
    if tensor is None:
        return None
    strides = (stride if size > 1 else 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return str(tensor.dtype), tuple(tensor.shape), tuple(strides)


def set_source(source: Source) -> None:
    """Read stored answers by this function from now on, and forget those read before."""
    _state.source = source
    _gpu_answers.cache_clear()


@cache
def _gpu_answers(index: int) -> Answers:
    return _state.source(torch.cuda.get_device_name(index))


@contextmanager
def override(answers: Answers) -> Iterator[None]:
    """Use these answers, and no others, on every device inside a ``with`` block."""
    previous = _state.override
    _state.override = answers
    try:
        yield
    finally:
        _state.override = previous


@contextmanager
def record() -> Iterator[list[Question]]:
    """Collect the questions asked inside a ``with`` block."""
    previous = _state.record
    questions: list[Question] = []
    _state.record = questions
    try:
        yield questions
    finally:
        _state.record = previous
