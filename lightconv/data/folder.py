"""Your own images: a folder with one sub-folder per class, or a CSV of paths and labels."""

import hashlib
import warnings
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.utilities import rank_zero_warn
from platformdirs import user_cache_path

from lightconv.data.base import SPLIT_NAMES, ImageData, Split, SplitName, Stage, stratified_positions
from lightconv.data.decoding import FITS, Fit
from lightconv.data.disk import cache_on_disk
from lightconv.data.listing import Entry, assign_splits, list_class_folders, list_classes, read_table
from lightconv.data.overlap import find_same_files, find_same_images
from lightconv.data.stored import BadRows, Decoder, ReadRows, StoredImages, cache_in_memory, decode_every_time
from lightconv.errors import InputError, InputWarning

OnError = Literal["skip", "raise"]
Cache = Literal["memory", "disk", "none"]

_LISTED = 20  # files in a warning


class ImageFolder(ImageData):
    """Image files as RGB squares, in splits that stay nearly the same if files are added or removed.

    ``root`` has one sub-folder per class, with images at any depth. Or it has train/ and, optionally, val/ and test/,
    by any of their usual names, each with one sub-folder per class; see ``lightconv.data.layout``. Missing validation
    and test splits are set apart from the training images, each class in proportion, by a hash of file names; see
    ``lightconv.data.listing.assign_splits``.

    Every file is decoded once before training starts, whatever its suffix. Unreadable files are skipped, and a
    warning lists their names and reasons. Channels are normalised by ImageNet's mean and std. ``preprocessing``
    replaces mean, std and ``image_size``.

    Args:
        root: folder of the images.
        labels: CSV with the columns path, label and, optionally, split (train, validation or test), used instead of
            sub-folders. Paths are relative to ``root``, or to the CSV if there is no root.
        classes: class names in the order of their labels; None for alphabetical order. A run's configuration stores
            them, so that a network's outputs keep their names. A file of another class is an error.
        image_size: height and width of the images, in pixels.
        fit: way to make images square: "crop" cuts the longer side, "squash" keeps everything and changes shapes.
        validation: fraction of the training images to validate on, if there is no validation split.
        test: fraction of the training images to test on, if there is no test split; 1 tests on all images.
        split_seed: seed of these splits; a run's ``seed`` does not change them.
        on_error: "skip" unreadable files, or "raise" an error at the first.
        cache: place of decoded images: "memory"; "disk", the user's cache directory, for the next run too; or "none",
            which decodes every batch again.
        cache_dir: directory of cached images on disk, instead of the user's cache directory.
        workers: number of decoding threads; None for a few more than there are processors.
        options: arguments of `ImageData`.

    Attributes:
        bad_files: reasons why skipped files gave no image, by name.

    Shape:
        - splits: images (n, 3, image_size, image_size) uint8, labels (n,) int64.
        - batches: images (b, 3, image_size, image_size) float32, normalised; labels (b,) int64.

    Raises:
        InputError: If an argument is out of range. When training or testing starts: if the folder or the CSV is not as
            described, or a class or a split has no image.

    Example:
        >>> from tempfile import mkdtemp
        >>> from PIL import Image
        >>> root = Path(mkdtemp())
        >>> for name in ("cat", "dog"):
        ...     (root / name).mkdir()
        ...     for number in range(5):
        ...         Image.new("RGB", (40, 30)).save(root / name / f"{number}.png")
        >>> data = ImageFolder(root, image_size=32, batch_size=4)
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> data.classes, images.shape
        (('cat', 'dog'), torch.Size([4, 3, 32, 32]))
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
        fit: Fit = "crop",
        validation: float = 0.15,
        test: float = 0.15,
        split_seed: int = 0,
        on_error: OnError = "skip",
        cache: Cache = "memory",
        cache_dir: str | Path | None = None,
        workers: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        _check_choice("fit", fit, FITS)
        _check_choice("on_error", on_error, get_args(OnError))
        _check_choice("cache", cache, get_args(Cache))
        _check_count("image_size", image_size)
        _check_count("workers", workers)
        _check_fraction("validation", validation)
        _check_fraction("test", test)
        self.root = _expand(root)
        self.labels = _expand(labels)
        self.validation = validation
        self.test = test
        self.split_seed = split_seed
        self.cache = cache
        self.cache_dir = _expand(cache_dir) or user_cache_path("lightconv", appauthor=False) / "images"
        if options.get("preprocessing") is None:
            self.image_shape = (3, image_size, image_size)
        self.decoder = Decoder(self.image_shape[1], fit, workers, strict=on_error == "raise")
        self.bad_files: dict[str, str] = {}
        self._files: dict[str, list[Entry]] = {}  # by split
        self._compared = False  # whether the splits have been searched for the same images
        self._classes = None if classes is None else tuple(map(str, classes))

    @cached_property
    def listing(self) -> tuple[tuple[str, ...], list[Entry]]:
        """Classes, and files with their labels; no file has been opened yet.

        Raises:
            InputError: If there are no files, or a file's class is not among ``classes``.
        """
        if self.labels:
            names, entries = read_table(self.labels, self.root)
        elif self.root:
            names, entries = list_class_folders(self.root)
        else:
            raise InputError("ImageFolder has no folder: set data.root=FOLDER, or data.labels=FILE.csv")
        classes = tuple(names) if self._classes is None else self._classes
        unknown = sorted(set(names) - set(classes))
        if unknown:
            raise InputError(
                f"{self._source} has classes unknown to the network: {', '.join(unknown)}; it knows "
                f"{', '.join(classes)}. Remove their files, or train a network on all classes"
            )
        return classes, entries

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Class names in the order of their labels; folders are not searched for files yet."""
        if self._classes is not None:
            return self._classes
        if self.labels or self.root is None or "listing" in self.__dict__:
            return self.listing[0]
        return self._class_folders

    @cached_property
    def _class_folders(self) -> tuple[str, ...]:
        assert self.root
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InputWarning)  # the listing of all files warns
            return tuple(list_classes(self.root))

    @property
    def _source(self) -> Path | None:
        return self.labels or self.root

    def setup(self, stage: str) -> None:
        """Read the splits of a stage, and check that each of them and, to train, each class has an image."""
        super().setup(stage)
        needed: tuple[SplitName, ...] = ("test",)
        if stage == "fit":
            needed = SPLIT_NAMES
        elif stage == "validate":
            needed = ("validation",)
        for name in needed:
            _, labels = self.split(name)
            if not len(labels):
                raise InputError(f"{self._source}: no image is left for the {name} split: add images")
        if stage == "fit":
            self._check_classes()
            if not self._compared:
                self._check_overlap()
            self._compared = True

    def load(self, stage: Stage) -> dict[str, Split]:
        """Decode all files; to test, only the test split's if it has files of its own."""
        entries = self.listing[1]
        existing = {entry.split for entry in entries}
        part = "all"
        if stage == "test" and "test" in existing:
            part = "test"
            entries = [entry for entry in entries if entry.split == "test"]
        read, bad = self._read([entry.path for entry in entries], part)
        self.bad_files = {entries[row].name: reason for row, reason in bad.items()}
        good = [row for row in range(len(entries)) if row not in bad]
        self._report_bad_files(len(entries))
        readable = [entries[row] for row in good]
        splits = self._assign(readable)
        for name, positions in splits.items():
            self._files[name] = [readable[position] for position in positions]
        numbers = {name: number for number, name in enumerate(self.classes)}
        labels = torch.tensor([numbers[entry.label] for entry in readable], dtype=torch.long)
        # positions among the readable files -> rows of the store
        images = StoredImages(read, torch.tensor(good, dtype=torch.long))
        if stage == "test":
            splits = {"test": splits["test"]}
        return {name: (images.subset(positions), labels[positions]) for name, positions in splits.items()}

    def _assign(self, readable: list[Entry]) -> dict[str, list[int]]:
        existing = {entry.split for entry in self.listing[1]}
        shares = {"test": self.test, "validation": self.validation}
        missing = {name: share for name, share in shares.items() if name not in existing}
        return assign_splits(readable, missing, self.split_seed)

    def files(self, name: SplitName, bad: Collection[str] | None = None) -> list[Path]:
        """Return the files of a split.

        Args:
            name: name of the split.
            bad: names of files that give no image; None decodes all files to find them.
        """
        if bad is None:
            self.split(name)
            entries = self._files[name]
        else:
            readable = [entry for entry in self.listing[1] if entry.name not in bad]
            entries = [readable[position] for position in self._assign(readable)[name]]
        if name == "train" and self.training_images not in {None, len(entries)}:
            labels = torch.tensor([self.classes.index(entry.label) for entry in entries])
            _, chosen = stratified_positions(labels, self.training_images)
            entries = [entries[position] for position in chosen]
        return [entry.path for entry in entries]

    def _check_overlap(self) -> None:
        """Warn of validation and test images that are training images, too."""
        for name in SPLIT_NAMES[1:]:
            if self.cache == "none":  # images would be decoded once more
                same = find_same_files(self.files(name), self.files("train"))
            else:
                same = find_same_images(self.split(name)[0], self.split("train")[0])
            if same:
                warn_of_training_images([self._files[name][position].name for position in same], name)

    def _read(self, paths: list[Path], part: str) -> tuple[ReadRows, BadRows]:
        if self.cache == "none" or not paths:
            return decode_every_time(paths, self.decoder)
        if self.cache == "memory":
            return cache_in_memory(paths, self.decoder)
        assert self._source
        # one cache file per image set, part and size; cache_on_disk notices changed image files
        root = self.root and self.root.resolve()
        image_set = repr([self._source.resolve(), root, part, self.decoder.side])
        name = hashlib.sha256(image_set.encode()).hexdigest()[:32]
        return cache_on_disk(paths, self.decoder, self.cache_dir / f"{name}.images")

    def _report_bad_files(self, files: int) -> None:
        lines = []
        for name, reason in self.bad_files.items():
            lines.append(f"  {printable_line(name)}: {reason}")
        bad = len(lines)
        if bad > _LISTED:
            lines[_LISTED:] = [f"  and {bad - _LISTED:,} more"]
        if bad == files:
            raise InputError("\n".join([f"{self._source}: none of {files:,} files gives an image", *lines]))
        if bad:
            head = f"{self._source}: {bad:,} of {files:,} files give no image and are skipped"
            rank_zero_warn("\n".join([head, *lines]), category=InputWarning)

    def _check_classes(self) -> None:
        _, labels = self.split("train")
        counts = labels.bincount(minlength=len(self.classes))
        for name, count in zip(self.classes, counts.tolist(), strict=True):
            if count:
                continue
            files = [entry for entry in self.listing[1] if entry.label == name]
            bad = sum(entry.name in self.bad_files for entry in files)
            raise InputError(
                f"{self._source}: class {name} has {len(files)} files, of which {bad} give no image, and none is "
                "left to train on after setting validation and test images apart: add images of this class"
            )


def warn_of_training_images(names: Sequence[str], split: str) -> None:
    """Warn that images of another split are training images.

    Args:
        names: names of the images.
        split: name of the split.
    """
    lines = [f"{len(names):,} {split} images are training images, so that {split} figures are too good:"]
    lines += [f"  {printable_line(name)}" for name in names[:_LISTED]]
    if len(names) > _LISTED:
        lines.append(f"  and {len(names) - _LISTED:,} more")
    rank_zero_warn("\n".join(lines), category=InputWarning)


def printable_line(name: str) -> str:
    """Return a name as one line: with escapes if it holds line breaks or control codes."""
    return name if name.isprintable() else repr(name)


def _expand(path: str | Path | None) -> Path | None:
    return Path(path).expanduser() if path else None


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name}={value}: choose one of {', '.join(choices)}")


def _check_count(name: str, number: int | None) -> None:
    if number is not None and number < 1:
        raise InputError(f"{name}={number}: set a whole number, at least 1")


def _check_fraction(name: str, fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise InputError(f"{name}={fraction}: set a fraction above 0 and at most 1")
