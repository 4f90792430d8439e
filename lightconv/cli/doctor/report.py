"""Report of lightconv doctor, as tables for people or as JSON.

The field names of all classes are the keys of ``lightconv doctor json=true``: bug reports and programs rely on them.
"""

import itertools
import json
from dataclasses import asdict, dataclass

from lightconv.cli import tables
from lightconv.cli.installation import Extra

Facts = dict[str, str | bool | None]


@dataclass(frozen=True)
class Gpu:
    """A GPU usable by torch.

    Attributes:
        device: torch's name of the device, such as "cuda:0".
        name: product name.
        capability: compute capability, such as "9.0".
        memory: memory in GiB.
        architecture: compiler's name of the architecture, such as "sm_90"; None without Triton.
        tiles: architecture of the tile tables in use; None if no kernel serves this GPU.
        refusal: reason why no kernel serves this GPU; None if kernels do.
        tuned: number of choices measured by ``lightconv tune`` on a GPU of this name.
    """

    device: str
    name: str
    capability: str
    memory: float
    architecture: str | None
    tiles: str | None
    refusal: str | None
    tuned: int = 0


@dataclass(frozen=True)
class Served:
    """Dispatch of one operator's call on one device.

    Attributes:
        device: name of the GPU, or "the CPU".
        operator: operator in words.
        by: "lightconv" or "torch".
        reason: reason of the dispatch.
    """

    device: str
    operator: str
    by: str
    reason: str


@dataclass(frozen=True)
class DataSet:
    """A data set of conf/data.

    Attributes:
        name: name of its configuration.
        folder: folder of its files; None if it needs none.
        found: True if its files can be read.
        state: number of images per split, or the first error.
    """

    name: str
    folder: str | None
    found: bool
    state: str


@dataclass(frozen=True)
class Problem:
    """A problem and its remedy.

    Attributes:
        what: problem in a sentence.
        advice: remedy in a sentence.
        fatal: True if lightconv cannot work before the problem is solved.
    """

    what: str
    advice: str
    fatal: bool = False


@dataclass(frozen=True)
class Report:
    """Everything found by ``lightconv doctor``.

    Attributes:
        installed: versions of packages, Python and platform.
        driver: version of NVIDIA's driver; None if it does not run.
        gpus: GPUs usable by torch.
        triton: state of Triton and of the tools it needs.
        settings: settings that decide about dispatch and precision.
        served: dispatch of LeNet's first layer per kind of device.
        data: data sets of conf/data.
        extras: optional parts of the installation.
        problems: problems found.
    """

    installed: Facts
    driver: str | None
    gpus: list[Gpu]
    triton: Facts
    settings: Facts
    served: list[Served]
    data: list[DataSet]
    extras: list[Extra]
    problems: list[Problem]

    def print_json(self) -> None:
        """Print the report as JSON."""
        print(json.dumps(asdict(self), indent=2))

    def print_tables(self) -> None:
        """Print the report as tables."""
        tables.show_facts("Installed", _fact_rows(self.installed))
        tables.show_facts("GPUs", gpu_rows(self))
        tables.show_facts("Triton", _fact_rows(self.triton))
        tables.show_facts("Settings", _fact_rows(self.settings))
        # one table per device
        for device, calls in itertools.groupby(self.served, key=lambda call: call.device):
            rows = [(call.operator, call.by, call.reason) for call in calls]
            tables.show_facts(f"Who serves LeNet's first layer on {device} (256 images, float32)", rows)
        tables.show_facts("Data", [(data.name, data.state) for data in self.data])
        tables.show_facts("Extras", list(map(extra_row, self.extras)))
        tables.show_facts("Problems", problem_rows(self.problems))


def _fact_rows(facts: Facts) -> list[tuple[str, str]]:
    words = {True: "yes", False: "no", None: "none"}
    return [(name, value if isinstance(value, str) else words[value]) for name, value in facts.items()]


def gpu_rows(report: Report) -> list[tuple[str, str]]:
    """Return the rows of the driver and of all GPUs."""
    rows = []
    if report.driver:
        rows.append(("NVIDIA driver", report.driver))
    if not report.gpus:
        rows.append(("none", "PyTorch's own operators serve everything"))
    for gpu in report.gpus:
        rows.append((gpu.device, f"{gpu.name}, capability {gpu.capability}, {gpu.memory:.0f} GiB"))
        rows.append((gpu.architecture or "", gpu.refusal or f"has kernels, with the tiles of {gpu.tiles}"))
        if gpu.refusal is None:
            rows.append(("", f"{gpu.tuned} choices measured by lightconv tune; rules decide all others"))
    return rows


def extra_row(extra: Extra) -> tuple[str, str]:
    """Return the row of an optional part of the installation."""
    if extra.unmet:
        return extra.name, f"no {', '.join(extra.unmet)}: {extra.command}"
    return extra.name, "installed"


def problem_rows(problems: list[Problem]) -> list[tuple[str]]:
    """Return two lines per problem: the problem and its remedy."""
    rows = []
    for problem in problems:
        rows += [(problem.what,), (f"-> {problem.advice}",)]
    return rows or [("No problems found",)]
