"""The command line: ``lightconv <verb> key=value ...``. Each verb is one function and one conf/<verb>.yaml."""

import os
import shutil
import sys
import textwrap

from lightconv._version import __version__

VERBS = {
    "train": "train a network; without arguments LeNet on real handwritten digits, in seconds on a CPU",
    "list": "show recipes, models, data, optimizers and schedulers as one types them; what=data shows one group",
    "evaluate": "test a finished run's network: run=DIRECTORY",
    "gallery": "draw a picture of training images, each as it is and many times as training sees it",
    "explain": "show who serves each layer of a network, and why; architecture=sm_90: on a GPU that is not here",
    "export": "write a finished run's network as files for use without lightconv, .pt2 and ONNX: run=DIRECTORY",
    "inspect": "compile kernels for a GPU that is not here, judge them, predict their time, see what a change did",
    "tune": 'measure on this GPU what "auto" is to choose for a network\'s layers',
    "bench": "compare with torch: memory traffic, counted anywhere, or what=kernels, timed on a GPU",
    "doctor": "show what is installed, what runs where, and what stands in the way",
}
_USAGE = "lightconv: convolution and max-pooling on Triton kernels, from images to a trained CNN"
_EXAMPLES = {
    "lightconv train": "the defaults",
    "lightconv train experiment=lenet_fashion_mnist": "a recipe; data.root=FOLDER names the folder of its files",
    "lightconv train trainer.max_epochs=5 model.width=2": "any setting of any group",
    "lightconv train -m model.width=1,2 seed=0,1,2": "all combinations, and one table at the end",
    "lightconv train resume=runs/NAME/TIME": "resume a run",
    "lightconv train --cfg job": "show the configuration and stop",
    "lightconv train --config-dir my_conf experiment=mine": "your own configurations, preferred to lightconv's",
}


def main(arguments: list[str] | None = None) -> None:
    """Run ``lightconv``.

    Args:
        arguments: arguments after the command's name; by default those of the process.
    """
    if arguments is None:
        arguments = sys.argv[1:]
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print_text(describe_verbs())
        return
    if arguments[0] == "--version":
        print(__version__)
        return
    verb, *overrides = arguments
    if verb not in VERBS:
        sys.exit(f"error: unknown verb {verb!r}: choose one of {', '.join(VERBS)} (lightconv --help explains them)")
    if {"-h", "--help"} & set(overrides):
        from lightconv.cli.help import explain_verb  # noqa: PLC0415

        print_text(explain_verb(verb, VERBS[verb]))
        return
    # imported late: the help and a mistyped verb load neither torch nor Hydra
    from lightconv.cli.application import launch  # noqa: PLC0415

    launch(verb, overrides)


def describe_verbs() -> str:
    """Return usage, verbs and examples, as wide as the terminal."""
    width = shutil.get_terminal_size().columns
    lines = [textwrap.fill(_USAGE, width), "", "usage: lightconv VERB [NAME=VALUE ...]", ""]
    for verb, purpose in VERBS.items():
        lines.append(textwrap.fill(purpose, width, initial_indent=f"  {verb:<10} ", subsequent_indent=" " * 13))
    lines += ["", "examples"]
    for command, purpose in _EXAMPLES.items():
        lines.append(f"  {command}")
        lines.append(textwrap.fill(purpose, width, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join([*lines, "", "lightconv VERB --help explains every setting of a verb."])


def print_text(text: str) -> None:
    """Print a text; exit with status 1 and a message if standard output was closed."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.exit(f"error: {discard_output()}")


def discard_output() -> str:
    """Discard further output after standard output was closed, and return words for that."""
    # Python flushes standard output at its end, and would raise the error again
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return "standard output was closed"
