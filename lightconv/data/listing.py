"""Which files a set of images has, with the label and the split of each: from sub-folders, or from a CSV."""

import csv
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lightconv.errors import InputError

SPLITS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_COLUMNS = ("path", "label", "split")
_CLUTTER = {"thumbs.db", "desktop.ini", "__macosx"}  # besides names that begin with a dot


@dataclass(frozen=True)
class Entry:
    """A file of the set.

    Attributes:
        name: its path below the root, or as the CSV has it; what it is called in messages, and split by.
        path: where it is.
        label: the name of its class.
        split: "train", "validation" or "test".
    """

    name: str
    path: Path
    label: str
    split: str = "train"


def class_folders(root: Path) -> tuple[list[str], list[Entry]]:
    """List the files in sub-folders that name classes, at any depth, or in train/, val/ and test/ with such ones.

    What systems leave behind is passed over: names that begin with a dot, Thumbs.db and the like.

    Returns:
        The names of the classes, in alphabetical order, and the files.

    Raises:
        InputError: if there are no such folders.
    """
    if not root.is_dir():
        raise InputError(f"{root} is no folder: give the one whose sub-folders are the classes as data.root=FOLDER")
    folders = _subfolders(root)
    by_split = bool(folders) and all(folder.name in SPLITS for folder in folders)
    parts = [(SPLITS[folder.name], folder) for folder in folders] if by_split else [("train", root)]
    found = [(split, folder) for split, part in parts for folder in _subfolders(part)]
    if not found:
        raise InputError(
            f"{root} has no sub-folders that name classes{' in ' + ', '.join(SPLITS) if by_split else ''}: give each "
            "class a folder, or the labels in a file, data.labels=FILE.csv"
        )
    entries = [
        Entry(path.relative_to(root).as_posix(), path, folder.name, split)
        for split, folder in found
        for path in _files(folder)
    ]
    return sorted({folder.name for _, folder in found}), entries


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_clutter(path.name))


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _CLUTTER


def _files(top: Path) -> Iterator[Path]:
    entered = {os.path.realpath(top)}
    for folder, subfolders, names in os.walk(top, followlinks=True):
        deeper = []
        for name in sorted(subfolders):
            path = os.path.join(folder, name)
            if Path(name).suffix.lower() in Image.registered_extensions():
                names.append(name)  # to be named as what it is
            elif not _is_clutter(name) and os.path.realpath(path) not in entered:  # links may lead in a circle
                entered.add(os.path.realpath(path))
                deeper.append(name)
        subfolders[:] = deeper
        yield from (Path(folder, name) for name in sorted(names) if not _is_clutter(name))


def table(file: Path, root: Path | None) -> tuple[list[str], list[Entry]]:
    """List the files of a CSV with the columns path, label and, if wanted, split.

    Args:
        file: the CSV.
        root: what paths are relative to; by default the folder of the CSV.

    Returns:
        The names of the classes, in alphabetical order, and the files, whether or not they are there.

    Raises:
        InputError: if the CSV cannot be read, has other columns, empty cells, or a file twice.
    """
    root = file.parent if root is None else root
    lines: dict[str, int] = {}
    entries = []
    for line, row in _rows(file):
        path = root / row["path"]
        same = os.path.abspath(path)
        if same in lines:
            raise InputError(f"{file}, line {line}: {row['path']} is in line {lines[same]} already")
        lines[same] = line
        if row.get("split", "train") not in SPLITS:
            raise InputError(f"{file}, line {line}: split {row['split']!r} is none of {', '.join(SPLITS)}")
        entries.append(Entry(row["path"], path, row["label"], SPLITS[row.get("split", "train")]))
    if not entries:
        raise InputError(f"{file} names no files")
    return sorted({entry.label for entry in entries}), entries


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as content:  # spreadsheets write a byte order mark
            reader = csv.DictReader(content, strict=True)
            columns = reader.fieldnames or []
            if set(columns) not in ({"path", "label"}, set(_COLUMNS)) or len(columns) != len(set(columns)):
                raise InputError(
                    f"{file} has the columns {', '.join(map(repr, columns)) or 'none'}: it needs path, label and, if "
                    "wanted, split, with commas between them"
                )
            for row in reader:
                if None in row or not all((value or "").strip() for value in row.values()):
                    raise InputError(f"{file}, line {reader.line_num}: not {len(columns)} filled cells")
                yield reader.line_num, {name: value.strip() for name, value in row.items()}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} cannot be read as a CSV in UTF-8: {error}") from error


def assign(entries: Sequence[Entry], shares: dict[str, float], seed: int) -> dict[str, list[int]]:
    """Set the splits that no file is in apart from the training files, each class in proportion.

    Which files depends on their names and the seed alone, and hardly on each other: the files of a class are put into
    the order of a hash, and the first make up the first split that is missing. Where one file goes or comes, at most
    one of its class moves across each border, while a new random split would test with what has been trained on.

    Args:
        entries: the files.
        shares: of a class's training files for each split that is missing; at least one file each.
        seed: of the order.

    Returns:
        Positions in ``entries``, ascending, for "train", "validation" and "test".
    """
    splits: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    classes: dict[str, list[int]] = defaultdict(list)
    for position, entry in enumerate(entries):
        (classes[entry.label] if entry.split == "train" else splits[entry.split]).append(position)
    for positions in classes.values():
        rest = sorted(positions, key=lambda position: _rank(entries[position].name, seed))
        for name, share in shares.items():
            count = max(1, round(share * len(positions)))
            splits[name] += rest[:count]
            rest = rest[count:]
        splits["train"] += rest
    return {name: sorted(positions) for name, positions in splits.items()}


def _rank(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} ".encode() + os.fsencode(name)).digest()
