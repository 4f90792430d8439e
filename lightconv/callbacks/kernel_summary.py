"""Lightning's summary of a module with the operator that computes each layer."""

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

_NO_EXAMPLE = "sizes unknown: set the module's example_input_array to a batch of the size used in training"


class KernelSummary(ModelSummary):
    """Lightning's table of a module's layers with one more column: the kernel of each layer, as in `lightconv.explain`.

    It replaces Lightning's own summary and runs after any KernelSwap, in whichever order they are listed. It holds for
    batches of the size of the module's ``example_input_array``. Without one, the column shows "?". Layers deeper than
    the table are counted in the row of the module that contains them.

    Args:
        max_depth: depth of the modules shown. 1 shows the module's own attributes, -1 all modules, 0 no table.
        **style: keyword arguments of rich.table.Table.

    Example:
        >>> trainer = L.Trainer(max_epochs=10, callbacks=[KernelSwap(), KernelSummary(max_depth=2)], logger=False)
    """

    def __init__(self, max_depth: int = 1, **style: Any) -> None:
        super().__init__(max_depth, **style)
        self._module: nn.Module = nn.Identity()
        self._call: tuple[Any, Any] | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the table on the first process.

        Lightning calls the module with its example to learn the sizes. A hook records the arguments of this call, so
        that `explain` can repeat it.
        """
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, KernelSwap):
                callback.on_fit_start(trainer, pl_module)  # its own later call finds the layers swapped
        self._module = pl_module
        with pl_module.register_forward_pre_hook(self._record_call, with_kwargs=True):
            super().on_fit_start(trainer, pl_module)
        self._module = nn.Identity()
        self._call = None

    def _record_call(self, module: nn.Module, *call: Any) -> None:
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
        """Print Lightning's table with the additional column, the totals in a line, and the reasons."""
        rows = _explain_layers(self._module, self._call)
        reasons = list(dict.fromkeys(row.reason for row in rows))
        columns = dict(summary_data)
        columns["Served by"] = [_served_by(name, rows, reasons) for name in columns["Name"]]
        table = Table(**{"box": box.SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True, **style})
        for name in columns:
            table.add_column(name, overflow="fold")
        for cells in zip(*columns.values(), strict=True):
            # rich would read [x] in plain strings as markup
            table.add_row(*map(Text, cells))
        modes = ", ".join(f"{number} modules in {mode} mode" for mode, number in total_training_modes.items())
        total = get_human_readable_count(total_parameters).strip()
        trainable = get_human_readable_count(trainable_parameters).strip()
        flops = get_human_readable_count(total_flops).strip()
        lines = [f"{total} parameters, {trainable} trainable, {model_size:,.3f} MB", f"{flops} FLOPs, {modes}"]
        for number, reason in enumerate(reasons, 1):
            lines.append(f"({number}) {reason}")
        get_console().print(table, *map(Text, lines), sep="\n")


def _explain_layers(module: nn.Module, call: tuple[Any, Any] | None) -> list[Row]:
    """Return a row for each layer, served by "?" if the call does not reach it.

    Args:
        module: module to explain.
        call: positional and keyword arguments of a call of the module, None if there was none.
    """
    rows: list[Row] = []
    unknown_reason = _NO_EXAMPLE
    if call is not None:
        arguments, keywords = call
        try:
            rows = list(explain(module, *arguments, **keywords).rows)
            unknown_reason = "not called with the example_input_array"
        except Exception as error:  # a forward may do anything with values; training must not depend on the summary
            unknown_reason = f"lightconv.explain cannot run {type(module).__name__} without values: {error}"
    explained = {row.name for row in rows}
    for name, layer in layers(module).items():
        if name not in explained:
            rows.append(Row(name, type(layer).__name__, "?", "", unknown_reason))
    return rows


def _served_by(name: str, rows: list[Row], reasons: list[str]) -> str:
    """Return the kernels of a module's layers and the numbers of their reasons."""
    counts: Counter[str] = Counter()
    for row in rows:
        if row.name == name or row.name.startswith(f"{name}."):
            counts[f"{row.served_by} ({reasons.index(row.reason) + 1})"] += 1
    lines = []
    for kernel, number in counts.items():
        lines.append(kernel if number == 1 else f"{number} x {kernel}")
    return "\n".join(lines)
