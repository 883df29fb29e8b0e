"""One order of listings, whatever the server's: bytewise by key, one page in memory at a time.

Some servers list directory by directory: `a/x` before `a-b`, which is not bytewise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from smsnapd.errors import StoreError


class Page(NamedTuple):
    """A part of a listing: keys and sizes, common prefixes, and the token of the next part or None."""

    keys: list[tuple[str, int]]
    prefixes: list[str]
    token: str | None


class AskPage(Protocol):
    """Asks the server for a page of what lies below `prefix`; `more` is arguments of ListObjectsV2."""

    def __call__(self, prefix: str, **more: str | int) -> Page:
        """The page; raises `StoreError`."""


class KeyOrder:
    """Lists keys through `ask`, in order. `bucket` is for messages. For several threads."""

    def __init__(self, ask: AskPage, bucket: str) -> None:
        self._ask = ask
        self._bucket = bucket
        self._bytewise: bool | None = None

    def keys(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Keys and sizes below `prefix`, sorted bytewise.

        One page is sorted here; of more, a server that does not list bytewise is asked level by level.
        """
        first = self._ask(prefix)
        if first.token is None:
            yield from sorted(first.keys)
        elif self._lists_bytewise(first):
            yield from self._flat(prefix, first)
        else:
            yield from self._levels(prefix)

    def _flat(self, prefix: str, page: Page) -> Iterator[tuple[str, int]]:
        last = ""
        while True:
            for key, size in page.keys:
                if key <= last:
                    raise StoreError(f"list s3://{self._bucket}/{prefix}", "the server lists out of order")
                last = key
                yield key, size
            if page.token is None:
                return
            page = self._ask(prefix, ContinuationToken=page.token)

    def level(self, prefix: str) -> list[tuple[str, int]]:
        """Keys and sizes right below `prefix`, sorted; what ends with "/" stands for the keys below that."""
        page = self._ask(prefix, Delimiter="/")
        found = page.keys + [(below, 0) for below in page.prefixes]
        while page.token is not None:
            page = self._ask(prefix, Delimiter="/", ContinuationToken=page.token)
            found += page.keys + [(below, 0) for below in page.prefixes]
        return sorted(found)

    def _levels(self, prefix: str) -> Iterator[tuple[str, int]]:
        for key, size in self.level(prefix):
            if key.endswith("/") and key != prefix:
                yield from self._levels(key)
            else:
                yield key, size

    def _lists_bytewise(self, page: Page) -> bool:
        """Whether the server's order is bytewise, found out once by asking what follows `directory.~`.

        "." comes just before "/", so bytewise it is the directory itself.
        """
        if self._bytewise is None:
            directory = next((key.rpartition("/")[0] for key, _ in page.keys if "/" in key), "")
            if not directory:
                return False
            parent = directory[: directory.rfind("/") + 1]
            following = self._ask(parent, StartAfter=f"{directory}.~", MaxKeys=1).keys
            self._bytewise = any(key.startswith(f"{directory}/") for key, _ in following)
        return self._bytewise
