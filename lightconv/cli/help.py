"""Help of a verb, from the comments of its configurations, and the names of settings for those who mistype one."""

import difflib
import re
import shutil
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

CONFIGURATIONS = Path(__file__).parents[1] / "conf"
if not CONFIGURATIONS.is_dir():  # in a checkout they lie beside the package
    CONFIGURATIONS = Path(__file__).parents[2] / "conf"

EXAMPLES = {
    "train": [
        "lightconv train trainer.max_epochs=5 model.width=2",
        "lightconv train data=folder data.root=photographs model=pretrained",
    ],
    "list": ["lightconv list", "lightconv list what=optimizer"],
    "evaluate": ["lightconv evaluate run=runs/first", "lightconv evaluate run=runs/first data.root=elsewhere"],
    "gallery": ["lightconv gallery", "lightconv gallery data=fashion_mnist data.root=FOLDER augmentation=light"],
    "explain": ["lightconv explain", "lightconv explain architecture=sm_90 dtype=float16"],
    "export": ["lightconv export run=runs/first", "lightconv export run=runs/first formats=onnx output=exported"],
    "inspect": ["lightconv inspect layers=lenet arch=sm_80", "lightconv inspect layers=resnet50 gpu=h100 diff=HEAD~1"],
    "tune": ["lightconv tune layers=resnet50", "lightconv tune layers=lenet batch_size=128 dtype=bfloat16"],
    "bench": ["lightconv bench", "lightconv bench what=fused fused.batch_size=16"],
    "doctor": ["lightconv doctor", "lightconv doctor json=true"],
}
# names of other programs that no comparison of letters finds
_SYNONYMS = {
    "learning_rate": "optimizer.lr",
    "gpu": "trainer.accelerator",
    "gpus": "trainer.accelerator",
    "device": "trainer.accelerator",
    "amp": "trainer.precision",
    "num_workers": "data.workers",
    "patience": "callbacks.early_stopping.patience",
    "arch": "model.backbone",
    "dataset": "data",
    "net": "model",
}
_FLAGS = """flags
  -m                run all combinations of several values: seed=0,1,2
  --cfg job         print the configuration and stop
  --config-dir DIR  look for configurations in DIR first"""


class Setting(NamedTuple):
    """One setting of a configuration.

    Attributes:
        name: name as one types it, such as ``trainer.max_epochs``.
        default: its value in the file after ``=``, or words for it; empty for a setting that only holds others.
        comment: words of the comment beside or right above it.
    """

    name: str
    default: str
    comment: str


def explain_verb(verb: str, purpose: str) -> str:
    """Return the help of a verb: two examples, and every setting with its default and meaning.

    Args:
        verb: name of the verb.
        purpose: words about the verb.
    """
    path = CONFIGURATIONS / f"{verb}.yaml"
    lines = [
        _wrap(f"lightconv {verb}: {purpose}", "  "),
        "",
        f"usage: lightconv {verb} [NAME=VALUE ...]",
        "",
        "examples",
    ]
    lines += [f"  {example}" for example in EXAMPLES[verb]]
    lines += ["", "settings", *_explain_settings(read_settings(path))]
    for group, choice in default_groups(path).items():
        names = sorted(choices(group))
        others = ", ".join(name for name in names if name != choice)
        lines += ["", f"{group}={choice}"]
        lines.append(_wrap(f"    or {others}; `lightconv list what={group}` tells them apart", "    "))
        if choice in names:
            lines += _explain_settings(read_settings(CONFIGURATIONS / group / f"{choice}.yaml", f"{group}."))
    return "\n".join([*lines, "", _FLAGS])


def _explain_settings(settings: list[Setting]) -> list[str]:
    lines = []
    for setting in settings:
        if not (setting.default or setting.comment):
            continue  # it only holds the settings below it
        lines.append(f"  {setting.name}{setting.default}")
        lines += [_wrap(f"      {line}", "      ") for line in setting.comment.splitlines()]
    return lines


def _wrap(text: str, indent: str) -> str:
    width = shutil.get_terminal_size().columns
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def default_groups(path: Path) -> dict[str, str]:
    """Return the groups that a verb's configuration is composed of, and the choice of each; null for none."""
    groups = {}
    for entry in yaml.safe_load(path.read_text()).get("defaults", []):
        if isinstance(entry, dict):
            ((group, choice),) = entry.items()
            if not re.search(r"[ @]", group):  # neither an override of Hydra's groups nor another place
                groups[group] = choice or "null"
    return groups


