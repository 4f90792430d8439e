"""Images read on demand: from memory, from a file, or decoded again for every batch."""

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
from torch import Tensor

from lightconv.data.decoding import Fit, UnreadableError, decode
from lightconv.errors import InputError
from lightconv.progress import SlowProgress

ReadRows = Callable[[Tensor], Tensor]  # (n,) int64 rows -> (n, c, h, w) uint8 images
BadRows = dict[int, str]  # the reason why a row has no image

_CHUNK = 256  # decoded images held at a time; bounds memory


class StoredImages:
    """Images indexed like a tensor of shape (n, c, h, w), read when they are asked for.

    Args:
        read: function that reads rows of the store, (n,) int64 -> (n, c, h, w) uint8.
        rows: rows of the store in this set, one per image.
    """

    def __init__(self, read: ReadRows, rows: Int64[Tensor, " n"]) -> None:
        self.read = read
        self.rows = rows

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def __getitem__(self, chosen: Any) -> UInt8[Tensor, "*n c h w"]:
        """Read images by number, slice, list, tensor or mask, as a tensor's first axis is indexed."""
        rows = self.rows[chosen]
        if rows.ndim == 0:
            return self.read(rows[None])[0]
        return self.read(rows)

    def subset(self, chosen: Any) -> "StoredImages":
        """Select images without reading them."""
        return StoredImages(self.read, self.rows[chosen])


class Decoder:
    """Decoder of image files, several at a time in threads: PIL releases Python's lock while it decodes.

    Args:
        side: height and width of the decoded images, in pixels.
        fit: way to make images square; see ``lightconv.data.decoding.decode``.
        workers: number of threads; None for Python's default, a few more than there are processors.
        strict: raise an error at the first unreadable file.
    """

    def __init__(self, side: int, fit: Fit, workers: int | None = None, strict: bool = False) -> None:
        self.side = side
        self.fit = fit
        self.workers = workers
        self.strict = strict

    def decode_files(self, paths: Sequence[Path]) -> Iterator[UInt8[Tensor, "3 h w"] | str]:
        """Decode files in their order, with their progress if they take long.

        Yields:
            One image per file, or the reason why the file gives none.

        Raises:
            InputError: If a file is unreadable and the decoder is ``strict``.
        """
        for path, result in zip(paths, self._decode_chunks(paths), strict=True):
            if self.strict and isinstance(result, str):
                raise InputError(f"{path}: {result}. Remove the file, or skip unreadable files by data.on_error=skip")
            yield result

    def decode_rows(self, paths: Sequence[Path], rows: Int64[Tensor, " n"]) -> UInt8[Tensor, "n 3 h w"]:
        """Decode the files at some positions.

        Raises:
            InputError: If a file is unreadable.
        """
        chosen = [paths[row] for row in rows.tolist()]
        images = torch.empty(len(chosen), 3, self.side, self.side, dtype=torch.uint8)
        with ThreadPoolExecutor(self.workers) as pool:
            for position, result in enumerate(pool.map(self._decode_or_reason, chosen)):
                if isinstance(result, str):
                    raise InputError(f"{chosen[position]}: {result}. It could be read when the run began")
                images[position] = result
        return images

    def _decode_chunks(self, paths: Sequence[Path]) -> Iterator[Tensor | str]:
        remaining = iter(paths)
        is_main_process = getattr(rank_zero_only, "rank", 0) == 0
        progress = SlowProgress(f"decoding {len(paths):,} images", len(paths), enabled=is_main_process)
        with progress, ThreadPoolExecutor(self.workers) as pool:
            while chunk := list(islice(remaining, _CHUNK)):
                results = []
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", module="PIL")  # PIL warns about odd metadata, which is not used
                    for result in pool.map(self._decode_or_reason, chunk):
                        results.append(result)
                        progress.advance()
                yield from results

    def _decode_or_reason(self, path: Path) -> Tensor | str:
        try:
            return decode(path, self.side, self.fit)
        except UnreadableError as reason:
            return str(reason)


def cache_in_memory(paths: Sequence[Path], decoder: Decoder) -> tuple[ReadRows, BadRows]:
    """Decode all files once and keep the images in memory.

    Returns:
        A function that reads rows, and the bad rows, which stay unused.

    Raises:
        InputError: If the images do not fit into memory, or a file is unreadable and the decoder is strict.
    """
    bad: BadRows = {}
    shape = (len(paths), 3, decoder.side, decoder.side)
    try:
        images = torch.empty(shape, dtype=torch.uint8)
    except RuntimeError as error:
        size = math.prod(shape) / 1e9
        raise InputError(f"{size:,.0f} GB of images do not fit into memory: choose data.cache=disk or none") from error
    for row, result in enumerate(decoder.decode_files(paths)):
        if isinstance(result, str):
            bad[row] = result
        else:
            images[row] = result
    return partial(torch.index_select, images, 0), bad


def decode_every_time(paths: Sequence[Path], decoder: Decoder) -> tuple[ReadRows, BadRows]:
    """Keep no images: decode all files once to find the bad ones, and again whenever they are asked for.

    Returns:
        A function that reads rows, and the bad rows.

    Raises:
        InputError: If a file is unreadable and the decoder is strict.
    """
    bad: BadRows = {}
    for row, result in enumerate(decoder.decode_files(paths)):
        if isinstance(result, str):
            bad[row] = result
    return partial(decoder.decode_rows, paths), bad
