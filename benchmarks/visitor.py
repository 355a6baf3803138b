"""One visitor of a served app, without a browser: Streamlit's own messages over a websocket of the loopback interface.

It does what the page's own script does in a browser: it keeps the state of every control and sends all of them, keeps
large messages that the server may name later by their hash, and comes back when the page asks to be drawn again.
"""

import asyncio
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from streamlit.proto.Alert_pb2 import Alert
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ClientState_pb2 import ContextInfo
from streamlit.proto.Delta_pb2 import Delta
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.NewSession_pb2 import NewSession
from streamlit.proto.WidgetStates_pb2 import WidgetState
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

_LARGEST_MESSAGE = 2**26  # bytes
_VERDICT = re.compile(r"\bTest image (\d+) ")
_NUMBER = re.compile(r"\d(?:[\d,]*\d)?")  # also 9,999
_RANKED = re.compile(r'"alt": ?"rank [^"]*?training image (\d+):')
_BAD_ALERTS = (Alert.ERROR, Alert.WARNING)


class VisitError(Exception):
    """What a visitor was shown, or not shown, instead of an answer."""


@dataclass(frozen=True)
class Answer:
    """What the page showed for an image that was asked for.

    Args:
        index: number of the test image.
        address: the page's parameters, which say what was asked of it.
        ranking: numbers of the training images, in order.
        seconds: from the click until all of the page was drawn.
    """

    index: int
    address: str
    ranking: tuple[int, ...]
    seconds: float


