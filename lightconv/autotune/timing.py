"""Passes of a layer to measure, and clocks to measure them with."""

import copy
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.benchmark import Timer

from lightconv.operators.backend import use_backend

Name = TypeVar("Name")
Run = Callable[[Module, Tensor, Tensor], list[Tensor]]  # module, images, gradient of the output -> results


def forward(module: Module, images: Tensor, grad_output: Tensor) -> list[Tensor]:
    """Return the output, computed without gradients."""
    with torch.no_grad():
        return [module(images)]


def forward_and_backward(module: Module, images: Tensor, grad_output: Tensor) -> list[Tensor]:
    """Return the output and all gradients."""
    output = module(images)
    leaves = [tensor for tensor in (images, *module.parameters()) if tensor.requires_grad]
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]


PASSES: dict[str, Run] = {"forward": forward, "forward+backward": forward_and_backward}


def by_torch_in_float64(run: Run, module: Module, images: Tensor, grad_output: Tensor) -> list[Tensor]:
    """Run a pass of the same layer by torch in float64: the expected results."""
    exact = images.detach().double().requires_grad_(images.requires_grad)
    with use_backend("reference"):
        return run(copy.deepcopy(module).double(), exact, grad_output.double())


def integers(like: Tensor) -> Tensor:
    """Draw integers from -3 to 3. Every dtype holds their sums exactly, so results can be compared to the last bit."""
    return torch.randint_like(like, -3, 4)


def sample_in_turns(contenders: Mapping[Name, Callable[[], float]], rounds: int) -> dict[Name, list[float]]:
    """Measure each contender once per round. A drifting clock then slows all of them.

    Args:
        contenders: functions that measure something once, keyed by name.
        rounds: measurements of each contender.

    Returns:
        Measurements of each contender, in the order of the rounds.
    """
    samples: dict[Name, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            samples[name].append(measure())
    return samples


def medians(contenders: Mapping[Name, Callable[[], float]], rounds: int) -> dict[Name, float]:
    """Return the median of each contender's measurements, see `sample_in_turns`."""
    samples = sample_in_turns(contenders, rounds)
    return {name: statistics.median(values) for name, values in samples.items()}


@contextmanager
def cudnn_benchmark() -> Iterator[None]:
    """Set torch.backends.cudnn.benchmark inside a ``with`` block: cuDNN then times its own algorithms."""
    previous = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = previous


def milliseconds(step: Callable[[], Any]) -> float:
    """Return the median time of a step on any machine, with torch's own number of threads."""
    # Timer's default is one thread
    timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
    return 1e3 * timer.blocked_autorange().median


def milliseconds_on_gpu(step: Callable[[], Any]) -> float:
    """Return the median time of a step on the GPU. The GPU's caches are cleared before each run."""
    from triton.testing import do_bench  # noqa: PLC0415  not installed everywhere

    return do_bench(step, return_mode="median")
