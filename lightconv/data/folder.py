"""A person's own images: a folder with a sub-folder a class, or a CSV of paths and labels."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from platformdirs import user_cache_path

from lightconv.data.base import ImageData, Split
from lightconv.data.decoding import FITS
from lightconv.data.disk import on_disk
from lightconv.data.listing import Entry, assign, class_folders, table
from lightconv.data.stored import Bad, Decoder, Read, StoredImages, as_needed, in_memory
from lightconv.errors import InputError, InputWarning

_CHOICES = {"fit": FITS, "on_error": ("skip", "raise"), "cache": ("memory", "disk", "none")}
_NAMED = 20  # bad files in the warning


class ImageFolder(ImageData):
    """Image files as RGB squares, in splits that hardly change where files come and go.

    ``root`` has a sub-folder a class, with images at any depth; or train/ and, if wanted, val/ or validation/, and
    test/, which have such sub-folders each. What is not there of validation and test images is set apart from the
    training images, each class in proportion, by a hash of file names (see ``lightconv.data.listing.assign``).

    Every file is decoded once before training starts, whatever its name ends with. What is no image is left out, with
    a warning that names it and says why. Channels are normalised by ImageNet's mean and std, unless
    ``preprocessing`` has others; it then also has the size, in place of ``image_size``.

    Args:
        root: the folder.
        labels: a CSV with the columns path, relative to ``root`` or else to the CSV, label and, if wanted, split
            (train, validation or test), in place of sub-folders.
        classes: their names in the order of labels; alphabetical by default. A run's own configuration has them, so
            that a network's outputs keep their names; a file of another class is an error.
        image_size: height and width to which images are brought.
        fit: how: "crop" cuts the longer side, "squash" keeps everything and changes shapes.
        validation: share of the training images to validate with, if there are no others.
        test: share to test with, if there are no others; 1 to test with all.
        split_seed: of these choices; a run's ``seed`` does not change them.
        on_error: "skip" files that cannot be read, or "raise" for the first.
        cache: keep decoded images in "memory"; on "disk", in the user's cache directory, for the next run too; or
            "none": decode every batch anew.
        cache_dir: where on disk instead.
        workers: threads that decode; by default a few more than there are processors.
        options: ImageData's arguments.

    Attributes:
        bad_files: names of the files that were left out, and why.

    Raises:
        InputError: when training or testing starts, if the folder or the CSV is not as described, or no image is left
            of a class or to train, validate or test with.
    """

    image_shape = (3, 224, 224)
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(
        self,
        root: str | Path | None = None,
        labels: str | Path | None = None,
        classes: Sequence[str] | None = None,
        image_size: int = 224,
        fit: str = "crop",
        validation: float = 0.15,
        test: float = 0.15,
        split_seed: int = 0,
        on_error: str = "skip",
        cache: str = "memory",
        cache_dir: str | Path | None = None,
        workers: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root, self.labels = (Path(path).expanduser() if path else None for path in (root, labels))
        self.validation, self.test, self.split_seed = validation, test, split_seed
        _check_settings(self, image_size, workers, fit=fit, on_error=on_error, cache=cache)
        if options.get("preprocessing") is None:
            self.image_shape = (3, image_size, image_size)
        self.cache = cache
        self.cache_dir = (
            Path(cache_dir).expanduser() if cache_dir else user_cache_path("lightconv", appauthor=False) / "images"
        )
        self.decoder = Decoder(self.image_shape[1], fit, workers, strict=on_error == "raise")
        self.bad_files: dict[str, str] = {}
        self._classes = None if classes is None else tuple(map(str, classes))

    @cached_property
    def listing(self) -> tuple[tuple[str, ...], list[Entry]]:
        """The classes, and the files with their labels, none of which has been opened yet.

        Raises:
            InputError: if there are none, or they are of other classes than those given.
        """
        if self.labels:
            found, entries = table(self.labels, self.root)
        elif self.root:
            found, entries = class_folders(self.root)
        else:
            raise InputError("ImageFolder has no folder: give one as data.root=FOLDER, or data.labels=FILE.csv")
        classes = tuple(found) if self._classes is None else self._classes
        if unknown := sorted(set(found) - set(classes)):
            raise InputError(
                f"{self._source} has classes that the network has not: {', '.join(unknown)}; it has "
                f"{', '.join(classes)}"
            )
        return classes, entries

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the classes in the order of their labels."""
        return self.listing[0] if self._classes is None else self._classes

    @property
    def _source(self) -> Path | None:
        return self.labels or self.root

    def setup(self, stage: str) -> None:
        """Read what the stage needs, and make sure that there are images for it."""
        super().setup(stage)
        needed = {"fit": ("train", "validation", "test"), "validate": ("validation",)}.get(stage, ("test",))
        for name in needed:
            if not len(self.split(name)[1]):
                raise InputError(f"{self._source}: no image is left for the {name} split")
        if stage == "fit":
            self._check_classes()

    def load(self, stage: str) -> dict[str, Split]:
        """Decode everything, or for testing alone the files that are there for testing alone."""
        entries = self.listing[1]
        given = {entry.split for entry in entries}
        part = "test" if stage == "test" and "test" in given else "all"
        if part == "test":
            entries = [entry for entry in entries if entry.split == "test"]
        read, bad = self._read([entry.path for entry in entries], part)
        self.bad_files = {entries[row].name: reason for row, reason in bad.items()}
        good = torch.tensor([row for row in range(len(entries)) if row not in bad], dtype=torch.long)
        self._report(len(entries), len(good))
        shares = {"test": self.test, "validation": self.validation}
        missing = {name: share for name, share in shares.items() if name not in given}
        splits = assign([entries[row] for row in good.tolist()], missing, self.split_seed)
        label = {name: number for number, name in enumerate(self.classes)}
        labels = torch.tensor([label[entries[row].label] for row in good.tolist()], dtype=torch.long)
        wanted = ("test",) if stage == "test" else tuple(splits)
        return {name: (StoredImages(read, good[splits[name]]), labels[splits[name]]) for name in wanted}

    def _read(self, paths: list[Path], part: str) -> tuple[Read, Bad]:
        if not paths or self.cache == "none":
            return as_needed(paths, self.decoder)
        if self.cache == "memory":
            return in_memory(paths, self.decoder)
        assert self._source
        whose = repr([self._source.resolve(), self.root and self.root.resolve(), part, self.decoder.side])
        return on_disk(paths, self.decoder, self.cache_dir / hashlib.sha256(whose.encode()).hexdigest()[:32])

    def _report(self, files: int, good: int) -> None:
        named = [f"  {_printable(name)}: {reason}" for name, reason in self.bad_files.items()]
        lines = named[:_NAMED] + ([f"  and {len(named) - _NAMED:,} more"] if len(named) > _NAMED else [])
        if not good:
            raise InputError("\n".join([f"{self._source}: none of {files:,} files gives an image", *lines]))
        if named:
            left_out = f"{self._source}: {len(named):,} of {files:,} files give no image and are left out"
            rank_zero_warn("\n".join([left_out, *lines]), category=InputWarning)

    def _check_classes(self) -> None:
        counts = self.split("train")[1].bincount(minlength=len(self.classes))
        for name, count in zip(self.classes, counts.tolist(), strict=True):
            if not count:
                files = [entry for entry in self.listing[1] if entry.label == name]
                bad = sum(entry.name in self.bad_files for entry in files)
                raise InputError(
                    f"{self._source}: class {name} has {len(files)} files, of which {bad} give no image, and none is "
                    "left to train on beside those to validate and to test with"
                )


def _printable(name: str) -> str:
    return name if name.isprintable() else repr(name)


def _check_settings(data: ImageFolder, image_size: int, workers: int | None, **choices: str) -> None:
    for name, value in choices.items():
        if value not in _CHOICES[name]:
            raise InputError(f"{name}={value}: choose one of {', '.join(_CHOICES[name])}")
    for name, number in (("image_size", image_size), ("workers", workers)):
        if number is not None and number < 1:
            raise InputError(f"{name}={number}: give a whole number, at least 1")
    for name, share in (("validation", data.validation), ("test", data.test)):
        if not 0 < share <= 1:
            raise InputError(f"{name}={share}: a share is above 0, and at most 1")
