"""The connections of the SDK's client, which has no setting for what they hold unsent."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest
import urllib3.util.connection

from smsnapd.errors import StoreError
from smsnapd.store import StoreSettings
from smsnapd.store.s3 import open_s3
from smsnapd.store.s3_socket import keep_little_unsent


def hang_up(listening: socket.socket) -> None:
    listening.accept()[0].close()


def test_a_connection_holds_little_unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the SDK's insides are called now."""
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "x")
    unsent: list[int] = []
    connect = urllib3.util.connection.create_connection

    def watched(*arguments: Any, **more: Any) -> socket.socket:
        made = connect(*arguments, **more)
        unsent.append(made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT))
        return made

    monkeypatch.setattr("urllib3.util.connection.create_connection", watched)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=hang_up, args=(listening,))
        thread.start()
        endpoint = f"http://127.0.0.1:{listening.getsockname()[1]}"
        store = open_s3(StoreSettings("s3://bucket", endpoint_url=endpoint, attempts=1))
        with pytest.raises(StoreError):
            store.put("a", b"x")
        store.close()
        thread.join()
    assert unsent == [128 * 1024]


def test_another_sdk_is_no_error() -> None:
    keep_little_unsent(object())
