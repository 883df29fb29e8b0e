"""How the S3 client's connections hold what is to be sent."""

from __future__ import annotations

import logging
import socket
from typing import Any, Final

_UNSENT_BYTES: Final = 128 * 1024
_log = logging.getLogger(__name__)


def keep_little_unsent(client: Any) -> None:
    """Have the kernel hold little that is not yet under way, for each connection of the SDK's `client`.

    Else it takes megabytes, and no more before a third of them are gone. On a slow way that lasts longer than
    the connection's timeout, and the put fails though all is well. With TCP_NOTSENT_LOWAT (Linux 3.12) it
    goes on sooner, which costs nothing where the way is quick. The SDK has no setting for it: where this
    does not find what it expects, that is no error.
    """
    session = getattr(getattr(client, "_endpoint", None), "http_session", None)
    options = getattr(session, "_socket_options", None)
    if isinstance(options, list):
        options.append((socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES))
    else:
        _log.info("the SDK's connections stay as they are: slow ones may time out")
