"""Measure on a GPU who serves the layers of a network fastest, and by which tiles.

A step of a layer is run, and the choices that it makes are taken one after the other: each option is tried, with what
only it leads to at its best, and the fastest is kept, unless it gains less on the rule's than `_MARGIN`: noise.
Contenders take turns, and none runs against the clock whose kernels do not compute what torch computes in float64.

Torch is measured at its best, with torch.backends.cudnn.benchmark. All numbers are small integers.
"""

import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from lightconv.analysis.layers import Layer, found
from lightconv.autotune.timing import (
    PASSES,
    Run,
    by_torch_in_float64,
    cudnn_at_its_best,
    integers,
    medians,
    milliseconds_on_gpu,
)
from lightconv.errors import InputError
from lightconv.kernels import autotune
from lightconv.operators import autotune_file, backend
from lightconv.operators.meta import on_meta

if backend.TRITON:
    from triton import TritonError

    from lightconv.kernels import launch

    _FAILURES = (RuntimeError, TritonError)  # a tile may want more than a GPU has

_MARGIN = 0.02

Step = Callable[[], list[Tensor]]
Clock = Callable[[Step], float]
Name = TypeVar("Name")


class Result(NamedTuple):
    """What was found for one pass of a layer.

    Attributes:
        layer: its name in the network.
        sizes: of the image and the filters.
        step: "forward" or "forward+backward".
        rule: milliseconds as the rules have it; NaN where that does not run.
        tuned: milliseconds as found to be the fastest.
        changes: what is chosen in place of the rule's.
    """

    layer: str
    sizes: str
    step: str
    rule: float
    tuned: float
    changes: tuple[str, ...]


def tune(model: nn.Module, images: Tensor, rounds: int = 5) -> list[Result]:
    """Measure the layers of a model on the GPU that holds a batch of images, and keep what is fastest for "auto".

    What is known already is not measured again, and what was found stays found if the process is stopped.

    Args:
        model: any module whose convolutions are ``torch.nn``'s or ``lightconv.nn``'s.
        images: a batch of the size, dtype (autocast's, under autocast) and memory format of later ones.
        rounds: in which contenders take turns.

    Returns:
        For each distinct layer its forward pass, and its forward and backward pass.

    Raises:
        InputError: without a GPU for kernels.
    """
    gpu = gpu_of(images.device)
    layers = distinct(found(copy.deepcopy(model).to("meta", images.dtype), on_meta(images)))
    return [result for layer in layers for result in tune_layer(layer, images.device, autotune_file.path(gpu), rounds)]


def gpu_of(device: torch.device) -> str:
    """The name of a GPU that has kernels.

    Raises:
        InputError: for another device, with the reason.
    """
    interpreted = backend.TRITON and launch.INTERPRETED
    reason = backend.tensor_unsupported_reason(torch.empty(1, device=device))
    if interpreted:
        reason = "TRITON_INTERPRET is set"
    if device.type != "cuda" or reason is not None:
        raise InputError(
            f"tune measures kernels on a GPU, and none can be measured here: {reason}. Without it the rules choose "
            "(lightconv.explain shows what), and lightconv inspect predicts times for a GPU that is not here"
        )
    return torch.cuda.get_device_name(device)


def distinct(layers: Iterable[Layer]) -> list[Layer]:
    """The first of all layers that are called alike."""
    return list({f"{layer} {layer.images.requires_grad}": layer for layer in reversed(list(layers))}.values())[::-1]


def tune_layer(
    layer: Layer, device: torch.device, file: Path, rounds: int, clock: Clock = milliseconds_on_gpu
) -> Iterator[Result]:
    """Find the fastest choices for a layer's passes, keep them in a file, and compare them with the rules'."""
    with cudnn_at_its_best(), backend.use_backend("auto"):
        for name, run in PASSES.items():
            with autotune_file.locked(file):  # all of it: who shares the GPU would measure what happens here
                contest = Contest(layer, device, run, rounds, clock)
                known = autotune_file.read(file)
                answers = contest.decide(known)
                if answers != known:
                    autotune_file.write(file, answers)
                times = contest.times({"rule": autotune.NO_ANSWERS, "tuned": answers})
            changes = tuple(_in_words(asked) for asked in contest.asked(answers) if asked.answer != asked.options[0])
            yield Result(layer.name, layer.sizes, name, times.get("rule", math.nan), times["tuned"], changes)


