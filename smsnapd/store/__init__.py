"""Where objects lie: a URL picks the store, and only its module is imported.

>>> store = open_store(StoreSettings("memory://example"))
>>> store.put("keys/slots/one", b"sealed")
>>> store.get("keys/slots/one")
b'sealed'
"""

from __future__ import annotations

from smsnapd.errors import UsageError
from smsnapd.store.base import Buffer, ObjectInfo, Store, StoreSettings
from smsnapd.store.pacing import download_pacer_for, pacer_for

__all__ = ["Buffer", "ObjectInfo", "Store", "StoreSettings", "open_store"]


def open_store(settings: StoreSettings) -> Store:
    """The store that `settings.url` names. Nothing is reached or made before the first call to it.

    `memory://name` is one store per name and process. Raises `UsageError` if the URL is wrong.
    """
    scheme, separator, rest = settings.url.partition("://")
    if settings.as_of_s and scheme != "s3":
        why = "only a versioned S3 bucket remembers what it held"
        raise UsageError(
            "open the repository as it was", why, "leave out the time, or name an s3:// repository"
        )
    if separator and scheme == "file":
        from smsnapd.store.directory import open_directory

        return open_directory(rest, pacer_for(settings), download_pacer_for(settings))
    if separator and scheme == "s3":
        from smsnapd.store.s3 import open_s3  # imports boto3: 0.7 s, 60 MB

        store = open_s3(settings)
        return store.at(settings.as_of_s) if settings.as_of_s else store
    if separator and scheme == "memory":
        from smsnapd.store.memory import open_memory

        return open_memory(rest)
    # The rest of the URL is not repeated: people put passwords there.
    shown = f"the scheme {scheme!r} is not known" if separator else "it has no scheme"
    raise UsageError(
        "open the repository's URL", shown, "give s3://bucket/prefix, or file:///directory with three slashes"
    )
