"""lightconv bench: how lightconv compares with torch, counted in bytes or measured in time; a file each."""

import importlib
from pathlib import Path

from omegaconf import DictConfig

from lightconv.cli.bench.report import Report
from lightconv.cli.settings import DTYPES, check_choice, check_integer
from lightconv.errors import InputError

# each is a file here with a function of that name, and the Markdown file that output=auto writes
WHAT = {
    "traffic": None,
    "kernels": "bench_kernels.md",
    "blocks": None,
    "fused": None,
    "pipeline": None,
    "features": None,
}
_LEAST = {"rounds": 1, "batch_size": 1, "images": 1, "num_workers": 0}


def bench(config: DictConfig) -> None:
    """Print, and where asked to write down, how lightconv compares with torch.

    Raises:
        InputError: for unknown settings, or a measurement without the GPU that it needs.
    """
    check_choice(config, "what", WHAT)
    check_choice(config, "dtype", DTYPES)
    for name, least in _LEAST.items():
        if (name, config[name]) != ("images", None):
            check_integer(config, name, least)
    output = _output(config)
    # the others' libraries take seconds to import
    measure = getattr(importlib.import_module(f"{__name__}.{config.what}"), config.what)
    report: Report = measure(config)
    report.show()
    if output is not None:
        report.write(output)


def _output(config: DictConfig) -> Path | None:
    chosen = WHAT[config.what] if config.output == "auto" else config.output
    if chosen in (None, "none"):
        return None
    path = Path(str(chosen))
    if path.suffix != ".md":
        raise InputError(f"output={chosen}: name a Markdown file, FILE.md, or give null to write none")
    return path
