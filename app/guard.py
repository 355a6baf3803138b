"""What the server refuses, and the headers that tell browsers what its pages may do."""

import asyncio
import logging
import re
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit import runtime
from streamlit.proto.BackMsg_pb2 import BackMsg

from natscope.app.listen import is_address

MAX_VISITORS = 200  # open websockets: each keeps a session's state in memory
MAX_UPLOADS = 4  # files of a session in memory; a page deletes one when another replaces it
MAX_ALL_UPLOADS = 80  # of all sessions together, up to a gigabyte
MAX_COMING = 20  # uploads under way from one address; a proxy is one address
UPLOAD_SECONDS = 60.0  # that an upload may take
_BURST, _EVERY = 5.0, 0.05  # a visitor's messages pass at 20 a second after a burst of a hundred

_HOST = re.compile(r"(\[(?P<address>[^\]]+)\]|(?P<name>[^:@/\[\]]+))(:\d{1,5})?")
# The number of sessions is not public, and there are no accounts.
_NOTHING = re.compile(r"/(_stcore/metrics|auth/(login|logout)|oauth2callback)/?$")
_UPLOAD = re.compile(r"/_stcore/upload_file/([^/]+)/")
_FIRST = "start"  # the first page by its name, which Streamlit knows by the folder's alone
_SHORT = 16  # bytes of the largest message that asks for nothing but a command

_LOG = logging.getLogger(__name__)
_OTHER_HOST = "This server answers to its own names alone. Start it with --allowed-host NAME to give it another."
_OTHER_ORIGIN = "Pages of another origin cannot use this server."


