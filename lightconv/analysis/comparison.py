"""Changes of kernels between two inspections of the same layers, figure by figure."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

# a `KernelReport` as a dictionary, read from JSON
Report = Mapping[str, Any]
Verdict = Literal["worse", "better", ""]

# relative change of a figure below which the compiler's own variation is assumed
_NOISE = 0.01


class Change(NamedTuple):
    """A figure that changed.

    Attributes:
        kernel: layer, operator and algorithm.
        figure: name of the figure in `KernelReport`, or "kernel" if the whole kernel is new or gone.
        before: value in the first inspection.
        after: value in the second inspection.
        verdict: "worse", "better", or "" if neither direction is better.
    """

    kernel: str
    figure: str
    before: Any
    after: Any
    verdict: Verdict


def _narrowest(accesses: str) -> int:
    """Return the width of the narrowest load or store, in bits; 128 for tensor memory access."""
    widths = [int(word) for word in accesses.split() if word.isdigit()]
    return min(widths, default=128)


def instructions_per_matrix_instruction(report: Report) -> float:
    """Return the other instructions of the main loop per matrix instruction; infinity without matrix instructions."""
    if report["matrix"] == 0:
        return math.inf
    return float(report["others"] / report["matrix"])


# a number per figure; a larger number is worse
_BADNESS: dict[str, Callable[[Report], float]] = {
    "spilled": lambda report: report["spilled"],
    "blocks": lambda report: -report["blocks"],
    "loads": lambda report: -_narrowest(report["loads"]),
    "stores": lambda report: -_narrowest(report["stores"]),
    "tensor memory access": lambda report: report["loads"] != "TMA",
    "matrix": lambda report: report["matrix"] == 0,
    "instructions_per_matrix_instruction": instructions_per_matrix_instruction,
    "divisions": lambda report: report["divisions"],
    "seconds": lambda report: report["seconds"] or 0.0,
}
# figures without a better direction: a larger tile may be faster or slower
_NEUTRAL = ("tile", "registers", "shared", "outside", "code_bytes")


def changes(before: Iterable[Report], after: Iterable[Report]) -> list[Change]:
    """Return the differences between the kernels of two inspections: the worse ones first, then the better ones.

    Args:
        before: kernels of the first inspection.
        after: kernels of the second inspection.
    """
    old = _by_kernel(before)
    new = _by_kernel(after)
    found = [Change(name, "kernel", "there", "gone", "") for name in old if name not in new]
    found += [Change(name, "kernel", "none", "new", "") for name in new if name not in old]
    for name, report in old.items():
        if name in new:
            found += judged_changes(name, report, new[name])
            found += neutral_changes(name, report, new[name])
    order = ("worse", "better", "")
    return sorted(found, key=lambda change: order.index(change.verdict))


def _by_kernel(reports: Iterable[Report]) -> dict[str, Report]:
    # the same layer may be inspected for several networks and GPUs
    identity = ("network", "architecture", "gpu", "layer", "operator", "kernel")
    named = {}
    for report in reports:
        name = " ".join(report[part] for part in identity if report.get(part))
        named[name] = report
    return named


def judged_changes(name: str, old: Report, new: Report) -> list[Change]:
    """Return the changes of one kernel's figures for better or worse."""
    found = []
    for figure, badness in _BADNESS.items():
        try:
            before, after = badness(old), badness(new)
        except KeyError:  # one of the two revisions does not report this figure
            continue
        # two infinite values have no difference: this condition is then false
        if abs(after - before) > _NOISE * min(abs(before), abs(after)):
            verdict: Verdict = "worse" if after > before else "better"
            # a figure computed from several has no entry of its own
            found.append(Change(name, figure, old.get(figure, before), new.get(figure, after), verdict))
    return found


def neutral_changes(name: str, old: Report, new: Report) -> list[Change]:
    """Return the changes of one kernel's figures without a better direction."""
    found = []
    for figure in _NEUTRAL:
        reported_by_both = figure in old and figure in new
        if reported_by_both and old[figure] != new[figure]:
            found.append(Change(name, figure, old[figure], new[figure], ""))
    return found
