"""A sign of life for long work: a bar on a terminal, plain lines in a log. The first one comes before the work begins."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")
_SOON_S, _OFTEN, _LATER_S = 5, 12, 30  # so many lines come that soon one after another, then less often


class Bar:
    """How many of ``total`` are done; a context. ``done``: how many were before; ``shown``: False says nothing at all.

    Where stderr is no terminal, lines go to stdout with everything else that the command tells.
    """

    def __init__(
        self,
        total: int,
        description: str,
        unit: str = "case",
        done: int = 0,
        shown: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total, self.description, self.unit, self.done, self.clock = total, description, unit, done, clock
        self._plain = shown and not sys.stderr.isatty()
        self._tqdm = None
        if shown and not self._plain:
            from tqdm import tqdm

            before = f" ({done} were done before)" if done else ""
            self._tqdm = tqdm(total=total, initial=done, desc=description + before, unit=unit)
        self._began = self._told = clock()
        self._lines = 0
        if self._plain:
            self._tell(f" ({done} were done before)" if done else "")

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._tqdm is not None:
            self._tqdm.close()

    def update(self) -> None:
        """One more is done."""
        self.done += 1
        if self._tqdm is not None:
            self._tqdm.update()
        elif self._plain and self.clock() - self._told >= (_SOON_S if self._lines < _OFTEN else _LATER_S):
            self._tell(f", {self.clock() - self._began:.0f} s")

    def _tell(self, more: str) -> None:
        plural = "" if self.total == 1 else "s"
        print(f"{self.description}: {self.done} of {self.total} {self.unit}{plural}{more}", flush=True)
        self._told, self._lines = self.clock(), self._lines + 1


def bar(
    items: Iterable[T], description: str, unit: str = "case", shown: bool = True, done: int = 0, total: int | None = None
) -> Iterator[T]:
    """``items``, one after the other, each counted when the next is asked for. ``total``: of items that do not know."""
    if total is None:
        total = done + (len(items) if isinstance(items, Sized) else 0)
    with Bar(total, description, unit, done, shown) as counted:
        for item in items:
            yield item
            counted.update()
