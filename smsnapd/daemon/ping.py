"""Pings in the way of healthchecks.io: `URL/start`, `URL` on success, `URL/fail` with what failed.

The URL's path is a token, so it is in no log and in no error; only its host is.
"""

from __future__ import annotations

import http.client
import ssl
import threading
import urllib.error
import urllib.request
from typing import IO, Final
from urllib.parse import urlsplit, urlunsplit

from smsnapd import __version__
from smsnapd.daemon.standing import Standing
from smsnapd.daemon.telling import EventName, Notice
from smsnapd.telemetry.plain import plain
from smsnapd.telemetry.secrets import redacted

_TIMEOUT_S: Final = 10.0
_PAUSES_S: Final = (1.0, 3.0)
"""Between the tries of one ping: a name server that hiccups shall not raise an alarm."""
_LONGEST_BODY: Final = 10_000
_SUFFIXES: Final[dict[EventName, str]] = {"start": "/start", "success": "", "failure": "/fail"}
_ENOUGH: Final = 429


class Pinger:
    """Tells one URL. TLS is verified with the system's authorities, proxies are the environment's."""

    def __init__(self, url: str, standing: Standing, timeout_s: float = _TIMEOUT_S) -> None:
        """`standing` hears whether it gets through."""
        self._url = url
        self._standing = standing
        self._timeout_s = timeout_s
        self._opener: urllib.request.OpenerDirector | None = None

    def errand(self, notice: Notice) -> Ping:
        """The ping for a notice."""
        return Ping(self, _url_of(self._url, notice.event), _body_of(notice), self._standing)

    def ask(self, url: str, body: bytes) -> None:
        """One request: POST if there is a body, else GET. What the answer says beyond its code is not read.

        Raises _NotTold.
        """
        headers = {"User-Agent": f"smsnapd/{__version__}"}
        if body:
            headers["Content-Type"] = "text/plain; charset=utf-8"
        try:
            request = urllib.request.Request(url, body or None, headers)
            self._opened().open(request, timeout=self._timeout_s).close()
        except urllib.error.HTTPError as error:
            error.close()
            # Told too often, it has still heard us; another try would make it worse.
            if error.code != _ENOUGH:
                raise _NotTold(_answer_text(error), again=error.code >= 500) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _NotTold(_cause_text(error), again=isinstance(error, OSError)) from error

    def _opened(self) -> urllib.request.OpenerDirector:
        if self._opener is None:
            secure = urllib.request.HTTPSHandler(context=ssl.create_default_context())
            self._opener = urllib.request.build_opener(secure, _SameScheme)
        return self._opener


class Ping:
    """One ping, tried a few times."""

    def __init__(self, pinger: Pinger, url: str, body: bytes, standing: Standing) -> None:
        self._pinger = pinger
        self._url = url
        self._body = body
        self._standing = standing
        self._abandoned = threading.Event()

    def run(self) -> None:
        """Send it; the standing hears how that went."""
        # Where nobody answered the last time, waiting for them would only hold up the next.
        pauses_s = () if self._standing.fails else _PAUSES_S
        for pause_s in (*pauses_s, None):
            try:
                self._pinger.ask(self._url, self._body)
            except _NotTold as error:
                if error.again and pause_s is not None and not self._abandoned.wait(pause_s):
                    continue
                self._standing.failed(error.why)
            else:
                self._standing.works()
            return

    def abandon(self) -> None:
        """Do not try again. A request that is under way ends by itself, within its timeout."""
        self._abandoned.set()


class _NotTold(Exception):  # noqa: N818 - it never leaves this module
    """A request failed; `again` says whether another try may help."""

    def __init__(self, why: str, *, again: bool) -> None:
        super().__init__(why)
        self.why = why
        self.again = again


class _SameScheme(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to http, nor to anything stranger."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The next request; None makes it the HTTPError that it is."""
        if urlsplit(newurl).scheme != urlsplit(req.full_url).scheme:
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def host_of(url: str) -> str:
    """The part of a ping URL that may be shown."""
    try:
        return urlsplit(url).hostname or "nowhere"
    except ValueError:
        return "nowhere"


def _url_of(url: str, event: EventName) -> str:
    """A query stays where it was: `https://example.org/token?create=1`."""
    pieces = urlsplit(url)
    return urlunsplit(pieces._replace(path=pieces.path.rstrip("/") + _SUFFIXES[event], fragment=""))


def _body_of(notice: Notice) -> bytes:
    if notice.event == "start":
        return b""
    if notice.event == "failure":
        text = f"{notice.run}: {notice.error}"
    elif notice.snapshot:
        text = (
            f"{notice.run}: stored {notice.snapshot_kind} {notice.snapshot}: {notice.changed} changed,"
            f" {notice.deleted} deleted, {notice.stored_bytes} bytes stored, in {notice.seconds:.1f} s"
        )
        if notice.incomplete:
            text += f"; {notice.incomplete} files were missed"
    else:
        text = f"{notice.run}: no damage found" if notice.run == "check" else f"{notice.run}: nothing changed"
    return plain(redacted(text)).encode("utf-8", "replace")[:_LONGEST_BODY]


def _answer_text(error: urllib.error.HTTPError) -> str:
    if 300 <= error.code < 400:
        return f"it answered {error.code}, a redirect that is not followed; is the address right?"
    return f"it answered {error.code}"


def _cause_text(error: Exception) -> str:
    """The cause without the exception's own words, which may quote the URL."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {cause.verify_message}"
    if isinstance(cause, TimeoutError):
        return "it did not answer in time"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return type(cause).__name__ if isinstance(cause, Exception) else "it cannot be asked"
