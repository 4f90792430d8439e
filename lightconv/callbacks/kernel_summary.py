"""Lightning's summary of a module, and who serves its layers."""

from collections import Counter
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.utilities.model_summary.model_summary import get_human_readable_count
from rich import box, get_console
from rich.table import Table
from rich.text import Text
from torch import nn

from lightconv.callbacks.kernel_swap import KernelSwap
from lightconv.surgery.explain import Row, explain, layers

_NO_SIZES = "sizes unknown: set the module's example_input_array, to a batch like those to come"


class KernelSummary(ModelSummary):
    """Lightning's table of a module's layers with a column more: who serves them, as `lightconv.explain` says.

    It takes the place of Lightning's own, and comes after any KernelSwap, in whichever order they are listed. It holds
    for batches like the module's ``example_input_array``; without one the sizes are unknown, and the column shows "?".
    Layers deeper than the table goes are counted in the row of the module that they are part of.

    Args:
        max_depth: of the modules shown: 1 for the module's own attributes, -1 for all, 0 for no table.
        style: settings of rich.table.Table.
    """

    def __init__(self, max_depth: int = 1, **style: Any) -> None:
        super().__init__(max_depth, **style)
        self._module: nn.Module = nn.Identity()
        self._call: tuple[Any, Any] | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the table on the first process, and note for it how Lightning calls the module to learn the sizes."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, KernelSwap):
                callback.on_fit_start(trainer, pl_module)  # swapping again, in its turn, changes nothing
        self._module = pl_module
        with pl_module.register_forward_pre_hook(self._note, with_kwargs=True):
            super().on_fit_start(trainer, pl_module)
        self._module, self._call = nn.Identity(), None

    def _note(self, module: nn.Module, *call: Any) -> None:
        self._call = call

    def summarize(  # type: ignore[override]
        self,
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **style: Any,
    ) -> None:
        """Print what Lightning found, its totals in a line, and the reasons for who serves what."""
        columns, rows = dict(summary_data), _served(self._module, self._call)
        reasons = list(dict.fromkeys(row.reason for row in rows))
        columns["Served by"] = [_cell(name, rows, reasons) for name in columns["Name"]]
        table = Table(**{"box": box.SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True, **style})
        for name in columns:
            table.add_column(name, overflow="fold")
        for cells in zip(*columns.values(), strict=True):
            table.add_row(*map(Text, cells))
        modes = ", ".join(f"{number} modules in {mode} mode" for mode, number in total_training_modes.items())
        lines = [
            f"{_short(total_parameters)} parameters, {_short(trainable_parameters)} trainable, {model_size:,.3f} MB",
            f"{_short(total_flops)} FLOPs, {modes}",
            *(f"({number}) {reason}" for number, reason in enumerate(reasons, 1)),
        ]
        get_console().print(table, *map(Text, lines), sep="\n")


def _short(number: int) -> str:
    return get_human_readable_count(number).strip()


def _served(module: nn.Module, call: tuple[Any, Any] | None) -> list[Row]:
    """A row for each layer of a module, served by "?" where a call, by position and by name, does not tell."""
    rows, unknown = _explained(module, *call) if call else ((), _NO_SIZES)
    known = {row.name for row in rows}
    return [*rows, *(Row(n, type(m).__name__, "?", "", unknown) for n, m in layers(module).items() if n not in known)]


def _explained(module: nn.Module, inputs: Any, named: Any) -> tuple[tuple[Row, ...], str]:
    """What `explain` finds, and why it finds no more."""
    try:
        return explain(module, *inputs, **named).rows, "not called with the example_input_array"
    except Exception as error:  # whatever a forward does that needs values: training does not depend on it
        return (), f"lightconv.explain cannot run {type(module).__name__} without values: {error}"


def _cell(name: str, rows: list[Row], reasons: list[str]) -> str:
    """Who serves a layer, or the layers of a module, and the numbers of the reasons."""
    within = (row for row in rows if f"{row.name}.".startswith(f"{name}."))
    counts = Counter(f"{row.served_by} ({reasons.index(row.reason) + 1})" for row in within)
    return "\n".join(by if number == 1 else f"{number} x {by}" for by, number in counts.items())
