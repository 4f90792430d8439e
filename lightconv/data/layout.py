"""Find the splits in a folder of images: train/ and test/ by any of their usual names, in their usual places.

Published sets call them Train and Test, training_set and test_set, seg_train and seg_test, asl_alphabet_train and
asl_alphabet_test. Archives often wrap a folder in one of the same name.
"""

import os
import re
from collections import defaultdict
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from lightconv.errors import InputError, InputWarning

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "test": "test",
    "testing": "test",
}
# words beside a split's name, and names of folders that only wrap others
_NOISE = {"", "data", "image", "images", "img", "imgs", "folder", "split"}
_DEEPEST = 4  # links may lead in a circle
_UNLABELLED = {"pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled", "unsup", "unsupervised"}
# in lower case; names that begin with a dot are clutter too
_CLUTTER = {
    "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "__pycache__", "lost+found", "$recycle.bin",
    "recycler", "system volume information", "found.000", "@eadir", "@recycle", "@__thumb", "@tmp", "#recycle",
    "#snapshot", "network trash folder", "temporary items",
}  # fmt: skip


def is_clutter(name: str) -> bool:
    """Return True for files and folders that operating systems, file servers and editors leave behind."""
    return name.startswith(".") or name.lower() in _CLUTTER


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, in alphabetical order, without clutter."""
    try:
        with os.scandir(folder) as entries:  # asks the disk about links alone, not about each of a million images
            names = [entry.name for entry in entries if is_folder(entry) and not is_clutter(entry.name)]
        return [folder / name for name in sorted(names)]
    except OSError as error:
        raise unreadable(error) from error


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return True for a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def unreadable(error: OSError) -> InputError:
    """Return the error about a folder that cannot be read: left out, its images would be missing from the set."""
    return InputError(f"{error.filename} cannot be read ({error.strerror}): give yourself access, or move it elsewhere")


def find_parts(root: Path) -> list[tuple[str, Path]]:
    """Return split and folder of each part of an image set; the whole as "train" if there are no split folders.

    Raises:
        InputError: If folders could be splits as well as classes.
    """
    root = _unwrap(root)
    splits, others = split_folders(root)
    if not splits:
        check_ambiguous(root)
        return [("train", root)]
    _check_others(root, splits, others)
    parts = []
    for folder, split in splits.items():
        inner = _unwrap(folder, split)
        if not subfolders(inner) and len(splits) > 1 and split != "train":
            rank_zero_warn(
                f"{inner} has no sub-folders with the names of classes: its images are not used", category=InputWarning
            )
        parts.append((split, inner))
    return parts


def class_parts(folder: Path) -> list[tuple[str, Path]]:
    """Return split and folder of each part of a class: cat/train and cat/test, or the whole folder as "train"."""
    splits, others = split_folders(folder)
    if len(splits) < 2:
        return [("train", folder)]
    _check_others(folder, splits, others)
    loose = sorted(path.name for path in folder.iterdir() if path.is_file() and not is_clutter(path.name))
    if loose:
        rank_zero_warn(
            f"{folder} has {len(loose):,} files beside its splits, such as {loose[0]}: they are not used",
            category=InputWarning,
        )
    return [(split, part) for part, split in splits.items()]


def split_folders(root: Path) -> tuple[dict[Path, str], list[Path]]:
    """Return the folders of a folder that are splits, and the others.

    Folders are splits if their names differ in nothing but the split's name, and if they are train and another one, or
    all there are. A class may be called "train".
    """
    folders = subfolders(root)
    groups: dict[str, dict[Path, str]] = defaultdict(dict)  # by the rest of the name
    for folder in folders:
        split, rest = _parse(folder.name)
        if split:
            groups[rest][folder] = split
    for rest, group in groups.items():
        several = len(set(group.values())) > 1 and "train" in group.values()
        labelled = any(subfolders(folder) for folder, split in group.items() if split == "train")
        if (several and labelled) or (len(group) == len(folders) and (several or not rest)):
            return group, [folder for folder in folders if folder not in group]
    return {}, folders


def _parse(name: str) -> tuple[str | None, str]:
    """Return the split that a folder's name names, if any, and the rest of the name without words of no meaning."""
    words = _words(name)
    splits = [word for word in words if word in SPLITS]
    rest = [word for word in words if word not in SPLITS and word not in _NOISE]
    split = SPLITS[splits[0]] if len(splits) == 1 else None
    return split, " ".join(rest)


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case without numbers and "set": TrainSet and train_set give train."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+|[^\W\d_]", name)
    return [word.lower().removesuffix("set") for word in words]


def _unwrap(folder: Path, split: str | None = None, depth: int = _DEEPEST) -> Path:
    """Return the folder within folders that hold nothing but it: photos/photos/train, seg_train/seg_train/forest."""
    inner = subfolders(folder)
    if depth == 0 or len(inner) != 1 or not subfolders(inner[0]):
        return folder
    innermost = _unwrap(inner[0], split, depth - 1)
    inner_split, rest = _parse(inner[0].name)
    nameless = bool(_words(inner[0].name)) and not (inner_split or rest)  # not a class called 0
    if nameless or (split and inner_split == split):
        return innermost
    # any folder around splits is no class
    return folder if split or len(split_folders(innermost)[0]) < 2 else innermost


def _check_others(root: Path, splits: dict[Path, str], others: list[Path]) -> None:
    """Warn of folders without labels beside the splits; raise for other folders there."""
    names = ", ".join(folder.name for folder in splits)
    for folder in others:
        if not subfolders(folder) or _UNLABELLED & set(_words(folder.name)):
            rank_zero_warn(f"{folder} lies beside the splits {names}: its images are not used", category=InputWarning)
        else:
            raise InputError(
                f"{root} has the folders {names}, which are splits, and {folder.name}, which is none: move it "
                "elsewhere, or list the images in a CSV, data.labels=FILE.csv"
            )


def check_ambiguous(root: Path) -> None:
    """Raise if a folder with the name of a split holds classes that lie beside it, or in a folder beside it."""
    folders = subfolders(root)
    for folder in folders:
        split, _ = _parse(folder.name)
        within = {inner.name for inner in subfolders(folder)} if split or len(folders) == 1 else set()
        if not within:
            continue
        others: set[str] = set()
        for other in folders:
            if other != folder:
                others |= {other.name, *(inner.name for inner in subfolders(other))}
        if within & others:
            raise InputError(
                f"{folder} looks like a split: it holds folders with the names of others beside it "
                f"({', '.join(sorted(within & others))}). Name the splits train, val and test, or list the images in a "
                "CSV, data.labels=FILE.csv"
            )
        if len(within) > 1:
            names = ", ".join(sorted(within))
            rank_zero_warn(
                f"{folder} counts as one class; if its folders {names} are the classes, set it by data.root",
                category=InputWarning,
            )
