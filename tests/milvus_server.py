"""A Milvus server for tests and benchmarks: the one in the PyPI package `milvus`, reached from this machine alone.

It listens on all interfaces and has no setting against that, so it runs in a network namespace of its own, which has no
interface but loopback. What leads into it is one socket, bound to loopback before: a relay in the namespace takes its
connections to the server. There all ports are free, so the server keeps its usual ones.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

_UNPACKED = Path(__file__).parents[1] / "build" / "milvus"
_UNSHARE = ("unshare", "--map-root-user", "--net")
_INSIDE = ("127.0.0.1", 19530)
_STARTS, _STOPS = 120, 20  # seconds


def missing() -> str:
    """Return what the server lacks on this machine, as the reason to skip a test; "" if it can be started."""
    for package in ("pymilvus", "milvus"):
        try:
            __import__(package)
        except ImportError:
            return f"the package {package} is not installed (see the Makefile)"
    if subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False).returncode:
        return "no network namespace can be made here (`unshare --map-root-user --net true` fails)"
    return ""


class MilvusServer:
    """A server whose data lie in a folder, so that another can go on with them at the same address."""

    def __init__(self, folder: Path) -> None:
        """Start nothing yet; take a port of loopback.

        Args:
            folder: for data and logs.
        """
        self._folder, self._relay = folder, None
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            RuntimeError: if it does not.
        """
        binaries = _unpacked()
        command = (sys.executable, __file__, str(binaries), str(self._folder), str(self._socket.fileno()))
        self._relay = subprocess.Popen(
            [*_UNSHARE, *command],
            pass_fds=[self._socket.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = int(self._relay.stdout.readline() or 0)
        timer = threading.Timer(_STARTS, self._relay.kill)
        timer.start()
        ready = self._relay.stdout.readline()
        timer.cancel()
        if ready.strip() != "ready":
            self.kill()
            raise RuntimeError(f"The Milvus server did not start within {_STARTS} s; its logs are in {self._folder}.")

    def kill(self) -> None:
        """End the server as a power cut would; connections are refused until it is started again."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the server and give the port back."""
        self._end(signal.SIGTERM)
        self._socket.close()

    def _end(self, how: signal.Signals) -> None:
        if self._relay is None:
            return
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, how)
        try:
            self._relay.wait(_STOPS)
        except subprocess.TimeoutExpired:
            os.kill(self.pid, signal.SIGKILL)
            self._relay.wait()
        self._relay.stdin.close()
        self._relay.stdout.close()
        self._relay = None


@contextlib.contextmanager
def milvus_server() -> Iterator[MilvusServer]:
    """Start a server over a temporary folder, and end it."""
    with tempfile.TemporaryDirectory(prefix="milvus-", ignore_cleanup_errors=True) as folder:
        server = MilvusServer(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _unpacked() -> Path:
    """Return the folder of the server's binary and libraries, unpacked once for every version."""
    import milvus

    folder = _UNPACKED / milvus.__version__
    if not folder.is_dir():
        _UNPACKED.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=_UNPACKED))
        milvus._initialize_data_files(str(fresh))
        try:
            fresh.rename(folder)
        except OSError:  # somebody else was faster
            shutil.rmtree(fresh)
    return folder / "bin"


def _inside(binaries: Path, folder: Path, listening: socket.socket) -> None:
    """Run the server in this network namespace until it ends, and say its process number and when it is ready."""
    import milvus

    _loopback_up()
    config = milvus.MilvusServerConfig(data_dir=str(folder))
    config.set("log.level", "warn")
    config.set("common.session.ttl", "3")  # seconds until a killed server counts as gone
    config.set("log.stdout", "false")
    for part in ("rootCoord", "proxy", "queryCoord", "queryNode", "indexNode", "dataCoord", "dataNode"):
        config.set(f"{part}.ip", "127.0.0.1")
    config.resolve()
    environment = os.environ | {
        "DEPLOY_MODE": "STANDALONE",
        "MILVUS_RUN_DIR": str(folder / "run"),
        "LD_LIBRARY_PATH": str(binaries),
    }
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(
            [str(binaries / "milvus"), "run", "standalone"], cwd=folder, env=environment, stdout=log, stderr=log
        )
    print(server.pid, flush=True)
    threading.Thread(target=_end_with_parent, args=(server,), daemon=True).start()
    threading.Thread(target=_say_when_ready, args=(server,), daemon=True).start()
    threading.Thread(target=_relay, args=(listening,), daemon=True).start()
    server.wait()


def _loopback_up() -> None:
    import fcntl
    import struct

    up, set_flags = 0x1 | 0x40, 0x8914  # IFF_UP and IFF_RUNNING, SIOCSIFFLAGS
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh14x", b"lo", up))


def _end_with_parent(server: subprocess.Popen) -> None:
    sys.stdin.read()  # whoever started this holds the other end, and leaves it open
    server.kill()


def _say_when_ready(server: subprocess.Popen) -> None:
    import time
    import urllib.request

    while server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen("http://127.0.0.1:9091/healthz", timeout=5) as answer:
            if answer.read() == b"OK":
                print("ready", flush=True)
                return
        time.sleep(0.1)


def _relay(listening: socket.socket) -> None:
    while True:
        outside, _ = listening.accept()
        try:
            inside = socket.create_connection(_INSIDE)
        except OSError:
            outside.close()
            continue
        for source, target in ((outside, inside), (inside, outside)):
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_copy, args=(source, target), daemon=True).start()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    _inside(Path(sys.argv[1]), Path(sys.argv[2]), socket.socket(fileno=int(sys.argv[3])))
