"""what=average: time of a step of the weights' moving average, all tensors at once and one by one."""

from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from lightconv.callbacks.weight_average import Tensors, update_average
from lightconv.cli.bench.report import Report, circumstances, clock
from lightconv.runs.build import build_task

_DECAY = 0.999
_STEPS = 20
_NOTE = "Both update torch's AveragedModel with all weights and statistics, in turns."


def average(config: DictConfig) -> Report:
    """Time steps of a network's moving average.

    Args:
        config: settings of conf/bench.yaml.
    """
    model = build_task(config).model
    contenders = {
        "all at once": AveragedModel(model, use_buffers=True, multi_avg_fn=update_at_once),
        "one by one": AveragedModel(model, use_buffers=True, avg_fn=update_one),
    }
    seconds: dict[str, list[float]] = {side: [] for side in contenders}
    # both sides in turns, so that a drifting clock slows both
    for _ in range(config.rounds):
        for side, averaged in contenders.items():
            averaged.update_parameters(model)
            start = clock()
            for _ in range(_STEPS):
                averaged.update_parameters(model)
            seconds[side].append((clock() - start) / _STEPS)
    rows = []
    for side in contenders:
        took = median(seconds[side])
        rows.append(
            {"weights": side, "milliseconds": 1e3 * took, "one by one / this": median(seconds["one by one"]) / took}
        )
    depends_on = circumstances(config, torch.empty(0).device, "torch")
    return Report({f"milliseconds of a step of the average, {type(model).__name__}: {depends_on}": rows}, _NOTE)


def update_at_once(averages: Tensors, weights: Tensors, steps: Any) -> None:
    """Update all tensors of a dtype, as WeightAverage does."""
    update_average(averages, weights, steps, decay=_DECAY)


def update_one(averaged: Tensor, current: Tensor, steps: Any) -> Tensor:
    """Return the average of one tensor after one more step."""
    if not averaged.is_floating_point():
        return current
    decay = ((1 + steps) / (10 + steps)).clamp(max=_DECAY)
    return averaged + (current - averaged) * (1 - decay)