class Contest:
    """Contenders for a pass of a layer, which differ in their answers.

    Args:
        layer: without numbers.
        device: on which it runs.
        run: one of `PASSES`.
        rounds: in which contenders take turns.
        clock: milliseconds of a step.
    """

    def __init__(self, layer: Layer, device: torch.device, run: Run, rounds: int, clock: Clock) -> None:
        self.rounds, self.clock = rounds, clock
        module = copy.deepcopy(layer.module).to_empty(device=device)
        images = torch.empty_like(layer.images, device=device, requires_grad=layer.images.requires_grad)
        with torch.no_grad(), backend.use_backend("reference"):
            for tensor in (images, *module.parameters()):
                tensor.copy_(integers(tensor))
            cotangent = integers(module(images))
        self._expected = by_torch_in_float64(run, module, images, cotangent)
        self._step = partial(run, module, images, cotangent)

    def decide(self, answers: autotune.Answers) -> autotune.Answers:
        """These answers, and those to all other questions that the step then asks."""
        question = next((q for q in self.asked(answers) if q.key not in answers and len(q.options) > 1), None)
        if question is None:
            return answers
        contenders: list[autotune.Answers] = [{**answers, question.key: option} for option in question.options]
        if isinstance(question.answer, bool):  # who serves: each at its best
            contenders = list(map(self.decide, contenders))
        times = self.times(dict(enumerate(contenders)))
        if not times and isinstance(question.answer, bool):
            raise RuntimeError("neither torch nor lightconv runs this layer here")
        first, best = next(iter(times), 0), min(times, key=times.__getitem__, default=0)
        gains = bool(times) and times[best] < (1 - _MARGIN) * times[first]
        return self.decide(contenders[best if gains else first])

    def asked(self, answers: autotune.Answers) -> list[autotune.Question]:
        """What the step asks, given these answers."""
        with autotune.override(answers), autotune.record() as asked, contextlib.suppress(*_FAILURES):
            self._step()
        return asked

    def times(self, contenders: Mapping[Name, autotune.Answers]) -> dict[Name, float]:
        """Milliseconds of those contenders that run, and run right."""
        working = {name: partial(self._time, answers) for name, answers in contenders.items() if self._works(answers)}
        return medians(working, self.rounds)

    def _time(self, answers: autotune.Answers) -> float:
        with autotune.override(answers):
            return self.clock(self._step)

    def _works(self, answers: autotune.Answers) -> bool:
        try:
            with autotune.override(answers), autotune.record() as asked:
                actual = self._step()
            if any(a.answer is not False for a in asked):  # torch alone is right by definition
                for a, e in zip(actual, self._expected, strict=True):
                    torch.testing.assert_close(a.double(), e, rtol=2 * torch.finfo(a.dtype).eps, atol=0.5)
        except (*_FAILURES, AssertionError) as error:
            tried = ", ".join(map(_in_words, asked))
            warnings.warn(f"left out, as it does not work on this GPU: {tried} ({error})", stacklevel=2)
            return False
        return True


def _in_words(asked: autotune.Question) -> str:
    what = asked.key[0] if isinstance(asked.answer, bool) else " ".join(asked.key[:2])
    return f"{what}: {_option(asked.answer)} (rule: {_option(asked.options[0])})"


def _option(option: Any) -> str:
    if isinstance(option, bool):
        return "lightconv" if option else "torch"
    loader = getattr(option, "loader", None)
    return str(getattr(option, "tile", option)) + (f", {loader}" if loader else "")
