"""List the files of an image set with label and split: from sub-folders, or from a CSV."""

import csv
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from PIL import Image

from lightconv.data.layout import SPLITS, class_parts, find_parts, is_clutter, subfolders, unreadable
from lightconv.errors import InputError

_LONGEST_LINE = 2**14  # characters of a CSV; paths have at most 4,096
_COLUMNS = ("path", "label", "split")


@dataclass(frozen=True)
class Entry:
    """One file of an image set.

    Attributes:
        name: path below the root, or as written in the CSV; messages and splits use it.
        path: location of the file.
        label: class name.
        split: "train", "validation" or "test".
    """

    name: str
    path: Path
    label: str
    split: str = "train"


def list_class_folders(root: Path) -> tuple[list[str], list[Entry]]:
    """List the files in sub-folders named after classes, at any depth.

    The class folders lie in ``root``, or in its sub-folders for training, validation and test; see
    ``lightconv.data.layout``. Or each class folder has such sub-folders. Names that begin with a dot, Thumbs.db and
    other clutter of operating systems are skipped.

    Returns:
        Class names in alphabetical order, and the files.

    Raises:
        InputError: If there are no class folders, or folders could be splits as well as classes.
    """
    parts = _find_classes(root)
    names: set[str] = set()
    entries: list[Entry] = []
    for split, part in parts:
        for folder in subfolders(part):
            names.add(folder.name)
            inner = class_parts(folder) if len(parts) == 1 else [(split, folder)]
            for class_split, place in inner:
                paths = walk_files(place)
                entries += [Entry(path.relative_to(root).as_posix(), path, folder.name, class_split) for path in paths]
    return sorted(names), entries


def list_classes(root: Path) -> list[str]:
    """List the class names of `list_class_folders` without looking for files."""
    return sorted({folder.name for _, part in _find_classes(root) for folder in subfolders(part)})


def _find_classes(root: Path) -> list[tuple[str, Path]]:
    """Return split and folder of each part of an image set; one of them at least holds class folders."""
    if not root.is_dir():
        raise InputError(f"{root} is no folder: set the folder of the class folders by data.root=FOLDER")
    parts = find_parts(root)
    if not any(subfolders(part) for _, part in parts):
        places = ", ".join(str(part) for _, part in parts)
        raise InputError(
            f"no sub-folders with the names of classes in {places}: put the images of each class into a folder, or the "
            "labels into a file, data.labels=FILE.csv"
        )
    return parts


def walk_files(top: Path) -> Iterator[Path]:
    """Yield the files below a folder, at any depth, each folder's in alphabetical order, without clutter.

    Folders named like image files are yielded too, so that they are reported as bad files.
    """
    entered = {os.path.realpath(top)}
    for folder, inner, names in os.walk(top, followlinks=True, onerror=_raise_unreadable):
        deeper = []
        for name in sorted(inner):
            real = os.path.realpath(os.path.join(folder, name))
            if Path(name).suffix.lower() in Image.registered_extensions():
                names.append(name)
            # links may lead in a circle, so each real folder is entered once
            elif not is_clutter(name) and real not in entered:
                entered.add(real)
                deeper.append(name)
        inner[:] = deeper  # os.walk enters these
        for name in sorted(names):
            if not is_clutter(name):
                yield Path(folder, name)


def _raise_unreadable(error: OSError) -> None:
    raise unreadable(error) from error


def read_table(file: Path, root: Path | None) -> tuple[list[str], list[Entry]]:
    """List the files of a CSV with the columns path, label and, optionally, split.

    Args:
        file: CSV in UTF-8.
        root: folder of relative paths; None for the folder of the CSV.

    Returns:
        Class names in alphabetical order, and the files, present or not.

    Raises:
        InputError: If the CSV cannot be read, has other columns, empty cells, or a file twice.
    """
    root = file.parent if root is None else root
    lines: dict[str, int] = {}
    entries = []
    for line, row in read_rows(file):
        path = root / row["path"]
        absolute = os.path.abspath(path)
        if absolute in lines:
            raise InputError(f"{file}, line {line}: {row['path']} is in line {lines[absolute]} already")
        lines[absolute] = line
        split = row.get("split", "train").lower()
        if split not in SPLITS:
            raise InputError(f"{file}, line {line}: unknown split {split!r}: choose train, val or test")
        entries.append(Entry(row["path"], path, row["label"], SPLITS[split]))
    if not entries:
        raise InputError(f"{file} lists no files: add a line with path and label for each image")
    return sorted({entry.label for entry in entries}), entries


def read_rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and cells of each row of a CSV, cells stripped and keyed by column.

    Raises:
        InputError: If the CSV cannot be read, has other columns, or empty cells.
    """
    try:
        if file.exists() and not file.is_file():  # opening a pipe would wait forever
            raise InputError(f"{file} is not a regular file: data.labels=FILE.csv names a CSV")
        with file.open(encoding="utf-8-sig", newline="") as content:  # spreadsheets write a byte order mark
            reader = csv.DictReader(read_lines(content), strict=True)
            columns = reader.fieldnames or []
            if sorted(columns) not in (["label", "path"], sorted(_COLUMNS)):
                listed = ", ".join(map(repr, columns)) or "none"
                raise InputError(
                    f"{file} has the columns {listed}: it needs path, label and, optionally, split, separated by commas"
                )
            for row in reader:
                # DictReader keys surplus cells by None and fills missing ones with None
                if None in row or not all((value or "").strip() for value in row.values()):
                    raise InputError(f"{file}, line {reader.line_num}: fill exactly {len(columns)} cells")
                yield reader.line_num, {name: value.strip() for name, value in row.items()}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} cannot be read as a CSV in UTF-8: {error}") from error


def read_lines(content: TextIO) -> Iterator[str]:
    """Yield the lines of a file, without reading one of any length into memory."""
    while line := content.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise csv.Error(f"a line has {_LONGEST_LINE:,} characters or more")
        yield line


def assign_splits(entries: Sequence[Entry], shares: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    """Set missing splits apart from the training files, each class in proportion.

    The assignment depends on file names and seed, and hardly on the other files. The files of a class are sorted by a
    hash of their names; the first ones form the first missing split. If a file is added or removed, at most one other
    file of its class crosses each border. A new random split would test on images that were trained on.

    Args:
        entries: files of the set.
        shares: fraction of a class's training files per missing split; at least one file each.
        seed: seed of the hash.

    Returns:
        Positions in ``entries``, ascending, for "train", "validation" and "test".
    """
    splits: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    training: dict[str, list[int]] = defaultdict(list)  # by class
    for position, entry in enumerate(entries):
        if entry.split == "train":
            training[entry.label].append(position)
        else:
            splits[entry.split].append(position)

    def rank(position: int) -> bytes:
        return hashlib.sha256(f"{seed} ".encode() + os.fsencode(entries[position].name)).digest()

    for positions in training.values():
        rest = sorted(positions, key=rank)
        for name, share in shares.items():
            count = max(1, round(share * len(positions)))
            splits[name] += rest[:count]
            rest = rest[count:]
        splits["train"] += rest
    return {name: sorted(positions) for name, positions in splits.items()}
