"""A versioned bucket as it was at a moment: what was deleted or overwritten since is there again.

Of each key the newest version that is not newer than the moment counts, unless it is a delete marker. S3
tells times to the second. Only the bucket's own rules can have removed a version for good (lifecycle).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple, NoReturn

from smsnapd.errors import DeniedError, ObjectMissingError
from smsnapd.store.base import Buffer, ObjectInfo, Store
from smsnapd.store.names import check_name, check_prefix, is_name
from smsnapd.store.pacing import Pacer
from smsnapd.store.s3_download import read_answer
from smsnapd.store.s3_uploads import Call


class _Version(NamedTuple):
    """A version of an object; of a delete marker `id` is ""."""

    stored_s: float
    id: str
    size: int


class _Level(NamedTuple):
    """What lies directly below a prefix: the version of each key that counts, and the prefixes below."""

    newest: dict[str, _Version]
    prefixes: set[str]


class PastStore:
    """A `Store` of what was in `bucket` below `base` at `moment_s`, seconds since the epoch; read only.

    `call` does something with the SDK's client; `present` is the same place as it is now. Everything that
    would write raises `DeniedError`.
    """

    def __init__(
        self,
        present: Store,
        call: Call,
        bucket: str,
        base: str,
        moment_s: float,
        pacer: Pacer | None = None,
        page_keys: int = 1000,
    ) -> None:
        self.url = present.url
        self._present = present
        self._call = call
        self._bucket = bucket
        self._base = base
        self._moment_s = moment_s
        self._pacer = pacer
        self._page_keys = page_keys

    def __repr__(self) -> str:
        return f"PastStore({self.url!r}, {self._when})"

    def get(self, name: str) -> bytes:
        """The whole object as it was."""
        return self.get_versioned(name)[0]

    def get_versioned(self, name: str) -> tuple[bytes, str]:
        """The whole object as it was, and its version id ("null" if it had none).

        Most objects never change: that which is there now is asked for first, and counts if it is old enough.
        """
        check_name("read", name)
        key = self._base + name
        what = f"read s3://{self._bucket}/{key} as of {self._when}"
        with contextlib.suppress(ObjectMissingError):
            present = self._get(what, "s3:GetObject", {"Key": key})
            if present is not None:
                return present
        version = self._level(key).newest.get(key)
        past = None
        if version is not None and version.id:
            past = self._get(what, "s3:GetObjectVersion", {"Key": key, "VersionId": version.id})
        if past is None:
            raise ObjectMissingError(what, "there was no such object")
        return past

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects that were there, sorted by name; what lies in one directory is in memory at a time."""
        check_prefix(prefix)
        for key, size in self._below(self._base + prefix):
            name = key[len(self._base) :]
            if is_name(name):
                yield ObjectInfo(name, size)

    def children(self, prefix: str) -> tuple[str, ...]:
        """What was one level below `prefix`; of a directory it is looked for one object that was there."""
        check_prefix(prefix)
        level = self._level(self._base + prefix)
        keys = [key for key, version in level.newest.items() if version.id]
        keys += [below for below in level.prefixes if next(self._below(below), None) is not None]
        found = (key[len(self._base) :] for key in sorted(keys))
        return tuple(name for name in found if is_name(name.removesuffix("/")))

    def now(self) -> float:
        """The store's clock, which stands for the present."""
        return self._present.now()

    def barrier(self) -> None:
        """Nothing was put."""

    def close(self) -> None:
        """Close the connections."""
        self._present.close()

    def put(self, name: str, data: Buffer) -> None:
        """Refuse."""
        self._refuse(f"store {name}")

    def replace(self, name: str, data: Buffer, version: str | None) -> str:
        """Refuse."""
        self._refuse(f"replace {name}")

    def delete(self, name: str) -> None:
        """Refuse."""
        self._refuse(f"delete {name}")

    def locked_until(self, name: str) -> float:
        """Whether it could be deleted is a matter of the present."""
        return self._present.locked_until(name)

    def lock(self, name: str, until_s: float) -> None:
        """Refuse."""
        self._refuse(f"lock {name}")

    def try_delete(self, below: str = "") -> None:
        """Refuse."""
        self._refuse("delete objects")

    def abandon_uploads(self, below: str, before_s: float) -> int:
        """Refuse."""
        self._refuse("abort uploads")

    def _refuse(self, doing: str) -> NoReturn:
        why = f"it was opened as it was at {self._when}, which nobody can change"
        raise DeniedError(f"{doing} in {self.url}", why, "leave out --repository-at")

    @property
    def _when(self) -> str:
        return f"{datetime.fromtimestamp(int(self._moment_s), UTC):%Y-%m-%dT%H:%M:%SZ}"

    def _get(self, what: str, permission: str, key: dict[str, str]) -> tuple[bytes, str] | None:
        """Content and version id; None if it is newer than the moment."""

        def use(client: Any) -> tuple[bytes, str] | None:
            response = client.get_object(Bucket=self._bucket, **key)
            if not self._is_past(response["LastModified"].timestamp()):
                response["Body"].close()
                return None
            return read_answer(response, what, self._pacer), str(response.get("VersionId", "null"))

        found: tuple[bytes, str] | None = self._call(what, permission, use)
        return found

    def _is_past(self, stored_s: float) -> bool:
        return int(stored_s) <= self._moment_s

    def _below(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Keys and sizes, sorted bytewise: level by level, since not every server lists in that order."""
        level = self._level(prefix)
        for key in sorted({*level.newest, *level.prefixes}):
            if key in level.prefixes:
                yield from self._below(key)
            elif level.newest[key].id:
                yield key, level.newest[key].size

    def _level(self, prefix: str) -> _Level:
        level = _Level({}, set())
        more: dict[str, str] = {}
        while True:
            answer = self._page(prefix, more)
            self._take_in(answer, level)
            if not answer.get("IsTruncated"):
                return level
            more = {"KeyMarker": answer["NextKeyMarker"]}
            if answer.get("NextVersionIdMarker"):
                more["VersionIdMarker"] = answer["NextVersionIdMarker"]

    def _page(self, prefix: str, more: dict[str, str]) -> Any:
        what = f"list versions in s3://{self._bucket}/{prefix}"
        arguments = {"Bucket": self._bucket, "Prefix": prefix, "Delimiter": "/", **more}
        return self._call(
            what,
            "s3:ListBucketVersions",
            lambda client: client.list_object_versions(MaxKeys=self._page_keys, **arguments),
        )

    def _take_in(self, answer: Any, level: _Level) -> None:
        """Keep of each key the newest version that is old enough.

        Of those of one second it is the first listed, since S3 lists the newest first, and a version rather
        than a delete marker, for which the SDK does not tell the order: it is better to have too much.
        """
        level.prefixes.update(item["Prefix"] for item in answer.get("CommonPrefixes", ()))
        versions = [(item, item["VersionId"], item["Size"]) for item in answer.get("Versions", ())]
        markers = [(item, "", 0) for item in answer.get("DeleteMarkers", ())]
        for item, version_id, size in (*versions, *markers):
            found = _Version(item["LastModified"].timestamp(), version_id, size)
            best = level.newest.get(item["Key"])
            if self._is_past(found.stored_s) and (best is None or _is_newer(found, best)):
                level.newest[item["Key"]] = found


def _is_newer(one: _Version, other: _Version) -> bool:
    if bool(one.id) != bool(other.id) and one.stored_s == other.stored_s:
        return bool(one.id)
    return one.stored_s > other.stored_s
