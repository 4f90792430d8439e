"""Find the fastest kernel and tile for each layer of a network by measuring them on a GPU.

A step of a layer asks questions (`lightconv.kernels.autotune`). The search answers them one after the other:

1. Try each option. If the question is lightconv or torch, first answer the questions that follow from each option.
2. Measure the options in turns: a drifting clock then slows all of them.
3. Keep the fastest. Keep the rule's option if the gain is below `_MARGIN`, because less may be noise.

An option is measured only if its results equal torch's in float64. All inputs are small integers, so sums are exact.
Torch is measured with torch.backends.cudnn.benchmark.
"""

import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from lightconv.analysis.layers import Layer, find_layers, group_equal_layers
from lightconv.autotune.timing import (
    PASSES,
    Run,
    by_torch_in_float64,
    cudnn_benchmark,
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

    _FAILURES = (RuntimeError, TritonError)  # a tile may need more shared memory or registers than the GPU has

_MARGIN = 0.02

Step = Callable[[], list[Tensor]]
Clock = Callable[[Step], float]  # milliseconds of a step
Name = TypeVar("Name")


class Result(NamedTuple):
    """Measured times of one pass of a layer.

    Attributes:
        layer: name in the network.
        sizes: sizes of the image and the filters.
        step: "forward" or "forward+backward".
        rule: milliseconds with the rules' choices; NaN if they do not run on this GPU.
        measured: milliseconds with the fastest choices.
        changes: choices other than the rules'.
    """

    layer: str
    sizes: str
    step: str
    rule: float
    measured: float
    changes: tuple[str, ...]

    @property
    def tuned(self) -> float:
        """Former name of `measured`."""
        warnings.warn("Result.tuned is deprecated: use Result.measured", DeprecationWarning, stacklevel=2)
        return self.measured


def tune(model: nn.Module, images: Tensor, rounds: int = 5) -> list[Result]:
    """Measure a model's layers on the GPU of a batch of images, and store the fastest choices for backend "auto".

    Stored choices are not measured again. Each pass is stored when it is done, so that a stopped process loses little.

    Args:
        model: any module with convolutions of ``torch.nn`` or ``lightconv.nn``.
        images: batch with the size, dtype (autocast's, under autocast) and memory format of later batches.
        rounds: measurements per choice; the median counts.

    Returns:
        Two results per distinct layer: the forward pass, and the forward and backward pass.

    Raises:
        InputError: If the images are not on a GPU that has kernels.

    Shape:
        - images: (n, c, h, w)

    Example:
        >>> import torch, lightconv as lc
        >>> model, images = lc.models.LeNet(), torch.rand(256, 1, 28, 28)
        >>> for result in lc.tune(model, images.cuda()):  # doctest: +SKIP
        ...     print(result.layer, result.step, result.rule, result.measured)
    """
    file = autotune_file.path(gpu_name(images.device))
    layers = find_layers(copy.deepcopy(model).to("meta", images.dtype), on_meta(images))
    results: list[Result] = []
    for equal_layers in group_equal_layers(layers):
        results += tune_layer(equal_layers[0], images.device, file, rounds)
    return results


def gpu_name(device: torch.device) -> str:
    """Return a GPU's name after a check for kernels.

    Raises:
        InputError: If no kernel can be measured on the device. The message has the reason.
    """
    reason = backend.tensor_unsupported_reason(torch.empty(1, device=device))
    if backend.TRITON and launch.INTERPRETED:
        reason = "TRITON_INTERPRET is set"
    if device.type != "cuda" or reason is not None:
        raise InputError(
            f"tune measures kernels on a GPU, and cannot measure them here: {reason}. Without measurements the rules "
            "choose kernels (lightconv.explain shows which), and lightconv inspect predicts times for other GPUs"
        )
    return torch.cuda.get_device_name(device)


def tune_layer(
    layer: Layer,
    device: torch.device,
    file: Path,
    rounds: int,
    clock: Clock = milliseconds_on_gpu,
) -> Iterator[Result]:
    """Find the fastest choices for a layer's passes, store them, and compare them with the rules'.

    Args:
        layer: layer without parameter values.
        device: device that runs the layer.
        file: file of stored answers; new ones are added.
        rounds: measurements per choice.
        clock: function that measures a step.

    Yields:
        One result per pass, after its answers are stored.
    """
    with cudnn_benchmark(), backend.use_backend("auto"):
        for name, run in PASSES.items():
            # the lock covers the measurements, too: a process on the same GPU would disturb them
            with autotune_file.locked(file):
                contest = Contest(layer, device, run, rounds, clock)
                stored = autotune_file.read(file)
                answers = contest.decide(stored)
                if answers != stored:
                    autotune_file.write(file, answers)
                times = contest.times({"rule": autotune.NO_ANSWERS, "measured": answers})
            yield Result(
                layer=layer.name,
                sizes=layer.sizes,
                step=name,
                rule=times.get("rule", math.nan),
                measured=times["measured"],
                changes=contest.changes(answers),
            )


class Contest:
    """A pass of a layer, measured with different answers.

    Args:
        layer: layer without parameter values.
        device: device that runs the layer.
        run: pass, one of `PASSES`.
        rounds: measurements per contender.
        clock: function that measures a step.
    """

    def __init__(self, layer: Layer, device: torch.device, run: Run, rounds: int, clock: Clock) -> None:
        self.rounds = rounds
        self.clock = clock
        module = copy.deepcopy(layer.module).to_empty(device=device)
        images = torch.empty_like(layer.images, device=device, requires_grad=layer.images.requires_grad)
        with torch.no_grad(), backend.use_backend("reference"):
            for tensor in (images, *module.parameters()):
                tensor.copy_(integers(tensor))
            grad_output = integers(module(images))
        self._expected = by_torch_in_float64(run, module, images, grad_output)
        self._step = partial(run, module, images, grad_output)

    def decide(self, answers: autotune.Answers) -> autotune.Answers:
        """Add the fastest answer to each open question of the step.

        Args:
            answers: known answers, not measured again.

        Returns:
            The given answers and the new ones.

        Raises:
            RuntimeError: If neither torch nor lightconv runs the layer.
        """
        open_questions = [q for q in self.questions(answers) if q.key not in answers and len(q.options) > 1]
        if not open_questions:
            return answers
        question = open_questions[0]
        contenders: list[autotune.Answers] = [{**answers, question.key: option} for option in question.options]
        chooses_kernel = isinstance(question.answer, bool)
        if chooses_kernel:
            # torch and lightconv are compared at their best, so each gets its tiles first
            contenders = list(map(self.decide, contenders))
        times = self.times(dict(enumerate(contenders)))
        if not times and chooses_kernel:
            raise RuntimeError("neither torch nor lightconv runs this layer here")
        # the rule's option is the first, if it runs
        winner = next(iter(times), 0)
        fastest = min(times, key=times.__getitem__, default=winner)
        if times and times[fastest] < (1 - _MARGIN) * times[winner]:
            winner = fastest
        return self.decide(contenders[winner])

    def questions(self, answers: autotune.Answers) -> list[autotune.Question]:
        """Return the step's questions under these answers."""
        # a step that fails has asked its first questions, and the search goes on with those
        with autotune.override(answers), autotune.record() as questions, contextlib.suppress(*_FAILURES):
            self._step()
        return questions

    def changes(self, answers: autotune.Answers) -> tuple[str, ...]:
        """Describe the choices other than the rules'."""
        changed = [question for question in self.questions(answers) if question.answer != question.options[0]]
        return tuple(map(_in_words, changed))

    def times(self, contenders: Mapping[Name, autotune.Answers]) -> dict[Name, float]:
        """Measure the milliseconds of all contenders with correct results; leave out the others with a warning.

        Args:
            contenders: answers to measure, keyed by name.
        """
        measurements = {}
        for name, answers in contenders.items():
            if self._is_correct(answers):
                measurements[name] = partial(self._time, answers)
        return medians(measurements, self.rounds)

    def _time(self, answers: autotune.Answers) -> float:
        with autotune.override(answers):
            return self.clock(self._step)

    def _is_correct(self, answers: autotune.Answers) -> bool:
        try:
            with autotune.override(answers), autotune.record() as questions:
                results = self._step()
            # torch alone is the reference
            if any(question.answer is not False for question in questions):
                for actual, expected in zip(results, self._expected, strict=True):
                    # sums are integers: a wrong one is off by 1 or more, a large one is rounded to the result's dtype
                    rounding = 2 * torch.finfo(actual.dtype).eps
                    torch.testing.assert_close(actual.double(), expected, rtol=rounding, atol=0.5)
        except (*_FAILURES, AssertionError) as error:
            choices = ", ".join(map(_in_words, questions))
            warnings.warn(f"skipped, because it does not work on this GPU: {choices} ({error})", stacklevel=2)
            return False
        return True


def _in_words(question: autotune.Question) -> str:
    is_kernel = isinstance(question.answer, bool)
    subject = question.key[0] if is_kernel else " ".join(question.key[:2])  # operator, or algorithm and its pass
    return f"{subject}: {_option(question.answer)} (rule: {_option(question.options[0])})"


def _option(option: Any) -> str:
    if isinstance(option, bool):
        return "lightconv" if option else "torch"
    # a tile, or a plan that has one and perhaps a loader
    tile = getattr(option, "tile", option)
    loader = getattr(option, "loader", None)
    return f"{tile}, {loader}" if loader else str(tile)
