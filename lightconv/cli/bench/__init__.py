"""lightconv bench: compare lightconv with torch, in bytes or in time. Each comparison is a module of this package."""

import importlib
from pathlib import Path

from omegaconf import DictConfig

from lightconv.cli.bench.report import Report
from lightconv.cli.settings import DTYPES, check_choice, check_integer
from lightconv.errors import InputError

# name of a module here and of its function -> Markdown file of output=auto
WHAT = {
    "traffic": None,
    "kernels": "bench_kernels.md",
    "blocks": None,
    "fused": None,
    "pipeline": None,
    "features": None,
    "average": None,
}


def bench(config: DictConfig) -> None:
    """Print a comparison of lightconv with torch, and write it to a file if the configuration names one.

    Args:
        config: settings of conf/bench.yaml.

    Raises:
        InputError: If a setting is invalid, or the comparison needs a GPU and there is none.
    """
    check_choice(config, "what", WHAT)
    check_choice(config, "dtype", DTYPES)
    check_integer(config, "rounds")
    check_integer(config, "batch_size")
    check_integer(config, "num_workers", 0)
    if config.images is not None:
        check_integer(config, "images")
    # checked before anything is measured: measuring takes minutes
    output = _output(config)
    # imported here: the libraries of a comparison take seconds to load
    from lightconv.runs.model_settings import complete_model  # noqa: PLC0415

    module = importlib.import_module(f"{__name__}.{config.what}")
    report: Report = getattr(module, config.what)(complete_model(config))
    report.show()
    if output is not None:
        report.write(output)


def _output(config: DictConfig) -> Path | None:
    chosen = WHAT[config.what] if config.output == "auto" else config.output
    if chosen in (None, "none"):
        return None
    path = Path(str(chosen))
    if path.suffix != ".md":
        raise InputError(f"output={chosen}: give the name of a Markdown file, FILE.md, or null to write none")
    return path
