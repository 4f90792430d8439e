"""The command line: ``lightconv <verb> key=value ...``, one function a verb, one conf/<verb>.yaml a function."""

import sys

from lightconv._version import __version__

VERBS = {
    "train": "train a network; without arguments LeNet on real handwritten digits, in seconds on a CPU",
    "list": "show the recipes, models, data, optimizers and schedulers there are, as one types them; what=data: some",
    "evaluate": "test a finished run's network: run=DIRECTORY",
    "gallery": "draw a picture of training images, each as it is and many times as training sees it",
    "explain": "show who serves each layer of a network, and why; architecture=sm_90: on a GPU that is not here",
    "export": "write a finished run's network as files that run without lightconv, .pt2 and ONNX: run=DIRECTORY",
    "inspect": "compile kernels for a GPU that is not here, judge them, predict their time, see what a change did",
    "tune": 'measure on this GPU what "auto" is to choose for a network\'s layers',
    "bench": "compare with torch: memory traffic, counted anywhere, or what=kernels, timed on a GPU",
    "doctor": "say what is installed, what will run where, and what stands in the way",
}
_HELP = f"""lightconv: convolution and max-pooling on Triton kernels, from images to a trained CNN

usage: lightconv VERB [key=value ...]

{chr(10).join(f"  {verb:<10} {words}" for verb, words in VERBS.items())}

examples
  lightconv train                                         the defaults
  lightconv train experiment=lenet_fashion_mnist          a recipe; data.root=FOLDER says where the files are
  lightconv train trainer.max_epochs=5 model.width=2      any setting of any group
  lightconv train -m model.width=1,2 seed=0,1,2           all combinations, and one table at the end
  lightconv train resume=runs/NAME/TIME                   go on where a run stopped
  lightconv train --cfg job                               show the configuration and stop
  lightconv train --config-dir my_conf experiment=mine    configs of your own, which go before lightconv's

lightconv VERB --help lists its groups and settings."""


def main(arguments: list[str] | None = None) -> None:
    """Run ``lightconv``.

    Args:
        arguments: what stands behind the command; the process's own by default.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(_HELP)
        return
    if arguments[0] == "--version":
        print(__version__)
        return
    verb, *overrides = arguments
    if verb not in VERBS:
        sys.exit(f"error: unknown verb {verb!r}: choose one of {', '.join(VERBS)} (lightconv --help explains them)")
    from lightconv.cli.application import launch  # noqa: PLC0415  help and typing errors need not load torch

    launch(verb, overrides)