def choices(group: str) -> list[str]:
    """Return the names of a group's configurations."""
    folder = CONFIGURATIONS / group
    return [path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")]


def read_settings(path: Path, prefix: str = "") -> list[Setting]:
    """Read the settings of a configuration with their comments.

    Args:
        path: YAML file.
        prefix: beginning of the settings' names, such as ``trainer.``.
    """
    text = path.read_text()
    package = re.match(r"# @package (\w+)", text)
    if package:
        prefix = "" if package[1] == "_global_" else f"{package[1]}."
    node = yaml.compose(text)
    if not isinstance(node, yaml.MappingNode):
        return []
    return list(_walk(node, prefix, text.splitlines()))


def _walk(mapping: yaml.MappingNode, prefix: str, lines: list[str]) -> Iterator[Setting]:
    for key, value in mapping.value:
        if key.value.startswith("_") or key.value in {"defaults", "hydra"}:
            continue
        name = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield Setting(name, "", _comment(lines, key, key))
            yield from _walk(value, f"{name}.", lines)
        else:
            yield Setting(name, _default(value), _comment(lines, key, value))


def _default(node: yaml.Node) -> str:
    text: str = node.start_mark.buffer[node.start_mark.pointer : node.end_mark.pointer]
    text = " ".join(text.split())
    # LIGHTCONV_BACKEND may set another one; the comment names the choices
    text = re.sub(r"\$\{oc\.env:\w+,([^}]*)\}", r"\1", text)
    reference = re.fullmatch(r"\$\{([\w.]+)\}", text)
    if reference:
        return f"  (as {reference[1]})"
    if "${hydra:" in text or "${now:" in text or (isinstance(node, yaml.SequenceNode) and not node.flow_style):
        return "  (see `--cfg job`)"
    return "=" + re.sub(r"\$\{(\w+)\}", lambda match: match[1].upper(), text)


def _comment(lines: list[str], key: yaml.Node, value: yaml.Node) -> str:
    """Return the comment lines right above a key, and the comment behind its value."""
    above: list[str] = []
    for line in reversed(lines[: key.start_mark.line]):
        if not line.strip().startswith("#"):
            break
        above.insert(0, line.strip().lstrip("# "))
    # the comment at the head of the file is about the file
    if len(above) == key.start_mark.line:
        above = []
    is_block = not isinstance(value, yaml.ScalarNode) and not value.flow_style
    end = (key if is_block else value).end_mark
    behind = lines[end.line][end.column :] if end.line < len(lines) else ""
    comment = behind.partition("#")[2].strip()
    return "\n".join([*above, comment] if comment else above)


@cache
def all_settings() -> dict[str, list[str]]:
    """Return the names of the settings of all groups, each with the choices that have it, such as data=mnist."""
    settings: dict[str, list[str]] = {}
    for path in sorted(CONFIGURATIONS.rglob("*.yaml")):
        group = path.parent.relative_to(CONFIGURATIONS).as_posix()
        if group == "." or group.startswith(("experiment", "debug")):
            continue
        for setting in read_settings(path, f"{group}."):
            settings.setdefault(setting.name, []).append(f"{group}={path.stem}")
    for setting in read_settings(CONFIGURATIONS / "train.yaml"):
        settings.setdefault(setting.name, [])
    for group in default_groups(CONFIGURATIONS / "train.yaml"):
        settings.setdefault(group, [])
    return settings


def nearest_settings(name: str, count: int = 3) -> list[str]:
    """Return the names of settings, over all groups, that are most like a mistyped one; the most likely first.

    Example:
        >>> nearest_settings("epochs")[0], nearest_settings("learning_rate")[0], nearest_settings("data.rot")[0]
        ('trainer.max_epochs', 'optimizer.lr', 'data.root')
    """
    likeness = {}
    for known in all_settings():
        # people leave the group out, or take another one's
        ends = difflib.SequenceMatcher(None, name.rpartition(".")[2], known.rpartition(".")[2]).ratio()
        whole = difflib.SequenceMatcher(None, name, known).ratio()
        likeness[known] = ends + whole
        if name in known.split("."):
            likeness[known] += 1
    likely = sorted((known for known in likeness if likeness[known] > 1), key=lambda known: -likeness[known])
    if name in _SYNONYMS:
        likely.insert(0, _SYNONYMS[name])
    return likely[:count]
