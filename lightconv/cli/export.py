"""lightconv export: a finished run's network as files that run without lightconv, checked against it."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lightconv.cli import run, tables
from lightconv.cli.evaluate import finished
from lightconv.cli.settings import several
from lightconv.cli.train import titled
from lightconv.errors import InputError
from lightconv.operators.backend import use_backend

_PACKAGES = {"pt2": (), "onnx": ("onnx", "onnxscript", "onnxruntime")}
_BATCH_SIZES = (1, 2, 7, 64)
_TOLERANCE = 1e-4  # of the largest logit

Run = Callable[[Tensor], Tensor]


def export(config: DictConfig) -> None:
    """Write the network in each format, run what was written on test images, and print how far it is from the network.

    Raises:
        InputError: if there is no such run, checkpoint or format, or a package is missing.
    """
    formats = several(config.formats)
    check_formats(formats)
    directory = run.existing(config.run or _run_of(config.checkpoint), "run")
    task, data = finished(directory, config)
    data.setup("test")
    images = next(iter(data.test_dataloader()))[0]
    output = Path(config.output or directory)
    if output.is_file():
        raise InputError(f"output={output} is a file: give a directory, for model.{formats[0]}")
    output.mkdir(parents=True, exist_ok=True)
    with use_backend("reference"), torch.no_grad():  # torch's own operators: nothing of lightconv is in the graph
        rows = write(task.model, images, [output / f"model.{name}" for name in formats])
    tables.show_rows(titled(task, data), rows)
    sizes = " x ".join(map(str, data.image_shape))
    mean, std = (", ".join(map(str, values)) for values in (data.mean, data.std))
    print(f"takes any number of images of {sizes} as float32: pixels / 255, less {mean}, over {std}")
    print(f"gives the logits of {', '.join(data.classes)}")


def write(model: nn.Module, images: Tensor, paths: list[Path]) -> list[dict[str, str]]:
    """Write files in the formats that their names end with, and check them.

    Returns:
        For each its name, its size, and the largest difference of a logit.
    """
    model = model.to(memory_format=torch.contiguous_format)  # torch.export warns of any other
    program, rows = exported(model, images), []
    for path in paths:
        difference = checked(_WRITERS[path.suffix[1:]](program, path), model, images, path)
        size = f"{path.stat().st_size / 1e6:.2f} MB"
        rows.append({"file": str(path), "size": size, "largest difference": f"{difference:.1e}"})
    return rows


def check_formats(formats: list[str]) -> None:
    """Make sure that everything that is asked for can be written.

    Raises:
        InputError: for an unknown format, or where a package is missing.
    """
    if not formats:
        raise InputError("formats=[]: choose pt2, onnx or both, [pt2,onnx]")
    for name in formats:
        if name not in _PACKAGES:
            raise InputError(f"formats={name}: choose pt2, onnx or both, [pt2,onnx]")
        missing = [package for package in _PACKAGES[name] if importlib.util.find_spec(package) is None]
        if missing:
            raise InputError(
                f"formats={name} needs {', '.join(missing)}: pip install 'lightconv[export]', or choose formats=pt2"
            )


def _run_of(checkpoint: str) -> Path | None:
    """The directory of the run that a checkpoint lies in."""
    return next((parent for parent in Path(checkpoint).parents if (parent / "config.yaml").is_file()), None)


def exported(model: nn.Module, images: Tensor) -> ExportedProgram:
    """The graph of a model in evaluation, for any number of images."""
    # cloned: the archive keeps the example with all of the memory that it is a part of
    return torch.export.export(model.eval(), (images[:2].clone(),), dynamic_shapes=({0: Dim("batch")},))


def write_pt2(program: ExportedProgram, path: Path) -> Run:
    """Write torch.export's archive; return what it computes when it is loaded."""
    torch.export.save(program, path)
    return torch.export.load(path).module()


def write_onnx(program: ExportedProgram, path: Path) -> Run:
    """Write ONNX; return what onnxruntime computes with it."""
    import onnxruntime  # noqa: PLC0415  an extra

    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
    written = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    assert written is not None
    written.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


_WRITERS: dict[str, Callable[[ExportedProgram, Path], Run]] = {"pt2": write_pt2, "onnx": write_onnx}


def checked(written: Run, model: nn.Module, images: Tensor, path: Path) -> float:
    """Compare what was written with the model, for several numbers of images.

    Returns:
        The largest difference of a logit.

    Raises:
        RuntimeError: if it is too large.
    """
    batches = [images[:size] for size in _BATCH_SIZES]
    pairs = [(written(batch), model(batch)) for batch in batches]
    largest = max((ours - theirs).abs().max().item() for ours, theirs in pairs)
    scale = max(theirs.abs().max().item() for _, theirs in pairs)
    if not largest <= _TOLERANCE * scale:  # also where it is no number
        path.unlink()
        raise RuntimeError(f"{path} did not compute what the network does: {largest} apart, logits reach {scale}")
    return largest
