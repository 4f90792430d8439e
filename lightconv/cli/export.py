"""lightconv export: a finished run's network as files for use without lightconv, checked against it."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lightconv.cli import tables
from lightconv.cli.settings import as_list
from lightconv.data import ImageData
from lightconv.errors import InputError
from lightconv.operators.backend import use_backend
from lightconv.runs import Run, results
from lightconv.runs.configuration import load_config, replace_settings
from lightconv.runs.directory import existing_run
from lightconv.text import printable

_PACKAGES = {"pt2": (), "onnx": ("onnx", "onnxscript", "onnxruntime")}  # needed by each format
_BATCH_SIZES = (1, 2, 7, 64)
_TOLERANCE = 1e-4  # relative to the largest logit

Network = Callable[[Tensor], Tensor]


def export(config: DictConfig) -> None:
    """Write a network in each format, run the files on test images, and print how far they are from the network.

    Raises:
        InputError: If there is no such run, checkpoint or format, or a package is missing.
    """
    formats = as_list(config.formats)
    check_formats(formats)
    # a checkpoint of a run names the run as well, so run= may be left out
    directory = existing_run(config.run or run_of_checkpoint(config.checkpoint), "run")
    run_config = replace_settings(load_config(directory, as_list(config.allow)), data=config.data, task={})
    run = Run(directory, run_config, config.checkpoint)
    run.data.setup("test")
    images, _ = next(iter(run.data.test_dataloader()))
    output = Path(config.output or directory)
    if output.is_file():
        raise InputError(f"output={output} is a file: give a directory, for model.{formats[0]}")
    output.mkdir(parents=True, exist_ok=True)
    # torch's own operators, so that nothing of lightconv is in the graph
    with use_backend("reference"), torch.no_grad():
        rows = write_files(run.network, images, [output / f"model.{name}" for name in formats])
    tables.show_rows(results.run_title(run.task, run.data), rows)
    print(describe_input(run.data))
    print(f"gives the logits of {', '.join(map(printable, run.classes))}")


def check_formats(formats: list[str]) -> None:
    """Check the formats and the packages they need.

    Raises:
        InputError: If a format is unknown, or a package for it is missing.
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


def run_of_checkpoint(checkpoint: str) -> Path | None:
    """Return the run directory above a checkpoint; None if it belongs to no run."""
    for parent in Path(checkpoint).parents:
        if (parent / "config.yaml").is_file():
            return parent
    return None


def describe_input(data: ImageData) -> str:
    """Return a sentence about the exported network's input."""
    sizes = " x ".join(map(str, data.image_shape))
    mean = ", ".join(map(str, data.mean))
    std = ", ".join(map(str, data.std))
    return f"takes any number of images of {sizes} as float32: pixels / 255, less {mean}, over {std}"


def write_files(model: nn.Module, images: Tensor, paths: list[Path]) -> list[dict[str, str]]:
    """Write a network to several files, each in the format of its suffix, and check them.

    Args:
        model: network to write.
        images: (n, c, h, w) images to check it with.
        paths: files to write.

    Returns:
        Name, size and largest difference of a logit, one row per file.
    """
    model = model.to(memory_format=torch.contiguous_format)  # torch.export warns of any other format
    program = export_program(model, images)
    rows = []
    for path in paths:
        write = write_pt2 if path.suffix == ".pt2" else write_onnx
        # read the file back and compare: an exporter may write another function without an error
        difference = check_file(write(program, path), model, images, path)
        size = f"{path.stat().st_size / 1e6:.2f} MB"
        rows.append({"file": str(path), "size": size, "largest difference": f"{difference:.1e}"})
    return rows


def export_program(model: nn.Module, images: Tensor) -> ExportedProgram:
    """Return the graph of a network in evaluation mode, for any number of images.

    Args:
        model: network to export.
        images: (n, c, h, w) images, of which two serve as the example.
    """
    example = images[:2].clone()  # the archive would keep the memory of all images otherwise
    return torch.export.export(model.eval(), (example,), dynamic_shapes=({0: Dim("batch")},))


def write_pt2(program: ExportedProgram, path: Path) -> Network:
    """Write torch.export's archive; return the network loaded from it."""
    torch.export.save(program, path)
    return torch.export.load(path).module()


def write_onnx(program: ExportedProgram, path: Path) -> Network:
    """Write ONNX; return the network as onnxruntime computes it."""
    import onnxruntime  # noqa: PLC0415  an extra

    written = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
    )
    assert written is not None
    written.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def check_file(loaded: Network, model: nn.Module, images: Tensor, path: Path) -> float:
    """Compare a network loaded from a file with the original, for several batch sizes.

    Args:
        loaded: network loaded from the file.
        model: original network.
        images: (n, c, h, w) images to compare on.
        path: the file, removed if the networks differ.

    Returns:
        The largest difference of a logit.

    Raises:
        RuntimeError: If it exceeds 1e-4 of the largest logit.
    """
    differences, logits = [], []
    for size in _BATCH_SIZES:
        expected = model(images[:size])
        differences.append((loaded(images[:size]) - expected).abs().flatten())
        logits.append(expected.abs().flatten())
    # torch's maximum is NaN if any number is, and NaN fails the comparison
    largest = torch.cat(differences).max().item()
    scale = torch.cat(logits).max().item()
    if not largest <= _TOLERANCE * scale:
        path.unlink()
        raise RuntimeError(f"{path} does not compute what the network does: {largest} apart, logits reach {scale}")
    return largest
