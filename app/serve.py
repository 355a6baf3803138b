"""Start the Streamlit server on a folder of bundles."""

import os
import sys
from pathlib import Path

BUNDLES = "NATSCOPE_BUNDLES"  # environment variable that tells the pages where bundles are


def serve(bundles: Path, *, port: int, browser: bool) -> None:
    """Serve the app until it is stopped; does not return.

    Args:
        bundles: a bundle or a folder of bundles.
        port: to listen on.
        browser: whether to open one.
    """
    from streamlit.web import cli

    os.environ[BUNDLES] = str(bundles.resolve())
    script = Path(__file__).parent / "main.py"
    sys.argv = ["streamlit", "run", str(script), *flags(port=port, browser=browser)]
    cli.main()


def flags(*, port: int, browser: bool) -> list[str]:
    """Give the server's settings and the theme as command-line flags: no configuration file of the user's is needed."""
    settings = {
        "server.port": port,
        "server.headless": str(not browser).lower(),
        "server.showEmailPrompt": "false",  # else a first start waits for an answer in the terminal
        "server.address": "localhost",
        "server.maxUploadSize": 11,
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        **{f"theme.{name}": value for name, value in THEME.items()},
    }
    return [f"--{name}={value}" for name, value in settings.items()]


THEME = {
    "baseRadius": "medium",
    "showWidgetBorder": "true",
    "light.primaryColor": "#0f6e84",
    "light.backgroundColor": "#fbfaf7",
    "light.secondaryBackgroundColor": "#f0eee8",
    "light.textColor": "#1c2430",
    "light.borderColor": "#d9d5cb",
    "light.linkColor": "#0f6e84",
    "dark.primaryColor": "#5cc3d6",
    "dark.backgroundColor": "#12161c",
    "dark.secondaryBackgroundColor": "#1b222b",
    "dark.textColor": "#e8e6e1",
    "dark.borderColor": "#323c48",
    "dark.linkColor": "#7fd3e2",
}
