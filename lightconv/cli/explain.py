"""lightconv explain: who serves each layer of a network, and why."""

import textwrap

import torch
from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.table import Table
from rich.text import Text

from lightconv.cli import tables
from lightconv.cli.settings import check_integer, tensor_format
from lightconv.errors import InputError
from lightconv.operators.backend import use_backend
from lightconv.runs.build import instantiate
from lightconv.runs.model_settings import complete_model
from lightconv.surgery import Explanation
from lightconv.surgery import explain as explain_model


def explain(config: DictConfig) -> None:
    """Print a row per layer of the configured network: kernel, tile and reason.

    Raises:
        InputError: If a setting is out of range, or the architecture has no tiles.
    """
    if config.what is not None:
        raise InputError(
            f"what={config.what}: lightconv explain is about the layers of a network. Draw augmented training images "
            "with lightconv gallery"
        )
    config = complete_model(config)
    layout = tensor_format(config)
    check_integer(config, "batch_size")
    check_integer(config, "channels")
    if "weights" in config.model:
        # kernels are chosen by shapes, so nothing is downloaded
        config = OmegaConf.merge(config, {"model": {"weights": "none"}})  # type: ignore[assignment]
    model = instantiate(config.model)
    preprocessing = getattr(model, "preprocessing", None)
    if config.image_size is None and preprocessing is not None:
        side = preprocessing.image_size
    else:
        check_integer(config, "image_size")
        side = config.image_size
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.empty((config.batch_size, config.channels, side, side), device=device, **layout)
    with use_backend(config.backend):
        show(explain_model(model.to(**layout), images, architecture=config.architecture))


def show(explanation: Explanation) -> None:
    """Print the table. If the terminal is too narrow for its lines, number the reasons and list them below."""
    table = explanation.__rich__()
    unlimited = tables.console.options.update(max_width=10_000)
    if tables.console.measure(table, options=unlimited).maximum <= tables.console.width:
        tables.console.print(table)
        return
    # rich cuts words to fit a table; here only two columns wrap, and none of their words is longer than min_width
    narrow = Table(title=table.title, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    narrow.add_column("layer", no_wrap=True)
    narrow.add_column("type", no_wrap=True)
    narrow.add_column("served by", min_width=11)
    narrow.add_column("tile", min_width=10)
    narrow.add_column("why", no_wrap=True)
    reasons = list(dict.fromkeys(row.reason for row in explanation.rows))
    for row in explanation.rows:
        # a long name is broken at its dots
        parts = textwrap.wrap(row.name.replace(".", ". "), tables.console.width * 2 // 5)
        name = "\n".join(parts).replace(" ", "")
        number = reasons.index(row.reason) + 1
        narrow.add_row(name, row.layer, row.served_by, row.tile, f"({number})")
    tables.console.print(narrow)
    for number, reason in enumerate(reasons, 1):
        tables.console.print(Text(f"({number}) {reason}"))
