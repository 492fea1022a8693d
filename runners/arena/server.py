"""The arena over HTTP: a page, the images of a rater's next trial, votes. Python's own server; nothing from outside.

    GET  /                            the page; /?token=TOKEN lets a browser in where the study has a token
    GET  /arena.js /arena.css         its parts
    GET  /study                       title, paragraphs of consent, how images are shown
    POST /join    {"agreed": true}    -> {"rater": CODE}
    GET  /trial?rater=CODE            -> number, total, addresses of images; or done
    POST /vote    {"rater", "number", "choice": place or null, "seconds"}
    GET  /image/CODE/NUMBER/PLACE/SIGNATURE    lossless PNG

No path of a request is ever one on the disk: pages are looked up by name, images by their signature.
"""

import hmac
import json
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlsplit

from srgym.errors import Refusal
from srgym.runners.arena.sittings import Sittings, Stale, UnknownRater, is_vote

__all__ = ["LOOPBACK", "ArenaServer"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")

_PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/arena.js": ("arena.js", "text/javascript; charset=utf-8"),
    "/arena.css": ("arena.css", "text/css; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}  # fmt: skip
_MOST = 4096  # bytes of a request's body


class ArenaServer(ThreadingHTTPServer):
    """Serves a study at an address until it is shut down.

    Args:
        sittings: of the study.
        host, port: where; port 0 takes one that is free.
        token: what a browser must bring; None: none is asked for, and only names of this machine are answered, so that
            no other site's page can reach it through the browser.
    """

    daemon_threads = True
    request_queue_size = 128  # connections that wait; Python's 5 would turn away a room that starts at once

    def __init__(self, sittings: Sittings, host: str = "127.0.0.1", port: int = 8020, token: str | None = None) -> None:
        self.sittings, self.token = sittings, token
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise Refusal(f"expected a free address, got host={host} port={port}: {error.strerror}") from error

    @property
    def url(self) -> str:
        """The address for raters, with its token."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/" + (f"?token={self.token}" if self.token else "")


class _Failed(Exception):
    """A request that gets no more than a status and a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds that a silent connection is kept
    server: ArenaServer

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged: an address in a log would say who looked at what."""

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, respond: Any) -> None:
        try:
            respond()
        except _Failed as failure:
            self.close_connection = True  # a body may be left unread
            self._send_json({"error": str(failure)}, failure.status)
        except UnknownRater as error:
            self._send_json({"error": str(error)}, 404)
        except Stale as error:
            self._send_json({"error": str(error)}, 409)
        except Refusal as error:
            self._send_json({"error": str(error)}, 400)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True

    def _get(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if url.path == "/" and "token" in query and self.server.token:
            return self._let_in(query["token"])
        self._check_access()
        if url.path in _PAGES:
            name, kind = _PAGES[url.path]
            body = resources.files(__package__).joinpath(f"page/{name}").read_bytes()
            return self._send(body, kind, {"Cache-Control": "no-cache"})
        if url.path == "/study":
            return self._send_json(self._study())
        if url.path == "/trial":
            return self._send_json(self.server.sittings.trial(query.get("rater", "")))
        if url.path.startswith("/image/"):
            return self._image(url.path.split("/")[2:])
        raise _Failed(404, "there is nothing here")

    def _post(self) -> None:
        self._check_access()
        body = self._body()
        if self.path == "/join":
            if body.get("agreed") is not True:
                raise _Failed(400, "expected a rater who has agreed to take part")
            return self._send_json({"rater": self.server.sittings.join()})
        if self.path == "/vote":
            if not is_vote(body):
                raise _Failed(400, "expected a vote: rater, number, choice, seconds")
            self.server.sittings.vote(body["rater"], body["number"], body["choice"], float(body["seconds"]))
            return self._send_json({"counted": True})
        raise _Failed(404, "there is nothing here")

    def _study(self) -> dict[str, Any]:
        design = self.server.sittings.study.design
        shown = {key: getattr(design, key) for key in ("title", "question", "together", "ties", "lr")}
        return {**shown, "welcome": self.server.sittings.study.welcome()}

    def _image(self, parts: list[str]) -> None:
        if len(parts) != 4 or not parts[1].isascii() or not parts[1].isdecimal():
            raise _Failed(404, "there is no such image")
        rater, number, place, signature = parts
        path = self.server.sittings.image(rater, int(number[:9]), place, signature)
        if path is None:
            raise _Failed(404, "there is no such image")
        self._send(path.read_bytes(), "image/png", {"Cache-Control": "private, max-age=3600"})

    # Who may ask, and what they sent

    def _let_in(self, token: str) -> None:
        if not hmac.compare_digest(token.encode(), str(self.server.token).encode()):
            raise _Failed(403, "expected the study's token in the address, got another")
        cookie = f"{self._cookie}={token}; Path=/; HttpOnly; SameSite=Strict; Max-Age=31536000"
        self._send(b"", "text/plain", {"Location": "/", "Set-Cookie": cookie}, 303)

    def _check_access(self) -> None:
        if self.server.token is None:
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
            if host not in LOOPBACK:
                raise _Failed(403, "expected a name of this machine as host: a study for others needs a token")
            return
        try:
            held = SimpleCookie(self.headers.get("Cookie", "")).get(self._cookie)
        except CookieError:
            held = None
        if held is None or not hmac.compare_digest(held.value.encode(), self.server.token.encode()):
            raise _Failed(403, "expected the study's token: open the address that you were given, with its token")

    @property
    def _cookie(self) -> str:
        return f"arena_{self.server.server_address[1]}"  # browsers don't tell ports apart

    def _body(self) -> dict[str, Any]:
        """The posted object. A page of another site can't send this type of content without being asked first."""
        if self.headers.get_content_type() != "application/json":
            raise _Failed(415, "expected application/json")
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdecimal():
            raise _Failed(411, "expected the length of the content")
        if int(length[:9]) > _MOST:
            raise _Failed(413, f"expected at most {_MOST} bytes")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise _Failed(400, "expected a JSON object") from error
        if not isinstance(body, dict):
            raise _Failed(400, "expected a JSON object")
        return body

    def _send_json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), "application/json", {"Cache-Control": "no-store"}, status)

    def _send(self, body: bytes, kind: str, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
