"""Images that are read as they are needed: from memory, from a file, or decoded anew every time."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from lightning.pytorch.utilities import rank_zero_only
from rich import get_console
from rich.progress import track
from torch import Tensor

from lightconv.data.decoding import UnreadableError, decode
from lightconv.errors import InputError

Read = Callable[[Tensor], Tensor]
Bad = dict[int, str]

_AT_ONCE = 256  # decoded images that wait to be stored
_LONG = 500  # files from which on a bar shows how far it is


class StoredImages:
    """Images that are indexed like a tensor, though they are not one.

    Args:
        read: reads the images of some rows of the store.
        rows: those that belong to this set.
    """

    def __init__(self, read: Read, rows: Int64[Tensor, " n"]) -> None:
        self.read, self.rows = read, rows

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)

    def __getitem__(self, chosen: Any) -> UInt8[Tensor, "*n c h w"]:
        """Read what is chosen as elements of a tensor's first axis are: by number, slice, list, tensor or mask."""
        rows = self.rows[chosen]
        return self.read(rows) if rows.ndim else self.read(rows[None])[0]

    def only(self, chosen: Any) -> "StoredImages":
        """A part of these, without reading any."""
        return StoredImages(self.read, self.rows[chosen])


class Decoder:
    """Decodes files, several at a time: PIL lets other threads run meanwhile.

    Args:
        side: height and width of the images.
        fit: see ``lightconv.data.decoding.decode``.
        workers: threads; None for a few more than there are processors.
        strict: raise for the first file that cannot be read.
    """

    def __init__(self, side: int, fit: str, workers: int | None = None, strict: bool = False) -> None:
        self.side, self.fit, self.workers, self.strict = side, fit, workers, strict

    def images(self, paths: Sequence[Path], bad: Bad) -> Iterator[tuple[int, UInt8[Tensor, "3 h w"]]]:
        """Decode files in their order.

        Args:
            paths: the files.
            bad: where the positions of those that cannot be read are noted, with the reason.

        Yields:
            The position and the image of each that can.

        Raises:
            InputError: for the first that cannot be read, if ``strict``.
        """
        results = self._results(paths)
        first = getattr(rank_zero_only, "rank", 0) == 0
        silent = len(paths) < _LONG or not first or not get_console().is_terminal
        what = f"decoding {len(paths):,} images"
        for position, result in enumerate(track(results, what, len(paths), transient=True, disable=silent)):
            if isinstance(result, Tensor):
                yield position, result
            elif self.strict:
                raise InputError(f"{paths[position]}: {result}. data.on_error=skip leaves such files out")
            else:
                bad[position] = result

    def batch(self, paths: Sequence[Path], rows: Int64[Tensor, " n"]) -> UInt8[Tensor, "n 3 h w"]:
        """Decode the files at some positions.

        Raises:
            InputError: for one that cannot be read.
        """
        chosen = [paths[row] for row in rows.tolist()]
        images = torch.empty(len(chosen), 3, self.side, self.side, dtype=torch.uint8)
        with ThreadPoolExecutor(self.workers) as pool:
            for position, result in enumerate(pool.map(self._image_or_reason, chosen)):
                if not isinstance(result, Tensor):
                    raise InputError(f"{chosen[position]}: {result}. It could be read when the run began")
                images[position] = result
        return images

    def _results(self, paths: Sequence[Path]) -> Iterator[Tensor | str]:
        remaining = iter(paths)
        with ThreadPoolExecutor(self.workers) as pool:
            while chunk := list(islice(remaining, _AT_ONCE)):
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", module="PIL")  # of tags that nobody asks for
                    results = list(pool.map(self._image_or_reason, chunk))
                yield from results

    def _image_or_reason(self, path: Path) -> Tensor | str:
        try:
            return decode(path, self.side, self.fit)
        except UnreadableError as reason:
            return str(reason)


def in_memory(paths: Sequence[Path], decoder: Decoder) -> tuple[Read, Bad]:
    """Decode all files once and keep the images; rows of bad files stay unused.

    Raises:
        InputError: if memory does not suffice, or for a file that cannot be read, if the decoder is strict.
    """
    bad: Bad = {}
    shape = (len(paths), 3, decoder.side, decoder.side)
    try:
        images = torch.empty(shape, dtype=torch.uint8)
    except RuntimeError as error:
        size = math.prod(shape) / 1e9
        raise InputError(f"{size:,.0f} GB of images do not fit into memory: choose data.cache=disk or none") from error
    for row, image in decoder.images(paths, bad):
        images[row] = image
    return partial(torch.index_select, images, 0), bad


def as_needed(paths: Sequence[Path], decoder: Decoder) -> tuple[Read, Bad]:
    """Keep nothing: decode all files once to know the bad ones, and then every time that they are asked for."""
    bad: Bad = {}
    for _ in decoder.images(paths, bad):
        pass
    return partial(decoder.batch, paths), bad
