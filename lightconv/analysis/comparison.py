"""What a change did to kernels: two inspections of the same layers, figure by figure."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

Report = Mapping[str, Any]  # a KernelReport as a dictionary, as JSON has it

_NOISE = 0.01  # of a figure: smaller changes are the compiler's moods


class Change(NamedTuple):
    """A figure that is not what it was.

    Attributes:
        kernel: its layer, operator and algorithm.
        figure: name of a figure of `KernelReport`, or "kernel" where there was or is none.
        before: value.
        after: value.
        verdict: "worse", "better", or "" where more is neither.
    """

    kernel: str
    figure: str
    before: Any
    after: Any
    verdict: str


def _narrowest(accesses: str) -> int:
    """Bits of the narrowest load or store; tensor memory access has none."""
    return min((int(bits) for bits in accesses.split() if bits.isdigit()), default=128)


def _dragged(report: Report) -> float:
    return report["others"] / report["matrix"] if report["matrix"] else math.inf


# a number of each figure, of which more is worse
_MORE_IS_WORSE: dict[str, Callable[[Report], float]] = {
    "spilled": lambda report: report["spilled"],
    "blocks": lambda report: -report["blocks"],
    "loads": lambda report: -_narrowest(report["loads"]),
    "stores": lambda report: -_narrowest(report["stores"]),
    "tensor memory access": lambda report: report["loads"] != "TMA",
    "matrix": lambda report: report["matrix"] == 0,
    "dragged": _dragged,
    "divisions": lambda report: report["divisions"],
    "seconds": lambda report: report["seconds"] or 0.0,
}
_NEITHER = ("tile", "registers", "shared", "outside", "code_bytes")


def changes(before: Iterable[Report], after: Iterable[Report]) -> list[Change]:
    """What differs between the kernels of two inspections, those that got worse first."""
    old, new = _by_kernel(before), _by_kernel(after)
    found = [Change(name, "kernel", "there", "gone", "") for name in old if name not in new]
    found += [Change(name, "kernel", "none", "new", "") for name in new if name not in old]
    for name in (name for name in old if name in new):
        found += _of_kernel(name, old[name], new[name])
    return sorted(found, key=lambda change: ("worse", "better", "").index(change.verdict))


def _by_kernel(reports: Iterable[Report]) -> dict[str, Report]:
    names = ("network", "architecture", "gpu", "layer", "operator", "kernel")  # the same layer may be on several GPUs
    return {" ".join(report[name] for name in names if report.get(name)): report for report in reports}


def _of_kernel(name: str, old: Report, new: Report) -> list[Change]:
    found = []
    for figure, badness in _MORE_IS_WORSE.items():
        if figure in new and figure not in old:  # written before lightconv had this figure
            continue
        before, after = badness(old), badness(new)
        if abs(after - before) > _NOISE * min(abs(before), abs(after)):
            was, is_ = (report.get(figure, badness(report)) for report in (old, new))
            found.append(Change(name, figure, was, is_, "worse" if after > before else "better"))
    return found + [Change(name, f, old[f], new[f], "") for f in _NEITHER if old[f] != new[f]]