class Guard:
    """Middleware that refuses other hosts, other origins and too many visitors, and sets the headers of answers.

    A stranger's page whose name resolves to this machine (DNS rebinding) is recognised by its Host, any other by its
    Origin. Both are checked for HTTP requests and websockets alike; programs, which send no Origin, are let through.

    Args:
        app: what is guarded.
        hosts: names and addresses, without port, to answer to.
        any_address: whether to answer to every IP address too; an address cannot be rebound.
        policy: value of Content-Security-Policy.
        path: folder under which the app is served, "" for none.
    """

    def __init__(self, app: ASGIApp, *, hosts: Iterable[str], any_address: bool, policy: str, path: str = "") -> None:
        self._app = app
        self._hosts = frozenset(hosts)
        self._any_address = any_address
        self._base = f"/{path.strip('/')}/".replace("//", "/")
        self._headers = HEADERS | {"Content-Security-Policy": policy}
        self._visitors = 0
        self._coming: Counter[str] = Counter()  # uploads under way, by session
        self._addresses: Counter[str] = Counter()  # the same, by address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the request or refuse it; the server's lifespan events are forwarded as they are."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        host, origin = headers.get("host", ""), headers.get("origin")
        if not is_allowed(host, self._hosts, any_address=self._any_address):
            await _refuse(400, _OTHER_HOST, scope, receive, send_with_headers)
        elif origin is not None and origin.partition("://")[2].lower() != host.lower():
            await _refuse(403, _OTHER_ORIGIN, scope, receive, send_with_headers)
        elif scope["type"] == "http" and _NOTHING.search(scope["path"]):
            await _refuse(404, "There is nothing here.", scope, receive, send_with_headers)
        elif scope["type"] == "http" and scope["method"] != "DELETE" and (upload := _UPLOAD.search(scope["path"])):
            await self._upload(upload[1], scope, receive, send_with_headers)
        elif scope.get("method") in ("GET", "HEAD") and (page := self._elsewhere(scope["path"], headers)) is not None:
            query = scope["query_string"].decode("latin-1")
            to = RedirectResponse(page + (f"?{query}" if query else ""))
            await to(scope, receive, send_with_headers)
        elif scope["type"] == "http":
            await self._app(scope, receive, send_with_headers)
        else:
            await self._visit(scope, receive, send)

    def _elsewhere(self, path: str, headers: Headers) -> str | None:
        """Return where the page lies, as seen from an address, if it is another one's; else None.

        The first page has no name in its address, and no page has folders: its scripts would not be found there.
        """
        if not path.startswith(self._base):
            return None
        name, *below = path.removeprefix(self._base).split("/")
        if [name, *filter(None, below)] == [_FIRST]:
            return "../" * len(below) or "./"
        if headers.get("sec-fetch-dest") != "document" or name.startswith("_") or not any(below) or "." in below[-1]:
            return None
        return "../" * len(below) + name

    async def _upload(self, session: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward an upload if there is room for it, counting those under way."""
        held, (address, _) = self._held(), scope.get("client") or ("", 0)
        if held[session] >= MAX_UPLOADS:
            await _refuse(429, "Too many uploads; reload the page.", scope, receive, send)
        elif held.total() >= MAX_ALL_UPLOADS or self._addresses[address] >= MAX_COMING:
            await _refuse(503, "Too many uploads; try again later.", scope, receive, send)
        else:
            self._coming[session] += 1
            self._addresses[address] += 1
            try:
                await _received(self._app, scope, receive, send)
            finally:
                self._coming -= Counter([session])  # leaves no zeros
                self._addresses -= Counter([address])

    def _held(self) -> Counter[str]:
        """Return how many files of each session are in memory or being uploaded."""
        held = Counter(self._coming)
        if runtime.exists():
            stored: Any = runtime.get_instance().uploaded_file_mgr
            held.update({session: len(files) for session, files in list(stored.file_storage.items())})
        return held

    async def _visit(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._visitors >= MAX_VISITORS:
            await _refuse(503, "There are too many visitors; try again later.", scope, receive, send)
            return
        self._visitors += 1
        try:
            await self._app(scope, _paced(receive), send)
        except RuntimeError as error:  # Streamlit closes a broken connection again
            _LOG.info("A connection broke: %s", error)
        except Exception as error:  # whatever is raised on messages that no page sends
            _LOG.warning("A connection was closed: %s", type(error).__name__)
        finally:
            self._visitors -= 1


async def _received(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Let the app answer an upload in time; refuse, and log, what it cannot read."""
    begun = False

    async def answer(message: Message) -> None:
        nonlocal begun
        begun = True
        await send(message)

    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            await app(scope, receive, answer)
    except TimeoutError:
        status, text = 408, "The upload takes too long."
    except Exception as error:  # whatever a parser raises on an invalid body
        _LOG.warning("An upload could not be read: %s", type(error).__name__)
        status, text = 400, "This is not an upload."
    else:
        return
    if not begun:
        await _refuse(status, text, scope, receive, send)


def _paced(receive: Receive) -> Receive:
    """Return a `receive` that passes messages no faster than a person makes them, and ends at a text frame."""
    due = 0.0

    async def paced() -> Message:
        nonlocal due
        while True:
            message, now = await receive(), time.monotonic()
            due = max(due, now - _BURST) + _EVERY
            if due > now:
                await asyncio.sleep(due - now)
            if not _clears_cache(message.get("bytes") or b""):
                break
        if message["type"] == "websocket.receive" and message.get("bytes") is None:  # pages send bytes alone
            _LOG.info("A connection sent text.")
            return {"type": "websocket.disconnect", "code": 1003}
        return message

    return paced


def _clears_cache(data: bytes) -> bool:
    """Return whether a message would clear what the server keeps for all visitors, which no page offers."""
    try:
        return len(data) <= _SHORT and BackMsg.FromString(data).clear_cache
    except Exception:  # whatever a parser raises on no such message; Streamlit says so
        return False


async def _refuse(status: int, text: str, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close"})  # before it is open, so the server answers 403
    else:
        await PlainTextResponse(text, status)(scope, receive, send)


def is_allowed(host: str, names: Iterable[str], *, any_address: bool) -> bool:
    """Return whether a Host header, with or without port, names one of these hosts (or is any IP address)."""
    if not (match := _HOST.fullmatch(host)):
        return False
    if match["address"] and not is_address(match["address"]):
        return False
    name = (match["address"] or match["name"]).lower().removesuffix(".")
    return name in names or (any_address and is_address(name))


def content_policy(index: Path) -> str:
    """Return the Content-Security-Policy under which Streamlit and this app work: nothing from another origin.

    Args:
        index: Streamlit's HTML page, whose inline scripts are allowed by their digests.
    """
    inline = re.findall(r"<script>(.*?)</script>", index.read_text(encoding="utf-8"), re.DOTALL)
    digests = [f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in inline]
    directives: dict[str, list[str]] = POLICY | {"script-src": [*POLICY["script-src"], *digests]}
    return "; ".join(f"{name} {' '.join(sources)}" for name, sources in directives.items())


# Components are strings that Streamlit loads as modules from blob: addresses; only a script that runs already can make
# one. Style sheets and style attributes come from st.html, images are data: URIs.
POLICY = {
    "default-src": ["'self'"],
    "script-src": ["'self'", "blob:"],
    "style-src": ["'self'", "'unsafe-inline'"],
    "img-src": ["'self'", "data:", "blob:"],
    "font-src": ["'self'", "data:"],
    "object-src": ["'none'"],
    "frame-src": ["'none'"],
    "base-uri": ["'self'"],
    "form-action": ["'self'"],
    "frame-ancestors": ["'self'"],
}
HEADERS: dict[str, Any] = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
