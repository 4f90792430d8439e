"""What a layer is asked to do, once or again and again against the clock."""

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


def forward(module: Module, images: Tensor, cotangent: Tensor) -> list[Tensor]:
    """The result, without gradients."""
    with torch.no_grad():
        return [module(images)]


def forward_and_backward(module: Module, images: Tensor, cotangent: Tensor) -> list[Tensor]:
    """The result and all gradients."""
    output = module(images)
    wanted = [t for t in (images, *module.parameters()) if t.requires_grad]
    return [output.detach(), *torch.autograd.grad(output, wanted, cotangent)]


Run = Callable[[Module, Tensor, Tensor], list[Tensor]]
PASSES: dict[str, Run] = {"forward": forward, "forward+backward": forward_and_backward}


def by_torch_in_float64(run: Run, module: Module, images: Tensor, cotangent: Tensor) -> list[Tensor]:
    """What a pass of the same layer gives where nothing is rounded but the numbers that it starts from."""
    exact = images.detach().double().requires_grad_(images.requires_grad)
    with use_backend("reference"):
        return run(copy.deepcopy(module).double(), exact, cotangent.double())


def integers(like: Tensor) -> Tensor:
    """Small ones, of which every dtype holds the sums exactly: results can be compared to the last bit."""
    return torch.randint_like(like, -3, 4)


def in_turns(contenders: Mapping[Name, Callable[[], float]], rounds: int) -> dict[Name, list[float]]:
    """What each contender measures in each round: a clock that drifts slows all of them."""
    samples: dict[Name, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            samples[name].append(measure())
    return samples


def medians(contenders: Mapping[Name, Callable[[], float]], rounds: int) -> dict[Name, float]:
    """The median of what each contender measures, taken in turns."""
    return {name: statistics.median(values) for name, values in in_turns(contenders, rounds).items()}


@contextmanager
def cudnn_at_its_best() -> Iterator[None]:
    """Let cuDNN measure its own algorithms, as torch.backends.cudnn.benchmark has it, inside a ``with`` block."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def milliseconds(step: Callable[[], Any]) -> float:
    """The median time of a step on any machine, with as many threads as torch takes."""
    timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())  # by itself it takes one
    return 1e3 * timer.blocked_autorange().median


def milliseconds_on_gpu(step: Callable[[], Any]) -> float:
    """The median time of a step on the GPU, its caches cleared before each."""
    from triton.testing import do_bench  # noqa: PLC0415  not installed everywhere

    return do_bench(step, return_mode="median")
