"""What code of a project may import from its folders, found without running any of it."""

import ast
import os
import pkgutil
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from itertools import accumulate
from pathlib import Path

from natscope.core.errors import FileError
from natscope.core.files import read_regular
from natscope.precompute.training.projects import finders, is_bundle

_SOURCE_LIMIT = 10_000_000  # bytes
_MOST_FOLDERS = 200  # of a project in which modules are looked for
_MOST_LISTED = 2000  # folders whose contents are listed for that
_DEEPEST = 20  # levels of folders within a project
_PATH_CHANGES = re.compile(rb"sys\s*\.\s*path|from\s+sys\s+import|import\s+sys\s+as|addsitedir")


def imported(name: str, folder: Path) -> dict[str, Path]:
    """Return the files of a module and of all that it may import from its project, by name.

    Code that changes `sys.path` may import from the folders within, the one above, and those near that, too.

    Args:
        name: of the module.
        folder: from which its name leads to it.
    """
    files = _imports(name, [folder])
    if any(_changes_path(file) for file in files.values()):
        near = [place for place in _within(folder.parent, 2) if not place.is_relative_to(folder)]
        files |= _imports(name, [folder, *_within(folder, _DEEPEST), folder.parent, *near])
    return files


def _imports(name: str, places: Sequence[Path]) -> dict[str, Path]:
    """Return the files of a module and of all that it may import from some folders, by name, without running them.

    Wherever an import stands, and whichever of two alternatives would be taken: more is found than runs.
    """
    found: dict[str, Path] = {}
    waiting = {name: None}
    while waiting:
        each = next(iter(waiting))
        del waiting[each]
        # Looking for modules invalidates what Python has cached of folders, which two threads must not do at once.
        with finders:
            spec = _located(each, places)
        if spec is not None and spec.has_location:
            found[each] = Path(str(spec.origin))
            package = each if spec.submodule_search_locations is not None else each.rpartition(".")[0]
            waiting |= dict.fromkeys(other for other in _names_in(found[each], package, places) if other not in found)
    return found


def _names_in(file: Path, package: str, places: Sequence[Path]) -> list[str]:
    """Return the names that a source file of a package imports, each with the packages that lead to it."""
    try:
        tree = ast.parse(read_regular(file, _SOURCE_LIMIT, links=True))
    except (FileError, SyntaxError, ValueError, RecursionError, MemoryError):  # importing it reports what is wrong
        return []
    within, names = package.split("."), dict[str, None]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= dict.fromkeys(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = within[: max(len(within) + 1 - node.level, 0)] if node.level else []
            base = ".".join(filter(None, [*above, node.module]))
            parts = [part for alias in node.names for part in _parts(alias.name, base, places)]
            names |= dict.fromkeys([base, *(f"{base}.{part}".lstrip(".") for part in parts)])
    return [prefix for each in names for prefix in accumulate(each.split("."), "{}.{}".format) if prefix]


def _parts(name: str, base: str, places: Sequence[Path]) -> list[str]:
    """Return the modules of a package that an import of a name from it may load: of *, all."""
    if name != "*":
        return [name]
    with finders:
        spec = _located(base, places) if base else None
    within = () if spec is None else spec.submodule_search_locations or ()
    return [found.name for found in pkgutil.iter_modules(getattr(within, "_path", within))]


def _located(name: str, places: Sequence[Path]) -> ModuleSpec | None:
    where: Iterable[str] | None = [str(place) for place in places]
    spec = None
    for part in name.split("."):
        if where is None or (spec := PathFinder.find_spec(part, list(where))) is None:
            return None
        within = spec.submodule_search_locations
        where = getattr(within, "_path", within)  # a folder without code asks for its parent, which is not imported
    return spec


def _changes_path(file: Path) -> bool:
    """Return whether a file may change `sys.path`, by whatever name it has there."""
    try:
        return _PATH_CHANGES.search(read_regular(file, _SOURCE_LIMIT, links=True)) is not None
    except FileError:  # reading it for its checksum reports what is wrong
        return False


def _within(folder: Path, levels: int) -> list[Path]:
    """Return the folders within one that may hold modules, the nearest first and not too many."""
    found, listed = list[Path](), [(folder, 0)]
    for each, level in listed:  # which grows meanwhile
        if len(found) == _MOST_FOLDERS:
            break
        with suppress(OSError), os.scandir(each) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
            folders = [Path(entry) for entry in inside if entry.name.isidentifier() and entry.is_dir()]
            folders = [path for path in folders if path.name != "__pycache__" and not is_bundle(path)]
            if level < levels:
                listed += [(path, level + 1) for path in folders][: _MOST_LISTED - len(listed)]
            if each != folder and (folders or any(entry.name.endswith(".py") for entry in inside)):
                found.append(each)
    return found
