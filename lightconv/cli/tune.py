"""lightconv tune: measure on this GPU what "auto" is to choose for a network's layers."""

from typing import Any

import torch
from omegaconf import DictConfig
from rich.progress import track

from lightconv.analysis.layers import layers_of
from lightconv.autotune import search
from lightconv.cli import tables
from lightconv.cli.settings import check_whole, formatted, several
from lightconv.operators import autotune_file

_NOTE = """\
rule, tuned: by lightconv's rules and tables, and as found to be the fastest; torch is measured with
torch.backends.cudnn.benchmark = True, which "auto" does not set: set it in your program, too
"""


def tune(config: DictConfig) -> None:
    """Measure layers, keep what is fastest, and print it.

    Raises:
        InputError: for unknown settings, or without a GPU for kernels.
    """
    wanted = formatted(config)
    check_whole(config, "batch_size")
    check_whole(config, "rounds")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = search.gpu_of(device)
    file = autotune_file.path(gpu)
    results: list[search.Result] = []
    for network in several(config.layers):
        layers = search.distinct(layers_of(network, config.batch_size, **wanted))
        for layer in track(layers, f"measuring {network}", console=tables.console):
            results += search.tune_layer(layer, device, file, config.rounds)
    title = f"{gpu}, {config.batch_size} images, {config.dtype}"
    tables.show_rows(f"{title}, milliseconds", [_row(result) for result in results], dense=True)
    print(_NOTE)
    changes = [(f"{r.layer}, {r.step}", change) for r in results for change in r.changes]
    tables.show_facts("In place of the rules' choices", changes or [("nothing",)])
    print(f"kept in {file}")


def _row(result: search.Result) -> dict[str, Any]:
    return {
        "layer": f"{result.layer}\n{result.sizes}",
        "pass": result.step,
        "rule": result.rule,
        "tuned": result.tuned,
        "gain": result.rule / result.tuned,
    }
