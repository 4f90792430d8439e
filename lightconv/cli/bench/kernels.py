"""what=kernels: time of lightconv's kernels and of torch, eager and compiled, on a GPU."""

from typing import Any

import torch
from omegaconf import DictConfig

from lightconv import visualize
from lightconv.analysis import layers
from lightconv.analysis.gpus import GPU, find_gpu
from lightconv.autotune.timing import cudnn_benchmark, milliseconds_on_gpu
from lightconv.cli.bench.layers import LAYERS, Contender, Layer, build_sides, check, time_passes
from lightconv.cli.bench.report import Report, circumstances
from lightconv.errors import InputError
from lightconv.operators.backend import use_backend

_COMPILE_MODES = {
    "torch.compile": "default",
    "reduce-overhead": "reduce-overhead",  # CUDA graphs: no launch costs
    "max-autotune": "max-autotune",  # Triton templates, timed against cuDNN
}


def kernels(config: DictConfig) -> Report:
    """Time every layer of `LAYERS`.

    Args:
        config: settings of conf/bench.yaml.

    Raises:
        InputError: If there is no GPU, or Triton is not installed.
    """
    if not torch.cuda.is_available():
        raise InputError(
            "what=kernels measures on a GPU and there is none here; what=traffic counts bytes on any machine, and "
            "what=blocks, fused and pipeline measure on any machine"
        )
    # without Triton, use_backend raises before anything is measured
    with use_backend("triton"), cudnn_benchmark():
        gpu = find_gpu(torch.cuda.get_device_name())
        rows: list[dict[str, Any]] = []
        for layer in LAYERS:
            rows += measure(layer, config, "cuda", gpu)
    depends_on = circumstances(config, torch.device("cuda"), "torch", "triton")
    title = f"milliseconds of layers: {depends_on}, {_tf32()}"
    return Report({title: rows}, figure=visualize.relative_times(rows, "torch", title))


def measure(layer: Layer, config: DictConfig, device: str, gpu: GPU | None = None) -> list[dict[str, Any]]:
    """Compare the results of lightconv and torch, then time lightconv, torch and torch.compile.

    Args:
        layer: layer to time.
        config: dtype, memory format and rounds.
        device: "cuda"; "cpu" if kernels are interpreted.
        gpu: data sheet of the GPU; it gives lightconv's share of the roofline.

    Returns:
        A table row for the forward pass, and one for the forward and backward pass.
    """
    check(layer, config, device, backend="triton")
    # forget the compiled code of former layers
    torch.compiler.reset()
    ours, theirs, images = build_sides(layer, config, device)
    contenders = {"lightconv": Contender("triton", ours), "torch": Contender("reference", theirs)}
    for name, mode in _COMPILE_MODES.items():
        contenders[name] = Contender("reference", torch.compile(theirs, mode=mode))
    medians = time_passes(contenders, images, milliseconds_on_gpu, config.rounds)
    roofline = _roofline_milliseconds(layer, config, gpu) if gpu else {}
    rows = []
    for name, times in medians.items():
        share = f"{roofline[name] / times['lightconv']:.0%}" if roofline else "unknown"
        size = "x".join(map(str, layer.images))
        rows.append({"layer": layer.name, "images": size, "pass": name, **times, "of roofline": share})
    return rows


def _roofline_milliseconds(layer: Layer, config: DictConfig, gpu: GPU) -> dict[str, float]:
    """Return the least time of each pass by the data sheet."""
    from lightconv.analysis.prediction import at_roofline  # noqa: PLC0415  Triton is not installed everywhere

    ours, theirs, images = build_sides(layer, config, "meta")
    forward, backward = at_roofline(layers.Layer(layer.name, ours, images, theirs), gpu)
    return {"forward": 1e3 * forward, "forward+backward": 1e3 * (forward + backward)}


def _tf32() -> str:
    """Describe torch's TF32 switches. They hold for all contenders."""
    states = [
        f"{_on_or_off(torch.backends.cudnn.conv)} for convolutions",  # type: ignore[attr-defined]
        f"{_on_or_off(torch.backends.cuda.matmul)} for matrix products",
    ]
    return f"TF32 {', '.join(states)}"


def _on_or_off(switch: Any) -> str:
    return "on" if switch.fp32_precision == "tf32" else "off"
