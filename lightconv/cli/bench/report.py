"""Results of a comparison: tables with titles, written to the terminal and to Markdown; and a clock."""

import importlib
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig

from lightconv.cli import tables


class Report(NamedTuple):
    """Results of a comparison.

    Attributes:
        tables: rows of each table, keyed by title; a title has the contenders, the circumstances and the unit.
        note: explanation of the figures.
        figure: picture of the figures.
    """

    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    note: str = ""
    figure: Figure | None = None

    def show(self) -> None:
        """Print tables and note."""
        for title, rows in self.tables.items():
            tables.show_rows(title, rows)
        if self.note:
            tables.console.print(self.note, highlight=False)

    def write(self, path: Path) -> None:
        """Write tables and note as Markdown, and the picture as a PNG file beside it.

        Args:
            path: Markdown file; its directory is created.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = [f"{title}\n\n{tables.markdown(rows)}" for title, rows in self.tables.items()]
        if self.note:
            parts.append(f"{self.note}\n")
        if self.figure is not None:
            picture = path.with_suffix(".png")
            self.figure.savefig(picture, dpi=110)
            parts.append(f"![the same as a picture]({picture.name})\n")
        path.write_text("\n".join(parts))


def clock() -> float:
    """Return the time in seconds, after the accelerator has finished its work."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def circumstances(config: DictConfig, device: torch.device, *packages: str) -> str:
    """Describe what a time depends on: device, versions, dtype, memory format and number of rounds.

    Args:
        config: dtype, memory format and rounds.
        device: device that is measured.
        packages: modules with a ``__version__``.
    """
    versions = [f"{name} {importlib.import_module(name).__version__}" for name in packages]
    repetitions = f"median of {_count(config.rounds, 'round')}"
    name = device.type
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        name = f"{_cpu_name()}, {_count(torch.get_num_threads(), 'thread')}"
    return ", ".join([name, *versions, config.dtype, memory_format(config), repetitions])


def memory_format(config: DictConfig) -> str:
    """Return the name of the memory format."""
    return "channels_last" if config.channels_last else "contiguous"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number > 1 else ''}"


def _cpu_name() -> str:
    # platform.processor() is often empty on Linux
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
