"""lightconv bench: how lightconv compares with torch, counted in bytes or measured in time; a file each."""

import importlib
from pathlib import Path

from omegaconf import DictConfig

from lightconv.cli.bench.report import Report
from lightconv.errors import InputError

# each is a file here with a function of that name, and the Markdown file that output=auto writes
WHAT = {"traffic": None, "kernels": "bench_kernels.md", "blocks": None, "pipeline": None}
_LEAST = {"rounds": 1, "batch_size": 1, "images": 1, "num_workers": 0}
_DTYPES = ("float32", "float16", "bfloat16")


def bench(config: DictConfig) -> None:
    """Print, and where asked to write down, how lightconv compares with torch.

    Raises:
        InputError: for unknown settings, or a measurement without the GPU that it needs.
    """
    for name, known in {"what": WHAT, "dtype": _DTYPES}.items():
        if config[name] not in known:
            raise InputError(f"{name}={config[name]}: choose one of {', '.join(known)}")
    for name, least in _LEAST.items():
        if not _is_whole(config[name], least) and (name, config[name]) != ("images", None):
            raise InputError(f"{name}={config[name]}: give a whole number, at least {least}")
    output = _output(config)
    # the others' libraries take seconds to import
    measure = getattr(importlib.import_module(f"{__name__}.{config.what}"), config.what)
    report: Report = measure(config)
    report.show()
    if output is not None:
        report.write(output)


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _output(config: DictConfig) -> Path | None:
    chosen = WHAT[config.what] if config.output == "auto" else config.output
    if chosen in (None, "none"):
        return None
    path = Path(str(chosen))
    if path.suffix != ".md":
        raise InputError(f"output={chosen}: name a Markdown file, FILE.md, or give null to write none")
    return path
