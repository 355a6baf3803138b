"""Data at places that URLs name, such as s3://bucket/birds: fetched by fsspec into natscope's home, and read there."""

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import unquote

from filelock import Timeout

from natscope.core.errors import DataError, NatscopeError, out_of_memory
from natscope.core.files import size as formatted
from natscope.core.locks import locked
from natscope.core.progress import Progress, silent
from natscope.core.text import UNSEEN, short
from natscope.precompute.paths import home

_PARTED = re.compile(r"(folder:|text:|)([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_HOST = re.compile(r"(?:[^:@\[\]]*|\[[0-9A-Fa-f:.]*\])(?::[0-9]+)?")
_UNCLEAR = "…"  # shown of a URL whose parts are not told apart
_STAGE = "Fetching bytes"
_LARGE = 2**25  # bytes of files that are fetched by themselves
_BLOCK = 2**22  # bytes of them that are read at once
_AT_ONCE = 256  # files that are fetched together
_TELLING = ("ETag", "Content-MD5", "Digest", "Last-Modified")  # what a web server says of a file beyond its size
_REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Fetched:
    """Where what URLs name lies on this computer.

    Args:
        data: the data set; None if no URL names it.
        test: the table of the test set, likewise.
    """

    data: Path | None = None
    test: Path | None = None

    def by_url(self, text: str, data: str, test: str) -> str:
        """Return a message about what was fetched with the URLs `data` and `test` in place of paths in the cache."""
        for path, name in ((self.data, data), (self.test, test)):
            if path is not None:
                text = (url_in(name)[1] or name).join(re.split(rf"{re.escape(str(path))}(?![\w-])", text))
        return text


def url_in(name: str) -> tuple[str, str]:
    """Return the prefix of a data set's name and the URL that it names: ("folder:", "s3://…"); "" if it is none."""
    match = _PARTED.fullmatch(name)
    return ("", "") if match is None else (match[1], name.removeprefix(match[1]))


def displayed(name: str) -> str:
    """Return a URL, or a data set's name with one, without what may be secret: user, password and query."""
    match = _PARTED.fullmatch(name)
    if match is None:
        return name
    before = re.split(r"[/?#]", match[3], maxsplit=1)[0]
    host, behind = before.rpartition("@")[2], match[3].removeprefix(before)
    unclear = _HOST.fullmatch(host) is None or (":" in host and "@" in behind)  # a password may hold any sign
    whole = _UNCLEAR if unclear else host + re.split(r"[?#]", behind, maxsplit=1)[0]
    return UNSEEN.sub("\ufffd", f"{match[1]}{match[2]}://{whole}")


def name_in(url: str) -> str:
    """Return the last part of a URL, what a file or folder that it names is called here."""
    last = unquote(displayed(url)).rstrip("/").rpartition("/")[2]
    return last if _is_name(last) else "data"


def fetch(url: str, progress: Progress = silent, *, table: bool = False) -> Path:
    """Fetch what a URL names, unless it is here and has not changed.

    It lies in `fetched` in natscope's home, under a checksum of the URL and of what is known of each file.

    Args:
        url: of a file, or of a folder with all that is below it.
        progress: called with bytes fetched and bytes in all.
        table: whether it names a file, which some servers do not tell.

    Returns:
        The file or folder, of the last name in the URL.

    Raises:
        DataError: if nothing is there, it cannot be fetched, or there is no room for it.
    """
    shown = displayed(url)
    if "::" in url or shown.endswith(f"://{_UNCLEAR}"):
        raise DataError(
            f"{shown} is no URL of one place: chains of URLs (::) are not read, and in a name, password or query signs "
            "such as @ : / ? are written as %40 %3A %2F %3F."
        )
    system, root = _opened(url, shown)
    with _explained(shown):
        system.invalidate_cache()
        found = _listed(system, root, shown, name_in(url), table)
    if not found:
        raise DataError(_nothing(shown))
    about = [[name, *_known(system, path, info, shown)] for name, (path, info) in sorted(found.items())]
    key = hashlib.sha256(json.dumps([url, about], default=str).encode(errors="surrogatepass")).hexdigest()
    folder = home() / "fetched"
    target = folder / key
    alone = [path for path, _ in found.values()] == [root]
    if not target.exists():
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            with locked(folder / f"{key}.lock"):
                inside = "" if alone else name_in(url)
                _fetch(system, {Path(inside, name): file for name, file in found.items()}, target, shown, progress)
        except Timeout as error:
            raise DataError(
                f"Another natscope is fetching {shown} right now; wait for it, or stop it first."
            ) from error
        except OSError as error:
            if out_of_memory(error):
                raise
            raise DataError(_no_room(shown, folder, error)) from error
    return target / name_in(url)


def _opened(url: str, shown: str) -> tuple[Any, str]:
    """Return the file system that a URL is of, and the place in it."""
    from fsspec.core import url_to_fs  # takes a moment to load

    with _explained(shown):
        system, root = url_to_fs(url)
    if not root.strip("/"):
        raise DataError(f"{shown} names no bucket, folder or file; write what is to be read behind ://.")
    return system, root


def _listed(system: Any, root: str, shown: str, own: str, table: bool) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the files at a place: by name, relative to it, the path and what is known; by its own if it is one."""
    if table:
        info = system.info(root)
        if info["type"] == "file":
            return {own: (root, info)}
    found = {}
    for path, info in system.find(root, detail=True).items():
        name = own if path == root else _inside(path, root, shown)
        if info["type"] == "other" and system.isfile(path):  # a link
            info = system.info(path)
        if info["type"] == "file":
            found[name] = path, info
        elif info["type"] != "directory":
            raise DataError(f"{shown} lists {short(name)!r}, which is no file that can be read; remove it.")
    return found


def _inside(path: str, root: str, shown: str) -> str:
    """Return a path relative to the folder that it is in; raises DataError if it leads anywhere else."""
    base = f"{root.rstrip('/')}/"
    name = path.removeprefix(base)
    if not path.startswith(base) or not all(map(_is_name, name.split("/"))):
        raise DataError(
            f"{shown} lists a file of the name {short(displayed(name))!r}, which would not lie within its folder."
        )
    return name


def _is_name(part: str) -> bool:
    return PurePath(part).name == part and part not in ("", ".", "..") and "\0" not in part


def _known(system: Any, path: str, info: Mapping[str, Any], shown: str) -> list[Any]:
    """Return by what a file that changed is told from the one before."""
    with _explained(shown):
        if info.get("size") is None:  # from a page of links
            info = system.info(path)
        return [info.get("size"), system.ukey(path), *(info.get(field) for field in _TELLING)]


def _fetch(
    system: Any, files: Mapping[Path, tuple[str, Mapping[str, Any]]], target: Path, shown: str, progress: Progress
) -> None:
    """Copy files to a new folder, which is there when all of them are."""
    sizes = {name: info.get("size") for name, (_, info) in files.items()}
    needed, free = sum(filter(None, sizes.values())), shutil.disk_usage(target.parent).free
    if free < needed:
        raise DataError(
            f"{shown} takes {formatted(needed)} and only {formatted(free)} are free at {target.parent}; make room, or "
            "name another folder in NATSCOPE_HOME."
        )
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    try:
        for name in files:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
        done = 0
        progress(_STAGE, done, needed)
        for part in _together(sizes):
            pairs = [(files[name][0], partial / name) for name in part]
            for count in _copied(system, pairs, shown):
                progress(_STAGE, done + count, max(needed, done + count))
            done += sum(place.stat().st_size for _, place in pairs)
            progress(_STAGE, done, max(needed, done))
            for name in part:
                if sizes[name] is not None and (partial / name).stat().st_size != sizes[name]:
                    raise DataError(f"{shown} changed while it was fetched, or did not arrive whole; try again.")
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _together(sizes: Mapping[Path, int | None]) -> Iterator[list[Path]]:
    """Yield files that are fetched at the same time: many that are small, or one that is large."""
    small = [name for name, size in sizes.items() if size is not None and size < _LARGE]
    yield from (small[start : start + _AT_ONCE] for start in range(0, len(small), _AT_ONCE))
    yield from ([name] for name, size in sizes.items() if size is None or size >= _LARGE)


def _copied(system: Any, pairs: Sequence[tuple[str, Path]], shown: str) -> Iterator[int]:
    """Copy files from a place to another; yield the bytes that are there now and then, if it is one file."""
    with _explained(shown):
        if len(pairs) > 1:
            system.get([path for path, _ in pairs], [str(place) for _, place in pairs])
            return
        (path, place), count = pairs[0], 0
        with system.open(path, "rb") as source, place.open("wb") as file:
            while block := source.read(_BLOCK):
                file.write(block)
                yield (count := count + len(block))


@contextmanager
def _explained(shown: str) -> Iterator[None]:
    """Turn whatever a driver raises into one sentence, without its own words, which may hold a password."""
    try:
        yield
    except NatscopeError:
        raise
    except Exception as error:  # whatever a network, a server or a driver does
        full = isinstance(error, OSError) and error.errno in _FULL
        if full or out_of_memory(error):
            raise
        raise DataError(_why(shown, error)) from None


def _why(shown: str, error: Exception) -> str:
    if isinstance(error, ValueError) and "Protocol not known" in str(error):
        return f"fsspec knows no URLs that begin with {shown.partition('://')[0]}://; check the address."
    if isinstance(error, ImportError):  # in fsspec's words, which name the package
        return f"{shown} needs a library that is missing: {str(error).rstrip('.')}."
    status = _status(error)
    if isinstance(error, PermissionError) or status in _REFUSED:
        return f"You have no permission to read {shown}; check your credentials, which fsspec's driver looks for."
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return f"The server of {shown} answered with an error (HTTP status {status}); try again later."
    if isinstance(error, FileNotFoundError):
        return _nothing(shown)
    return f"{shown} cannot be fetched ({type(error).__name__}); check the address, the network and the credentials."


def _status(error: BaseException | None) -> int:
    """Return the HTTP status that led to an error, which fsspec's drivers wrap in others; 0 if none did."""
    while error is not None:
        if isinstance(status := getattr(error, "status", None), int):
            return status
        error = error.__cause__
    return 0


def _nothing(shown: str) -> str:
    return f"There is nothing at {shown}, or it cannot be reached; check the address and the network."


def _no_room(shown: str, folder: Path, error: OSError) -> str:
    return (
        f"{shown} cannot be kept in {folder} ({error.strerror or type(error).__name__}); make room there, or name "
        "another folder in NATSCOPE_HOME."
    )
