"""Progress of a slow step: a bar in a terminal, a line now and then elsewhere, nothing while the step is quick."""

import sys
import time
from types import TracebackType

_QUIET_SECONDS = 2.0
_FIRST_LINE = 5.0  # seconds after which a file or a pipe gets the first line; the next ones after 10, 20, 40 ...


class SlowProgress:
    """Context manager that shows how many of some items are done.

    Args:
        description: the step, such as "decoding 2,000 images".
        total: number of items.
        enabled: False shows nothing.

    Example:
        >>> with SlowProgress("reading 3 files", total=3) as progress:
        ...     for _ in range(3):
        ...         progress.advance()
    """

    def __init__(self, description: str, total: int, enabled: bool = True) -> None:
        from rich import get_console  # noqa: PLC0415  loaded with the first slow step
        from rich.progress import Progress  # noqa: PLC0415

        self.description = description
        self.total = total
        self.enabled = enabled
        self._console = get_console()
        self._bar = Progress(console=self._console, transient=True)
        self._task = self._bar.add_task(description, total=total)
        self._done = 0
        self._shown = False
        self._started = time.monotonic()
        self._next_line = _FIRST_LINE

    def __enter__(self) -> "SlowProgress":
        """Start the clock."""
        self._started = time.monotonic()
        return self

    def advance(self) -> None:
        """Count one more item as done."""
        self._done += 1
        seconds = time.monotonic() - self._started
        if not self.enabled or seconds < _QUIET_SECONDS or self._done == self.total:
            return
        if self._console.is_terminal:
            if not self._shown:
                self._bar.start()
                self._shown = True
            self._bar.update(self._task, completed=self._done)
        elif seconds >= self._next_line:
            self._next_line = 2 * seconds
            left = seconds * (self.total - self._done) / self._done
            print(f"{self.description}: {self._done:,} done, {left:,.0f} seconds left", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar."""
        if self._shown:
            self._bar.stop()
