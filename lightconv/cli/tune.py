"""lightconv tune: measure on this GPU the fastest kernels and tiles for a network's layers; "auto" then uses them."""

from typing import Any

import torch
from omegaconf import DictConfig
from rich.progress import track

from lightconv.analysis.layers import group_equal_layers, network_layers
from lightconv.autotune import search
from lightconv.cli import tables
from lightconv.cli.settings import as_list, check_integer, tensor_format
from lightconv.operators import autotune_file

_NOTE = """\
rule: with the choices of lightconv's rules and tables; measured: with the fastest choices. torch is measured with
torch.backends.cudnn.benchmark = True. "auto" does not set it: set it in your program, too
"""


def tune(config: DictConfig) -> None:
    """Measure layers, store the fastest choices, and print times and choices.

    Args:
        config: settings of conf/tune.yaml.

    Raises:
        InputError: If a setting is invalid, or there is no GPU for kernels.
    """
    options = tensor_format(config)
    check_integer(config, "batch_size")
    check_integer(config, "rounds")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = search.gpu_name(device)
    file = autotune_file.path(gpu)
    results: list[search.Result] = []
    for network in as_list(config.layers):
        groups = group_equal_layers(network_layers(network, config.batch_size, **options))
        for layers in track(groups, f"measuring {network}", console=tables.console):
            results += search.tune_layer(layers[0], device, file, config.rounds)
    _show(f"{gpu}, {config.batch_size} images, {config.dtype}", results)
    print(f"stored in {file}")


def _show(title: str, results: list[search.Result]) -> None:
    rows: list[dict[str, Any]] = []
    changes: list[tuple[str, ...]] = []
    for result in results:
        row = {
            "layer": f"{result.layer}\n{result.sizes}",
            "pass": result.step,
            "rule": result.rule,
            "measured": result.measured,
            "gain": result.rule / result.measured,
        }
        rows.append(row)
        changes += [(f"{result.layer}, {result.step}", change) for change in result.changes]
    tables.show_rows(f"{title}, milliseconds", rows, dense=True)
    print(_NOTE)
    tables.show_facts("Changes to the rules' choices", changes or [("none",)])
