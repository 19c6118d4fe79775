"""One request over HTTP and its whole answer, within a time and a size.

What a socket calls its timeout is one of each piece, so an endpoint that drips is waited for as
long as it likes. Here the time and the number of bytes bound all that arrives: status line,
headers, body, error page. No redirect is followed: a conversation and a key go where they were
sent.
"""

from __future__ import annotations

import io
import os
import select
import socket
import ssl
import threading
import time
import weakref
import zlib
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

_MOST_HEAD = 1 << 18  # bytes of status line and headers
_MOST_OF_AN_ERROR = 1 << 16  # bytes of an error page; the rest is not read
_PIECE = 1 << 16
_ZLIB_OR_GZIP = zlib.MAX_WBITS | 32


class TooLong(ValueError):
    """More arrived than is taken."""


class Arrived(NamedTuple):
    """What came back: the status, the headers by lower-case names, the body as it was meant.

    Of an error page it is the beginning, as much as could be read.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class Wire:
    """Requests to endpoints; a connection that stays open is used again, by one at a time.

    Parameters
    ----------
    proxied : bool
        Whether a proxy that the environment names may come between.

    Examples
    --------
    >>> Wire().post("http://127.0.0.1:9/", {}, b"{}", seconds=1, most=100)
    Traceback (most recent call last):
    ...
    ConnectionRefusedError: [Errno 111] Connection refused
    """

    def __init__(self, *, proxied: bool = False) -> None:
        self._proxied = proxied
        self._idle: list[tuple[tuple[int, str], _Line]] = []
        self._lock = threading.Lock()

    def post(
        self, url: str, headers: Mapping[str, str], data: bytes, *, seconds: float, most: int
    ) -> Arrived:
        """Send data and return the whole answer, whatever its status.

        Parameters
        ----------
        url : str
            Where to, http or https.
        headers : Mapping
            Sent along.
        data : bytes
            The body.
        seconds : float
            From now until the last byte is here, above 0.
        most : int
            Bytes that the body may have, as it comes and unpacked.

        Returns
        -------
        Arrived
            Of any status: a redirect and an error are answers.

        Raises
        ------
        TimeoutError
            If it takes longer.
        TooLong
            If more bytes arrive.
        OSError, http.client.HTTPException
            If there is no connection, it breaks, or what comes is no HTTP.
        """
        place = urlsplit(url)
        # A forked child may not use the connections of its parent.
        to = (os.getpid(), f"{place.scheme}://{place.netloc}")
        guard = _Guard(time.monotonic() + seconds, most + _MOST_HEAD)
        line = self._open(to) or _Line(place, proxied=self._proxied)
        stays = False
        try:
            answer, stays = line.ask(place, headers, data, guard, most)
        finally:
            if stays:
                with self._lock:
                    self._idle.append((to, line))
            else:
                line.close()
        return answer

    def close(self) -> None:
        """Close what is open."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, line in idle:
            line.close()

    def _open(self, to: tuple[int, str]) -> _Line | None:
        while True:
            with self._lock:
                at = next((n for n, (there, _) in enumerate(self._idle) if there == to), None)
                if at is None:
                    return None
                _, line = self._idle.pop(at)
            if line.usable:
                return line
            line.close()


class _Guard:
    """Until when and how much may arrive."""

    def __init__(self, end: float, most: int) -> None:
        self._end = end
        self._left = most

    def seconds(self) -> float:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def count(self, arrived: int) -> None:
        self._left -= arrived
        if self._left < 0:
            raise TooLong


class _Line:
    """One connection to one place."""

    def __init__(self, place: SplitResult, *, proxied: bool) -> None:
        host, port = place.hostname or "", place.port
        proxy = _proxy_of(place) if proxied else None
        # What a proxy passes on is asked for by its whole address; a tunnel is as good as a line.
        self._before = f"http://{host}:{port or 80}" if proxy and place.scheme == "http" else ""
        self._http = _connection(place.scheme, *(proxy[:2] if proxy else (host, port)))
        weakref.finalize(self, self._http.close)
        self._passed = dict(proxy.headers) if proxy else {}
        if proxy and place.scheme == "https":
            self._http.set_tunnel(host, port or 443, self._passed)

    @property
    def usable(self) -> bool:
        """Whether it stands: one on which something comes before it is asked for was closed."""
        try:
            return not select.select([self._http.sock], [], [], 0)[0]
        except (OSError, ValueError, TypeError):
            return False

    def ask(
        self,
        place: SplitResult,
        headers: Mapping[str, str],
        data: bytes,
        guard: _Guard,
        most: int,
    ) -> tuple[Arrived, bool]:
        """Return the answer, and whether another one can be had on this connection."""
        http: Any = self._http
        _guard(http, guard)
        path = f"{self._before}{place.path or '/'}{'?' if place.query else ''}{place.query}"
        # What goes through a tunnel was shown to the proxy when it was dug.
        passed = self._passed if self._before else {}
        http.request("POST", path, data, {"Accept-Encoding": "identity", **passed, **headers})
        with self._http.getresponse() as got:
            told = {name.lower(): value for name, value in got.getheaders()}
            packed = told.get("content-encoding", "identity").strip().lower()
            if got.status < 300:
                body = _unpacked(_body(got, most), packed, most)
                return Arrived(got.status, told, body), not got.will_close
            page = b""
            # That it is an error, and which, is known: what its page says is worth no more trouble.
            with suppress(OSError, HTTPException, TooLong):
                page = _unpacked(_beginning(got), packed, _MOST_OF_AN_ERROR)
            return Arrived(got.status, told, page), got.isclosed() and not got.will_close

    def close(self) -> None:
        self._http.close()


