"""The SDK's client: made at first use, once in a process, and anew when its credentials are found expired."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import boto3
import botocore.exceptions as sdk
from botocore.config import Config

from smsnapd.errors import StoreError
from smsnapd.store.base import StoreSettings
from smsnapd.store.s3_answers import one_line
from smsnapd.store.s3_region import region_for

MAX_CONNECTIONS: Final = 16
RENEWED_AGAIN_S: Final = 60.0
"""Credentials that were read this short a while ago are not read again: they are what there is."""


class Clients:
    """Holds the client that `make` makes, or another one in its place. For several threads."""

    def __init__(self, make: Callable[[], Any], clock: Callable[[], float] = time.monotonic) -> None:
        self._make = make
        self._clock = clock
        self._lock = threading.Lock()
        self._made: tuple[int, Any] | None = None
        self._renewed_s = float("-inf")

    def current(self) -> Any:
        """This process's client: connections must not be shared across a fork."""
        made = self._made
        if made is not None and made[0] == os.getpid():
            return made[1]
        with self._lock:
            if self._made is None or self._made[0] != os.getpid():
                self._made = (os.getpid(), self._make())
            return self._made[1]

    def renew(self, expired: Any) -> bool:
        """Have the next client read the credentials anew, as the one at hand has `expired` ones.

        The SDK renews what it knows the end of; not a file that somebody has logged in to since, or a session
        that was revoked. False if they were read just now: then it is no use.
        """
        with self._lock:
            if self._made is None or self._made[1] is not expired:
                return True  # another thread has done it
            if self._clock() - self._renewed_s < RENEWED_AGAIN_S:
                return False
            self._renewed_s = self._clock()
            self._made = None  # not closed: other threads may be amid a request
            return True

    def close(self) -> None:
        """Close the connections. The next call opens new ones."""
        with self._lock:
            if self._made is not None and self._made[0] == os.getpid():
                self._made[1].close()
            self._made = None


def new_client(settings: StoreSettings, url: str) -> Any:
    """A client for `settings`; raises a permanent `StoreError` if they cannot be used."""
    what = f"reach {url}"
    if settings.ca_bundle and not os.path.isfile(settings.ca_bundle):
        why = f"there is no file {settings.ca_bundle}"
        raise StoreError(what, why, "set ca_bundle to a file of certificates")
    try:
        session = boto3.session.Session(profile_name=settings.profile or None)
        region = region_for(settings, session.region_name, what)
        plain = settings.endpoint_url.lower().startswith("http:")
        client = _client_in(session, settings, region, sign_payload=plain)
        if client.meta.endpoint_url.startswith("https:") or settings.endpoint_url:
            return client
        client.close()  # the environment or the profile names a server without TLS
        return _client_in(session, settings, region, sign_payload=True)
    except (sdk.BotoCoreError, ValueError) as error:
        why = one_line(str(error))
        raise StoreError(what, why, "check region, endpoint_url and ~/.aws/config") from error


def _client_in(session: Any, settings: StoreSettings, region: str, *, sign_payload: bool) -> Any:
    """A client; with `sign_payload` every body is hashed for its signature, which only TLS makes needless."""
    config = Config(
        connect_timeout=settings.connect_timeout_s,
        read_timeout=settings.read_timeout_s,
        max_pool_connections=MAX_CONNECTIONS,
        retries={"total_max_attempts": 1, "mode": "standard"},
        tcp_keepalive=True,
        user_agent_extra="smsnapd",
        request_checksum_calculation=settings.checksums,
        response_checksum_validation=settings.checksums,
        s3={
            "addressing_style": "path" if settings.path_style else "auto",
            "payload_signing_enabled": sign_payload,
        },
    )
    return session.client(
        "s3",
        region_name=region,
        endpoint_url=settings.endpoint_url or None,
        verify=settings.ca_bundle or None,
        config=config,
    )