class Visitor:
    """A session of the app; `async with Visitor(port) as visitor` opens its page and leaves it at the end."""

    def __init__(self, port: int, page: str = "", query: str = "") -> None:
        """Name a page of the app that listens on the loopback interface at a port, and its parameters."""
        self._port, self._page, self._query, self._script = port, page, query, ""
        self._socket: ClientConnection
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._controls: dict[str, WidgetState] = {}
        self._drawn: set[str] = set()  # identifiers of the controls that this run of the page has
        self._kept: dict[str, tuple[ForwardMsg, int]] = {}  # large messages, and the run that last used each
        self._runs, self._kept_for, self._largest = 0, 2, 0
        self._begin()

    def _begin(self) -> None:
        self._finished, self._shown, self._ranking = False, -1, ()
        self._problems: list[str] = []

    async def __aenter__(self) -> "Visitor":
        address = f"localhost:{self._port}"
        try:
            self._socket = await connect(
                f"ws://{address}/_stcore/stream",
                origin=f"http://{address}",  # type: ignore[arg-type]
                subprotocols=["streamlit", "PLACEHOLDER_AUTH_TOKEN"],  # type: ignore[list-item]
                max_size=_LARGEST_MESSAGE,
                open_timeout=30,
                close_timeout=2,
            )
        except (OSError, TimeoutError, InvalidHandshake) as error:
            raise VisitError(f"The server took no connection: {error}") from error
        self._tasks["reader"] = asyncio.create_task(self._read())
        await self._send()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._socket.close()

    @property
    def images(self) -> int:
        """How many test images the page offers by number."""
        return self._largest + 1

    async def drawn(self, timeout: float) -> float:
        """Wait until the page is drawn and nothing on it is being computed; return the seconds that this took.

        Raises:
            VisitError: if it shows an error, or is not drawn in time.
        """
        return await self._until(lambda: self._finished and not self._waits, timeout)

    async def ask(self, index: int, timeout: float) -> Answer:
        """Type the number of a test image and wait until its answer is on the page.

        Raises:
            VisitError: if an error is shown in its place, or nothing in time.
        """
        self._begin()
        await self._send(WidgetState(id=self._named("image_search"), string_value=str(index)))
        seconds = await self._until(lambda: self._finished and bool(self._ranking), timeout)
        if self._shown != index:
            raise VisitError(f"The page shows image {self._shown} in place of {index}.")
        return Answer(index, self._query, self._ranking, seconds)

    async def press(self, ending: str) -> bool:
        """Press the first button whose key has this ending; return whether there is one."""
        found = next((i for i in self._drawn if i.endswith(ending)), None)
        if found:
            self._begin()
            await self._send(WidgetState(id=found, trigger_value=True))
        return found is not None

    def _named(self, key: str) -> str:
        found = next((i for i in self._drawn if i.endswith(f"-{key}")), None)
        if found is None:
            raise VisitError(f"The page has no control {key}.")
        return found

    @property
    def _waits(self) -> bool:
        return len(self._tasks) > 1  # something redraws itself while a job runs

    async def _until(self, done: Callable[[], bool], timeout: float) -> float:
        started = time.monotonic()
        while not done() and not self._problems:
            if self._tasks["reader"].done():
                self._tasks["reader"].result()  # raises what ended it
            if self._finished and not self._waits:
                raise VisitError("The page was drawn without an answer.")
            self._changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), max(0.0, started + timeout - time.monotonic()))
            if time.monotonic() - started >= timeout and not done():
                raise VisitError(f"Unanswered for {timeout:.0f} s.")
        if self._problems:
            raise VisitError(self._problems[0])
        return time.monotonic() - started

    async def _send(self, change: WidgetState | None = None, fragment: str = "") -> None:
        message = BackMsg()
        state = message.rerun_script
        state.query_string, state.page_script_hash = self._query, self._script
        state.page_name = "" if self._script else self._page
        state.fragment_id, state.is_auto_rerun = fragment, bool(fragment)
        state.cached_message_hashes.extend(self._kept)
        state.context_info.CopyFrom(
            ContextInfo(timezone="UTC", locale="en-US", url=self._url, is_embedded=False, color_scheme="light")
        )
        if change is not None and not change.HasField("trigger_value"):
            self._controls[change.id] = change
        elif change is not None:
            state.widget_states.widgets.append(change)
        state.widget_states.widgets.extend(self._controls.values())
        with suppress(ConnectionClosed):  # the reader says so
            await self._socket.send(message.SerializeToString())

    @property
    def _url(self) -> str:
        return f"http://localhost:{self._port}/{self._page}" + (f"?{self._query}" if self._query else "")

    async def _read(self) -> None:
        try:
            async for frame in self._socket:  # ends when the connection was closed in good order
                self._receive(ForwardMsg.FromString(frame))  # type: ignore[arg-type]
            raise VisitError("The server closed the connection.")
        except ConnectionClosed as error:
            raise VisitError(f"The connection broke: {error}") from error
        finally:
            self._changed.set()

    def _receive(self, message: ForwardMsg) -> None:
        kind = message.WhichOneof("type")
        if kind == "ref_hash":
            if message.ref_hash not in self._kept:
                self._problems.append("The server names a message that this visitor does not have.")
                return
            message = self._kept[message.ref_hash][0]
            kind = message.WhichOneof("type")
        if message.metadata.cacheable:
            self._kept[message.hash] = (message, self._runs)
        if kind == "delta":
            self._see(message.delta)
        elif kind == "new_session":
            self._start(message.new_session, whole=not message.metadata.run.fragment_ids)
        elif kind == "navigation":
            self._script = message.navigation.page_script_hash
        elif kind == "page_info_changed":
            self._query = message.page_info_changed.query_string
        elif kind == "auto_rerun":
            fragment = message.auto_rerun.fragment_id
            self._stop([fragment])
            self._tasks[fragment] = asyncio.create_task(self._come_back(fragment, message.auto_rerun.interval))
        elif kind == "stop_auto_rerun":
            self._stop(message.stop_auto_rerun.fragment_ids)
        elif kind == "session_event" and message.session_event.HasField("script_compilation_exception"):
            self._problems.append(message.session_event.script_compilation_exception.message)
        elif kind == "script_finished":
            self._finish(message.script_finished)
        if self._problems:
            self._changed.set()

    def _start(self, run: NewSession, *, whole: bool) -> None:
        self._finished = False
        self._kept_for = run.config.max_cached_message_age
        if whole:  # else only a part of the page is drawn again
            self._drawn = set()
            self._stop([name for name in self._tasks if name != "reader"])

    def _finish(self, status: int) -> None:
        if status == ForwardMsg.FINISHED_EARLY_FOR_RERUN:
            return
        self._runs += 1
        self._kept = {name: kept for name, kept in self._kept.items() if self._runs - kept[1] <= self._kept_for}
        if status == ForwardMsg.FINISHED_SUCCESSFULLY:
            self._controls = {i: state for i, state in self._controls.items() if i in self._drawn}
        self._finished = True
        self._changed.set()

    def _see(self, delta: Delta) -> None:
        """Note what matters of an element that was drawn."""
        if delta.WhichOneof("type") != "new_element":
            return
        kind = delta.new_element.WhichOneof("type")
        if kind is None:
            return
        element = getattr(delta.new_element, kind)
        if kind == "exception":
            self._problems.append(f"{element.type}: {element.message}")
        elif kind == "alert" and element.format in _BAD_ALERTS:
            self._problems.append(element.body)
        elif kind == "html":
            found = _VERDICT.search(element.body)
            if found:
                self._shown, self._ranking = int(found[1]), ()  # a ranking counts that comes after its image alone
        elif kind == "bidi_component" and element.id.endswith("-ranking"):
            self._ranking = tuple(map(int, _RANKED.findall(element.json or element.mixed.json)))
        elif kind == "text_input" and element.id.endswith("-image_search"):
            self._largest = max(int(n.replace(",", "")) for n in _NUMBER.findall(element.placeholder))
        if getattr(element, "id", ""):
            self._drawn.add(element.id)
            state = _state(kind, element)
            if state is not None and (element.id not in self._controls or element.set_value):
                self._controls[element.id] = state

    async def _come_back(self, fragment: str, interval: float) -> None:
        while True:
            await asyncio.sleep(max(interval, 0.1))
            await self._send(fragment=fragment)

    def _stop(self, fragments: Any) -> None:
        for fragment in fragments:
            task = self._tasks.pop(fragment, None)
            if task is not None:
                task.cancel()


def _state(kind: str, element: Any) -> WidgetState | None:
    """Return the state that a browser gives a control when it is first drawn, or None if it gives it none."""
    state = WidgetState(id=element.id)
    if kind == "checkbox":
        state.bool_value = element.value if element.set_value else element.default
    elif kind in ("selectbox", "radio"):
        if not element.HasField("raw_value" if element.set_value else "default"):
            return None
        state.string_value = element.raw_value if element.set_value else element.options[element.default]
    elif kind in ("button_group", "multiselect"):
        texts = [getattr(option, "content", option) for option in element.options]
        state.string_array_value.data.extend(
            element.raw_values if element.set_value else [texts[position] for position in element.default]
        )
    elif kind == "text_input":
        state.string_value = element.value if element.set_value else element.default
    elif kind == "slider" and element.options:
        state.string_array_value.data.extend(
            element.raw_value if element.set_value else [element.options[int(position)] for position in element.default]
        )
    elif kind == "slider":
        state.double_array_value.data.extend(element.value if element.set_value else element.default)
    elif kind == "number_input" and element.HasField("value" if element.set_value else "default"):
        value = element.value if element.set_value else element.default
        if element.data_type == element.INT:
            state.int_value = int(value)
        else:
            state.double_value = value
    else:
        return None
    return state