def bound(connection: HTTPConnection, seconds: float, most: int) -> None:
    """Connect, and let what arrives from now on come within a time and a size.

    Parameters
    ----------
    connection : http.client.HTTPConnection
        Of one request.
    seconds : float
        From now until the last byte, above 0; what is later raises TimeoutError.
    most : int
        Bytes of a body; more raise :class:`TooLong`.
    """
    _guard(connection, _Guard(time.monotonic() + seconds, most + _MOST_HEAD))


def _guard(http: Any, guard: _Guard) -> None:
    if http.sock is None:
        http.timeout = guard.seconds()
        http.connect()
        http.sock = _Guarded(http.sock)  # type: ignore[arg-type]
    http.sock.guard = guard


def _connection(scheme: str, host: str, port: int | None) -> HTTPConnection:
    if scheme == "https":
        return HTTPSConnection(host, port, context=_context())
    return HTTPConnection(host, port)


class _Proxy(NamedTuple):
    host: str
    port: int | None
    headers: Mapping[str, str]


def _proxy_of(place: SplitResult) -> _Proxy | None:
    proxy = urlsplit(getproxies().get(place.scheme, ""))
    if not proxy.hostname or proxy_bypass(place.netloc.rpartition("@")[2]):
        return None
    known = f"{unquote(proxy.username or '')}:{unquote(proxy.password or '')}".encode()
    shown = {"Proxy-Authorization": f"Basic {b64encode(known).decode()}"} if proxy.username else {}
    return _Proxy(proxy.hostname, proxy.port, shown)


@cache
def _context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    with suppress(ImportError):  # beside those of the system, which some Pythons do not find
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def _body(got: HTTPResponse, most: int) -> bytes:
    body = bytearray()
    while piece := got.read1(_PIECE):
        body += piece
        if len(body) > most:
            raise TooLong
    if got.length:
        raise ConnectionError("the answer broke off")
    return bytes(body)


def _beginning(got: HTTPResponse) -> bytes:
    page = bytearray()
    with suppress(OSError, HTTPException, TooLong):
        while len(page) < _MOST_OF_AN_ERROR and (piece := got.read1(_PIECE)):
            page += piece
    return bytes(page[:_MOST_OF_AN_ERROR])


def _unpacked(body: bytes, packed: str, most: int) -> bytes:
    """Undo a packing, which was not asked for and comes all the same."""
    if packed in ("", "identity"):
        return body
    if packed not in ("gzip", "x-gzip", "deflate"):
        raise HTTPException("an answer that is packed in an unknown way")
    unpacking = zlib.decompressobj(_ZLIB_OR_GZIP)
    try:
        whole = unpacking.decompress(body, most + 1)
    except zlib.error:
        raise HTTPException("an answer whose packing is damaged") from None
    if len(whole) > most:
        raise TooLong
    if not unpacking.eof:
        raise ConnectionError("the answer broke off")
    return whole


class _Guarded:
    """A socket from which as much arrives, and as long, as a guard allows."""

    guard: _Guard

    def __init__(self, line: socket.socket) -> None:
        self._line = line

    def fileno(self) -> int:
        return self._line.fileno()

    def sendall(self, data: Any) -> None:
        self._line.settimeout(self.guard.seconds())
        self._line.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Arriving(self._line, self.guard))

    def close(self) -> None:
        self._line.close()


class _Arriving(io.RawIOBase):
    def __init__(self, line: socket.socket, guard: _Guard) -> None:
        # Python keeps a closed socket open as long as a file of it is.
        self._file = line.makefile("rb", buffering=0)
        self._line = line
        self._guard = guard

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._line.settimeout(self._guard.seconds())
        arrived = self._file.readinto(buffer)
        self._guard.count(arrived or 0)
        return arrived

    def close(self) -> None:
        self._file.close()
        super().close()
