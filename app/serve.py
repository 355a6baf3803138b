"""Start the Streamlit server on a folder of bundles."""

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from natscope.app.escape import terminal
from natscope.app.listen import Listening
from natscope.app.theme import streamlit_theme
from natscope.core.errors import NatscopeError
from natscope.core.files import machine_memory

BUNDLES = "NATSCOPE_BUNDLES"  # environment variables that tell the pages where bundles are, and the limits of work
JOBS, MEMORY = "NATSCOPE_JOBS", "NATSCOPE_MEMORY"
_USUAL_MEMORY = 4.0  # GB
THREADS = 32  # of the server, which make files to download


def jobs_allowed() -> int:
    """Return how many worker processes each lane of the app has."""
    return int(os.environ.get(JOBS, "1"))


def memory_allowed() -> int:
    """Return how many bytes of memory a worker process may take: 4 GB, or a third of a smaller machine's memory."""
    if MEMORY in os.environ:
        return int(float(os.environ[MEMORY]) * 1e9)
    return int(min(_USUAL_MEMORY * 1e9, machine_memory() / 3))


def serve(bundles: Path, at: Listening, *, browser: bool, jobs: int | None = None, memory: float | None = None) -> None:
    """Serve the app until it is stopped by Ctrl-C, by SIGTERM or with its terminal.

    Args:
        bundles: a bundle or a folder of bundles.
        at: where to listen.
        browser: whether to open a browser.
        jobs: worker processes for long work, and as many for clicks; 1 when None.
        memory: GB that each of them may use; see `memory_allowed` when None.
    """
    import pandas  # type: ignore[import-untyped]  # noqa: F401 - plotly looks at it while another thread may be importing it
    import streamlit
    from starlette.middleware import Middleware
    from streamlit import config

    from natscope.app.first_page import FirstPage
    from natscope.app.guard import Guard, content_policy

    os.environ[BUNDLES] = str(bundles.resolve())
    for name, value in ((JOBS, jobs), (MEMORY, memory)):
        if value is not None:
            os.environ[name] = str(value)
    # Streamlit would read .streamlit in the working directory, which may be a stranger's: settings that open the
    # server, and secrets.toml, which becomes environment variables of this process and its children.
    config.get_config_files = lambda file_name: []
    policy = content_policy(Path(streamlit.__file__).parent / "static" / "index.html")
    guard = Middleware(Guard, hosts=at.names, any_address=at.everywhere, policy=policy, path=at.path)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        print(f"natscope is at {at.url} (Ctrl-C stops it).", flush=True)
        if browser:
            _open_browser(at.url)
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
        threading.Thread(target=_warm, daemon=True).start()
        yield

    logging.getLogger("streamlit.runtime.backend_operation_handler").addFilter(_in_one_line)
    logging.getLogger("streamlit.web.server.starlette.starlette_websocket").addFilter(_without_cause)
    if at.exposed:
        print(at.meaning, flush=True)
    app = streamlit.App(Path(__file__).parent / "main.py", middleware=[guard, Middleware(FirstPage)], lifespan=lifespan)
    # The server raises the signal that stopped it again once everything is closed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:  # which nohup sets
        signal.signal(hangup, lambda *_: signal.raise_signal(signal.SIGTERM))
    with suppress(KeyboardInterrupt):
        app.run(config=settings(at))


def settings(at: Listening) -> dict[str, Any]:
    """Return the server's settings and the theme; nothing else configures it."""
    return {
        "server.port": at.port,
        "server.address": at.address,
        "server.baseUrlPath": at.path,
        "server.headless": True,  # the browser is opened here, and no e-mail address is requested in the terminal
        "server.showEmailPrompt": False,
        "server.fileWatcherType": "none",
        "server.allowRunOnSave": False,
        "server.enableStaticServing": False,
        "server.enableAgentApi": False,
        "server.enableCORS": True,
        "server.enableXsrfProtection": True,
        # Limits per visitor: an upload (MB), a message (MB), the state of all widgets (MB), and how long a
        # session is kept after its page is gone (seconds), for a connection that breaks.
        "server.maxUploadSize": 11,
        "server.maxMessageSize": 50,
        "server.maxWidgetStateSize": 2,
        "server.disconnectedSessionTTL": 60,
        "logger.hideWelcomeMessage": True,  # it would ask a server on the internet for this machine's address
        "global.disableWidgetStateDuplicationWarning": True,  # see views/controls.py
        "runner.postScriptGC": False,  # the pages do it, less often
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "client.showErrorLinks": False,  # to search engines and chatbots, with the error
        "client.allowedOrigins": [],
        "secrets.files": [],
        "theme.baseRadius": "medium",
        "theme.showWidgetBorder": True,
        **{f"theme.{name}": value for name, value in streamlit_theme().items()},
    }


def _in_one_line(record: logging.LogRecord) -> bool:
    """Log why a file was refused in one line, without a traceback."""
    cause = record.exc_info[1] if record.exc_info else None
    while cause is not None and not isinstance(cause, NatscopeError):
        cause = cause.__cause__
    if cause is not None:
        record.msg, record.args, record.exc_info = "No file to download: %s", (terminal(str(cause)),), None
    return True


def _without_cause(record: logging.LogRecord) -> bool:
    """Let the log warn of a message that is none without a traceback."""
    if record.levelno <= logging.WARNING:
        record.exc_info = None
    return True


def _warm() -> None:
    """Let a worker open the bundles, so that the first visitor need not wait."""
    from natscope.app import bundles

    with suppress(NatscopeError):  # pages say what is wrong
        bundles.warm()


def _open_browser(address: str) -> None:
    from streamlit.cli_util import open_browser

    # In a thread, because a browser in the terminal blocks its caller until it is closed.
    threading.Thread(target=open_browser, args=(address,), daemon=True).start()
