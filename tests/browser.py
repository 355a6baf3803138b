"""Find a Chrome or Chromium for the browser tests; on Debian, install one.

python -m tests.browser prints the path of the browser, or one sentence on what to install.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
MAC = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
)
LAUNCH_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_browser() -> str | None:
    named = os.environ.get("NATSCOPE_CHROMIUM")
    if named:
        return named if Path(named).is_file() else None
    return next(filter(None, map(shutil.which, NAMES)), None) or next((p for p in MAC if Path(p).is_file()), None)


def install_on_debian() -> None:
    if not Path("/etc/debian_version").is_file() or not shutil.which("apt-get"):
        return
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if root and (not shutil.which("sudo") or subprocess.run([*root, "true"], capture_output=True).returncode):
        return
    print("Installing chromium for the browser tests ...", flush=True)
    environment = [*root, "env", "DEBIAN_FRONTEND=noninteractive"]
    subprocess.run([*environment, "apt-get", "-qq", "update"], stdout=subprocess.DEVNULL)
    subprocess.run([*environment, "apt-get", "-qq", "install", "-y", "chromium"], stdout=subprocess.DEVNULL)


def main() -> int:
    if not find_browser():
        install_on_debian()
    found = find_browser()
    if not found:
        print(
            "The browser tests need Chrome or Chromium: install one, or name it in NATSCOPE_CHROMIUM.", file=sys.stderr
        )
        return 1
    print(f"Browser: {found}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
