"""what=kernels: lightconv's kernels against torch, eager and compiled, in time on a GPU."""

from typing import Any

import torch
from omegaconf import DictConfig

from lightconv import visualize
from lightconv.analysis import layers
from lightconv.analysis.gpus import GPU, find_gpu
from lightconv.autotune.timing import cudnn_benchmark, milliseconds_on_gpu
from lightconv.cli.bench.layers import LAYERS, Contender, Layer, check, sides, timed
from lightconv.cli.bench.report import Report, circumstances
from lightconv.errors import InputError
from lightconv.operators.backend import use_backend

_COMPILED = {
    "torch.compile": "default",
    "reduce-overhead": "reduce-overhead",  # CUDA graphs: what launches cost is gone
    "max-autotune": "max-autotune",  # and Triton templates, timed against cuDNN
}


def kernels(config: DictConfig) -> Report:
    """Time every layer of `LAYERS`.

    Raises:
        InputError: without a GPU or Triton.
    """
    if not torch.cuda.is_available():
        raise InputError(
            "what=kernels measures on a GPU and there is none here; what=traffic counts on any machine, and "
            "what=blocks, fused and pipeline measure on any"
        )
    # the backend refuses here, before anything is measured, where Triton is not installed
    with use_backend("triton"), cudnn_benchmark():
        sheet = find_gpu(torch.cuda.get_device_name())
        rows = [row for layer in LAYERS for row in measure(layer, config, "cuda", sheet)]
    depends_on = circumstances(config, torch.device("cuda"), "torch", "triton")
    title = f"milliseconds of layers: {depends_on}, {_tf32()}"
    return Report({title: rows}, figure=visualize.relative_times(rows, "torch", title))


def measure(layer: Layer, config: DictConfig, device: str, gpu: GPU | None = None) -> list[dict[str, Any]]:
    """Time a layer by lightconv, torch and torch.compile, once they are known to compute the same.

    Args:
        layer: to time.
        config: dtype, memory format and rounds.
        device: to time it on.
        gpu: its data sheet, by which the share of the roofline is told that lightconv reaches.

    Returns:
        A table row for the forward pass and one for forward and backward.
    """
    check(layer, config, device, backend="triton")
    torch.compiler.reset()
    ours, theirs, images = sides(layer, config, device)
    contenders = {"lightconv": Contender("triton", ours), "torch": Contender("reference", theirs)}
    for name, mode in _COMPILED.items():
        contenders[name] = Contender("reference", torch.compile(theirs, mode=mode))
    described = {"layer": layer.name, "images": "x".join(map(str, layer.images))}
    medians = timed(contenders, images, milliseconds_on_gpu, config.rounds)
    least = _least_milliseconds(layer, config, gpu) if gpu else {}
    return [
        {
            **described,
            "pass": name,
            **times,
            "of roofline": f"{least[name] / times['lightconv']:.0%}" if least else "unknown",
        }
        for name, times in medians.items()
    ]


def _least_milliseconds(layer: Layer, config: DictConfig, gpu: GPU) -> dict[str, float]:
    """What each pass takes at least by the data sheet."""
    from lightconv.analysis.prediction import at_roofline  # noqa: PLC0415  Triton is not installed everywhere

    ours, theirs, images = sides(layer, config, "meta")
    forward, backward = at_roofline(layers.Layer(layer.name, ours, images, theirs), gpu)
    return {"forward": 1e3 * forward, "forward+backward": 1e3 * (forward + backward)}


def _tf32() -> str:
    """What all contenders obey: the switches of torch."""
    switches = {"convolutions": torch.backends.cudnn.conv, "matrix products": torch.backends.cuda.matmul}  # type: ignore[attr-defined]
    states = (f"{'on' if s.fp32_precision == 'tf32' else 'off'} for {name}" for name, s in switches.items())
    return f"TF32 {', '.join(states)}"
