"""The engine of many machines: tasks run on a Ray cluster, which starts, places and repeats them."""

import functools
import hashlib
import logging
import os
import platform
import socket
import uuid
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import natscope.core
import natscope.precompute
from natscope.core.bundle.format import sha256_of
from natscope.core.device import device
from natscope.core.errors import BuildError
from natscope.core.files import size
from natscope.precompute.bundles.spec import versions
from natscope.precompute.engines.local import AHEAD, TRIES, LostError, Part, Result, limit_threads

_MISSING = "--engine ray needs Ray, which is missing; install it with pip install 'natscope[ray]'."
_PASSED = ("NATSCOPE_DEVICE", "NATSCOPE_ALLOW_CODE")  # environment variables that tasks see
_SETTINGS = {  # environment variables that Ray reads as it is loaded
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # a sentence of natscope's replaces them
    "RAY_NUM_REDIS_GET_RETRIES": "2",  # how often a head that refuses, as with a wrong token, is asked; 20 s by default
    "RAY_py_gcs_connect_timeout_s": "5",  # each time, as where something but Ray listens; 30 s by default
}
_PATIENCE, _HELLO = 120.0, 10.0  # seconds for a node to start a process, and for the head to be reached


class RayEngine:
    """Tasks run on the nodes of a Ray cluster, each in a process of its own number of threads.

    Args:
        address: HOST:PORT of the cluster's head, of which this machine is a node; None for the one that this
            program has joined, or else a Ray of its own.
        workers: how many tasks run at once, at most; as many as the cluster has room for when None.
    """

    apart = True

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        self.address, self.workers, self._own = address, workers, False
        self._ray: Any = None

    def begin(self, folder: Path) -> str:
        """Join the cluster, and compare what each node has with what this process has.

        Args:
            folder: of the unfinished bundle, which every node must see.

        Returns:
            How many nodes there are, and the memory of the smallest, in words.

        Raises:
            BuildError: if the cluster cannot be joined, no node has room for a task, versions differ, or a node does
                not see the folder.
        """
        ray = self._joined()
        nodes = [node for node in ray.nodes() if node["Alive"]]
        self._make_sure_of_room([node["Resources"] for node in nodes])
        token = folder.absolute() / f"{uuid.uuid4().hex[:8]}.tmp"
        token.touch()
        try:
            pin = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
            check = ray.remote(num_cpus=0, max_retries=TRIES - 1)(_about)
            pins = [pin(node["NodeID"], soft=False) for node in nodes]
            asked = [check.options(scheduling_strategy=each).remote(token) for each in pins]
            for node, answer in zip(nodes, asked, strict=True):
                name = node["NodeManagerAddress"]
                self._compare(name, self._answered(name, answer))
        finally:
            token.unlink(missing_ok=True)
        many = "1 node" if len(asked) == 1 else f"{len(asked)} nodes"
        least = size(min(node["Resources"].get("memory", 0) for node in nodes))
        return f"{many} of Ray, of this machine's versions, which see {folder} and have {least} or more for tasks"

    def map(self, task: Callable[[Part], Result], parts: Sequence[Part]) -> Generator[tuple[Part, Result], None, None]:
        """Yield each part with what the task returns for it.

        Ray repeats a task whose process or node is gone, and one that could not read or write a file.
        """
        ray, threads = self._joined(), torch.get_num_threads()
        gpus = {"num_gpus": 1} if _on_gpu() else {}
        run = ray.remote(num_cpus=threads, max_retries=TRIES - 1, retry_exceptions=[OSError], **gpus)(_run)
        most, shared = self._most(threads), ray.put(task)
        waiting, running, mine = list(reversed(parts)), dict[Any, Part](), tuple(about().items())
        try:
            while waiting or running:
                while waiting and len(running) < most:
                    part = waiting.pop()
                    running[run.remote(shared, part, mine, threads)] = part
                (found, *_), _ = ray.wait(list(running))
                part = running.pop(found)
                yield part, self._result(found, part)
        finally:
            for left in running:
                ray.cancel(left, force=True)

    def close(self) -> None:
        """Leave the cluster, unless this program had joined it before."""
        if self._ray is not None and self._own:
            self._ray.shutdown()
        self._ray = None

    def _joined(self) -> Any:
        if self._ray is not None:
            return self._ray
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        try:
            import ray
            import ray.util.scheduling_strategies
        except ImportError as error:
            raise BuildError(_MISSING) from error
        if not ray.is_initialized():
            passed = {name: os.environ[name] for name in _PASSED if name in os.environ}
            try:
                _reach(self.address or "")  # of an address where nothing listens, Ray takes minutes to give up
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Ray Client connection timed out")  # which it raises, too
                    ray.init(
                        address=self.address or "local",  # None would be whatever $RAY_ADDRESS names, or runs here
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                        runtime_env={"env_vars": passed},
                    )
            except Exception as error:  # whatever a network, a token or the library's version does
                where = "no Ray could be started here" if self.address is None else f"no Ray answers at {self.address}"
                raise BuildError(
                    f"{where[0].upper()}{where[1:]}: {_first_line(error)}. This machine must be a node of the cluster, "
                    "started with ray start, of the same versions of Ray and Python and with the same token."
                ) from error
            self._own = True
        self._ray = ray
        return ray

    def _most(self, threads: int) -> int:
        """Return how many tasks are handed over at a time."""
        if self.workers is not None:
            return self.workers
        return max(1, AHEAD * int(self._ray.cluster_resources().get("CPU", 1) // threads))

    @staticmethod
    def _make_sure_of_room(nodes: Sequence[Mapping[str, float]]) -> None:
        """Raise BuildError if no node has what a task takes, for which Ray would wait for ever."""
        threads, most = torch.get_num_threads(), int(max(node.get("CPU", 0) for node in nodes))
        if most < threads:
            raise BuildError(
                f"A task computes with {threads} threads and takes as many CPUs, and no node of Ray has more than "
                f"{most}; set OMP_NUM_THREADS to fewer, or start a node with more."
            )
        if _on_gpu() and not any(node.get("CPU", 0) >= threads and node.get("GPU", 0) >= 1 for node in nodes):
            raise BuildError(
                f"A task takes a GPU and {threads} CPUs, and no node of Ray has both; start one that has, or give "
                "--device cpu."
            )

    def _answered(self, node: str, answer: Any) -> dict[str, str]:
        errors = self._ray.exceptions
        try:
            return self._ray.get(answer, timeout=_PATIENCE)
        except errors.RayTaskError as error:
            *_, last = str(error.cause or error).strip().splitlines()
            raise BuildError(f"The node {node} cannot run natscope: {last.rstrip('.')}.") from error
        except errors.RayError as error:
            raise BuildError(f"The node {node} starts no process: {_first_line(error)}.") from error

    @staticmethod
    def _compare(node: str, found: dict[str, str]) -> None:
        if found.pop("sees") != "yes":
            raise BuildError(
                f"The node {node} does not see the bundle's folder; give --out a folder that every node has under the "
                "same path, such as one that they share."
            )
        mine = about()
        if (name := _differing(found, mine)) is not None:
            raise BuildError(
                f"The node {node} has {name} {found.get(name, 'of no version')}, and this machine {mine[name]}; the "
                "bytes of a bundle depend on it, so all nodes need the same."
            )

    def _result(self, found: Any, part: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(found)
        except errors.RayTaskError as error:
            if isinstance(error.cause, OSError):
                raise LostError(part, TRIES) from error.cause
            if isinstance(error.cause, Exception):
                raise error.cause from None
            raise
        except errors.RayError as error:  # its process or node is gone, or its memory
            raise LostError(part, TRIES) from error


def _reach(address: str) -> None:
    """Connect to HOST:PORT and hang up; raise OSError if nothing listens there. Other forms of address are let be."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_HELLO).close()


def about() -> dict[str, str]:
    """Return what could change the bytes of a bundle from node to node."""
    found = {name: version for name, version in versions().items() if name != "threads"}
    found |= {"vector instructions": torch.backends.cpu.get_cpu_capability()}
    return found | {"Python": platform.python_version(), "code of natscope": _code()}


def _on_gpu() -> bool:
    return device().type == "cuda"


@functools.cache
def _code() -> str:
    """Return a checksum of what computes a bundle: two nodes may have the same version with edits."""
    digest = hashlib.sha256()
    for package in (natscope.core, natscope.precompute):
        for folder in map(Path, package.__path__):
            for file in sorted(folder.rglob("*.py")):
                digest.update(f"{file.relative_to(folder)} {sha256_of(file)}\n".encode())
    return digest.hexdigest()[:12]


def _about(token: Path) -> dict[str, str]:
    """Run on a node before anything else."""
    return about() | {"sees": "yes" if token.is_file() else "no"}


def _differing(found: Mapping[str, str], expected: Mapping[str, str]) -> str | None:
    """Return the first of what is expected that is another on a node; None if nothing is."""
    return next((name for name, version in expected.items() if found.get(name) != version), None)


@functools.cache
def _compare_here(expected: tuple[tuple[str, str], ...]) -> None:
    """Compare versions in a process of a node, which may have joined after the others were compared; once in each."""
    if (other := _differing(about(), dict(expected))) is not None:
        raise BuildError(
            f"The node {platform.node()} differs in {other} from the machine where the build was started; all nodes "
            "need the same."
        )


def _run(task: Callable[[Any], Any], part: Any, expected: tuple[tuple[str, str], ...], threads: int) -> Any:
    """Run a task."""
    limit_threads(threads)
    _compare_here(expected)
    return task(part)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__).rstrip(".")
