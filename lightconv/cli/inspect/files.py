"""Files of an inspection: JSON for programs, Markdown for people, and one picture per GPU and network."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from matplotlib.figure import Figure
from omegaconf import DictConfig

from lightconv.analysis.gpus import GPUS
from lightconv.cli import tables
from lightconv.cli.inspect.report import PREDICTION_LEGEND, layer_rows
from lightconv.cli.inspect.subjects import Inspected
from lightconv.errors import InputError
from lightconv.visualize import Point, roofline


def write(inspected: Sequence[Inspected], config: DictConfig) -> None:
    """Write OUTPUT.json, OUTPUT.md, and OUTPUT_GPU_NETWORK.png for each subject with a GPU."""
    base = Path(config.output)
    base.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(as_json(inspected, config), indent=1)
    base.with_name(base.name + ".json").write_text(content + "\n")
    base.with_name(base.name + ".md").write_text(as_markdown(inspected, config))
    for one in inspected:
        # without a data sheet there is no roof to draw
        if one.inspection.layers:
            picture = base.with_name(f"{base.name}_{one.subject.gpu}_{one.subject.network}.png")
            draw_roofline(one, config).savefig(picture, dpi=100)


def read(path: Path) -> dict[str, Any]:
    """Read a JSON file written by an inspection.

    Raises:
        InputError: If the file is missing or has other content.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        content["kernels"]  # any other JSON file fails here
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"diff: {path} is no file that `lightconv inspect output=...` writes: {error!r}") from error
    return content


def as_json(inspected: Sequence[Inspected], config: DictConfig) -> dict[str, Any]:
    """Return settings, versions, kernels and layers of an inspection, ready for JSON."""
    kernels: list[dict[str, Any]] = []
    layers: list[dict[str, Any]] = []
    for subject, inspection in inspected:
        kernels += [subject._asdict() | report._asdict() for report in inspection.kernels]
        layers += [subject._asdict() | report._asdict() for report in inspection.layers]
    return {
        "batch_size": config.batch_size,
        "dtype": config.dtype,
        "channels_last": config.channels_last,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "kernels": kernels,
        "layers": layers,
    }


def as_markdown(inspected: Sequence[Inspected], config: DictConfig) -> str:
    """Return predicted times per layer as a Markdown page; its head states their conditions."""
    layout = "channels_last" if config.channels_last else "contiguous"
    versions = f"torch {torch.__version__}, triton {triton.__version__}"
    legend = " ".join(PREDICTION_LEGEND.split())
    parts = [
        "# Predicted, not measured\n\n"
        f"Microseconds per training step, {config.dtype}, {layout}, batch {config.batch_size}, {versions}. {legend}. "
        "`lightconv/analysis/prediction.py` describes the model, and `lightconv inspect published=true` prints its "
        "error. The times assume backend `triton`, under which lightconv's kernels serve every layer; under `auto`, "
        "rules leave some layers to torch.\n"
    ]
    for subject, inspection in inspected:
        rows = map(single_lines, layer_rows(inspection))
        parts.append(f"\n## {subject.title}\n\n{tables.markdown(list(rows))}")
    return "".join(parts)


def single_lines(row: dict[str, Any]) -> dict[str, str]:
    """Return a row as Markdown needs it: a single line per cell."""
    return {column: str(value).replace("\n", ": ") for column, value in row.items()}


def draw_roofline(one: Inspected, config: DictConfig) -> Figure:
    """Draw the forward passes of all layers under the GPU's roofline."""
    subject, inspection = one
    assert subject.gpu is not None
    gpu = GPUS[subject.gpu]
    points = []
    for layer in inspection.layers:
        intensity = layer.operations / layer.bytes  # operations per byte
        rate = layer.operations / layer.forward  # operations per second
        points.append(Point(layer.layer, intensity, rate))
    # the roof of the matrix units
    peak = gpu.peak("tf32" if config.dtype == "float32" else "half")
    title = f"{subject.title}: forward passes in {config.dtype} under its roof, predicted"
    return roofline(peak, gpu.bandwidth, points, title)
