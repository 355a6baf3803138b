"""The modules of users' projects: two projects may have modules of the same name, and the code of each means its own.

Python knows one module per name in a process. Here each folder's modules are kept apart: whenever code of a project
imports, while it is loaded or much later, as in `forward`, its own files' names lead to its own files.
"""

import builtins
import functools
import importlib.metadata
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from natscope.core.errors import out_of_memory

NOT_THEIRS = frozenset(sys.stdlib_module_names) | {"natscope"}
INSTALLED = ("site-packages", "dist-packages")  # folders whose modules belong to many projects
finders = threading.Lock()  # guards Python's list of finders, which two threads must not change at once
_importing = threading.RLock()  # held while modules of one project stand in for those of another
_LONGEST = 200  # characters of what somebody's code says
_PATIENCE = 120.0  # seconds for which a thread waits for another one that imports
_projects: dict[tuple[str, str], "Project"] = {}  # by folder and digest


def project_in(folder: Path, digest: str) -> "Project":
    """Return the project of a folder whose files have this checksum, the same one each time.

    Edited files are another project: networks that were made before go on with the modules that they came from.
    """
    return _projects.setdefault((str(folder), digest), Project(folder))


def complaint(error: BaseException) -> str | None:
    """Return a sentence on an error that came out of code of a project; None for any other, or a lack of memory."""
    if out_of_memory(error) or not raised_by_one(error):
        return None
    return f"The code of a network that is not natscope's own fails: {said(error)}."


def said(error: BaseException) -> str:
    """Return the type of an error that somebody's code raised, and the first line of its text, as it can be printed."""
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, as it can be printed, or the name of its type."""
    try:
        text = str(error).strip()
    except BaseException:  # somebody's code
        text = ""
    line = (text or type(error).__name__).splitlines()[0].strip()[:_LONGEST].rstrip(".: ")
    return "".join(letter if letter.isprintable() else " " for letter in line)


def raised_by_one(error: BaseException) -> bool:
    """Return whether an error came out of code of a project."""
    trace = error.__traceback__
    while trace is not None:
        if any(trace.tb_frame.f_builtins is project.builtins for project in _projects.values()):
            return True
        trace = trace.tb_next
    return False


class Project(MetaPathFinder):
    """The modules of one folder, and of folders that its code adds to `sys.path`.

    A module whose name several projects use is in `sys.modules` only while code of its project imports, and what a
    project adds to `sys.path` is there only then.
    """

    def __init__(self, folder: Path) -> None:
        """Import nothing yet."""
        self._folder, self._installed = str(folder), folder.name in INSTALLED
        self._specs: dict[str, ModuleSpec] = {}  # modules that were found and trusted
        self._tops: set[str] = set()  # top-level names of its own
        self._asked: set[str] = set()  # top-level names that its code imports
        self._modules: dict[str, ModuleType] = {}
        self._aside: dict[str, ModuleType] = {}
        self._before: dict[str, ModuleType] = {}
        self._path: list[str] = []  # sys.path while no code of a project imports
        self._added: tuple[list[str], list[str]] = [], []  # what its code put before and after that
        self._depth = 0
        self.builtins = vars(builtins) | {"__import__": self._import}

    @contextmanager
    def importing(self, chain: Sequence[ModuleSpec]) -> Iterator[None]:
        """Let imports of a module lead to exactly what was found, and let it import what lies beside it.

        Args:
            chain: the specs of its packages and of the module itself, the outermost first.
        """
        with _alone():
            self._specs |= {spec.name: spec for spec in chain}
            self._tops.add(chain[0].name)
            with self._standing_in():
                yield

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the spec of a module of the project; None if it has no module of this name."""
        if fullname in self._specs:
            found: ModuleSpec | None = self._specs[fullname]
        elif path is not None:
            found = PathFinder.find_spec(fullname, path) if _top(fullname) in self._tops else None
        else:
            found = self._beside(fullname)
            if found is not None and not (fullname in self._asked and found.has_location):
                other = elsewhere(fullname)  # may be the same, found by what this project added to the path
                if other is not None and origins(other) != origins(found):
                    found = None  # a folder without code, or a library's import: installed modules come first
        if found is None:
            return None
        _refuse_bundles(found, fullname)
        self._tops.add(_top(fullname))
        if type(found.loader) is not SourceFileLoader:
            return found
        origin = str(found.origin)
        return spec_from_file_location(
            fullname,
            origin,
            loader=_Loader(fullname, origin, self),
            submodule_search_locations=found.submodule_search_locations,
        )

    def _import(
        self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> ModuleType:
        """Import as code of this project does: what `import` calls there."""
        top = _top(name)
        if not level and not self._is_contested(top):
            if top not in sys.modules and top not in NOT_THEIRS and (found := elsewhere(top)) is not None:
                _refuse_bundles(found, top)
            return builtins.__import__(name, globals, locals, fromlist, level)
        with self._standing_in():
            if not level:
                self._asked.add(top)
                self._make_way(top)
            return builtins.__import__(name, globals, locals, fromlist, level)

    def _is_contested(self, top: str) -> bool:
        """Return whether a name may lead to a module of a project; any other import need not wait for anybody."""
        if top in NOT_THEIRS or top in libraries():
            return False
        return any(top in project._tops for project in list(_projects.values())) or self._beside(top) is not None

    def _beside(self, name: str) -> ModuleSpec | None:
        if self._installed or name in NOT_THEIRS or name in libraries():
            return None
        first, last = self._additions() if self._depth else self._added
        return PathFinder.find_spec(name, [*first, self._folder, *last])

    def _additions(self) -> tuple[list[str], list[str]]:
        """Return what the project's code has put before and after the usual entries of `sys.path`, while it imports."""
        start = next((at for at, entry in enumerate(sys.path) if entry in self._path), len(sys.path))
        found = [entry for entry in sys.path[:start] if isinstance(entry, str)]
        return found, [entry for entry in sys.path[start:] if isinstance(entry, str) and entry not in self._path]

    @contextmanager
    def _standing_in(self) -> Iterator[None]:
        with _alone():
            if not self._depth:
                with finders:  # a new list each time, since other threads may be iterating over the old one
                    sys.meta_path = [self, *sys.meta_path]
                self._before, self._path = dict(sys.modules), sys.path
                first, last = self._added
                sys.path = [*first, *self._path, *last]
                for name in set().union(*(project._tops for project in _projects.values())):
                    self._make_way(name)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if not self._depth:
                    self._leave()

    def _make_way(self, name: str) -> None:
        """Make a top-level name lead to this project's module."""
        loaded = sys.modules.get(name)
        if loaded is not None and loaded is not self._modules.get(name) and self._is_another(name, loaded):
            others = {each: module for each, module in sys.modules.items() if _top(each) == name}
            for each in others:
                del sys.modules[each]
            self._aside |= others
        if sys.modules.get(name) in (None, self._modules.get(name)):
            for each in [each for each in self._modules if _top(each) == name]:
                sys.modules[each] = self._modules[each]
                self._before[each] = self._modules[each]

    def _is_another(self, name: str, loaded: ModuleType) -> bool:
        if any(project is not self and project._modules.get(name) is loaded for project in _projects.values()):
            return True  # of another folder, or of this one before it was edited
        if name in self._specs:
            return origins(loaded) != origins(self._specs[name])
        own = self._beside(name)
        return own is not None and bool(own.has_location) and origins(loaded) != origins(own)

    def _hides(self, name: str) -> bool:
        """Return whether a module of this project has the name of one that Python finds elsewhere."""
        own, other = sys.modules.get(name), elsewhere(name)
        return own is not None and other is not None and origins(own) != origins(other)

    def _leave(self) -> None:
        with finders:
            sys.meta_path = [finder for finder in sys.meta_path if finder is not self]
        self._added, sys.path = self._additions(), self._path
        fresh = {name: module for name, module in sys.modules.items() if self._before.get(name) is not module}
        self._modules |= {name: module for name, module in fresh.items() if _top(name) in self._tops}
        contested = {_top(name) for name in self._aside}
        for project in _projects.values():
            contested |= project._tops if project is not self else set()
        contested |= {top for top in self._tops if self._hides(top)}
        for name, module in self._modules.items():
            if _top(name) in contested and sys.modules.get(name) is module:
                del sys.modules[name]
        of_projects = {id(module) for project in _projects.values() for module in project._modules.values()}
        sys.modules.update({name: module for name, module in self._aside.items() if id(module) not in of_projects})
        self._aside, self._before = {}, {}


@contextmanager
def _alone() -> Iterator[None]:
    if not _importing.acquire(timeout=_PATIENCE):
        raise ImportError("another thread of this process does not finish its import")
    try:
        yield
    finally:
        _importing.release()


class _Loader(SourceFileLoader):
    """Runs a module of a project with an `import` of the project's own."""

    def __init__(self, fullname: str, path: str, project: Project) -> None:
        super().__init__(fullname, path)
        self._project = project

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = self._project.builtins  # which every function in it keeps
        super().exec_module(module)


def is_bundle(folder: Path) -> bool:
    """Return whether a folder is a bundle."""
    from natscope.core.bundle.format import MANIFEST, WEIGHTS  # which imports torch; processes for uploads do without

    return (folder / MANIFEST).exists() and (folder / WEIGHTS).exists()


@functools.cache
def libraries() -> frozenset[str]:
    """Return the modules of the libraries that natscope requires; a file of such a name never takes their place.

    To give it to a project, the library would have to be taken from all other threads for as long as the project
    imports.
    """
    found = set[str]()
    for requirement in importlib.metadata.requires("natscope") or ():
        if "extra ==" not in requirement:
            files = importlib.metadata.files(re.split(r"[^\w.-]", requirement)[0]) or ()
            found |= {f.parts[0].removesuffix(".py") for f in files if f.name in ("__init__.py", f.parts[0])}
    return frozenset(filter(str.isidentifier, found)) - {"tests", "examples"}


def _refuse_bundles(found: ModuleSpec, name: str) -> None:
    """Raise ModuleNotFoundError for a module that lies in a bundle, wherever Python found it."""
    if (bundle := next(filter(is_bundle, folders_of(found)), None)) is not None:
        raise ModuleNotFoundError(f"{name} lies in the bundle {bundle}, whose code never runs", name=name)


def folders_of(found: ModuleSpec) -> Iterator[Path]:
    """Yield the folders in which the code of a module lies, links resolved and not."""
    for origin in (found.origin, *(found.submodule_search_locations or ())):
        if origin is not None and (found.has_location or origin != found.origin):
            path = Path(origin)
            yield from (path, *path.absolute().parents, *path.resolve().parents)


def elsewhere(name: str, *folders: str) -> ModuleSpec | None:
    """Find a top-level module as an import would, including packages that are installed for development.

    Args:
        name: the module's name.
        folders: where to look last.
    """
    for finder in sys.meta_path:
        if finder is PathFinder:
            found = PathFinder.find_spec(name, [*sys.path, *folders])
        elif isinstance(finder, Project) or not hasattr(finder, "find_spec"):
            continue
        else:
            found = finder.find_spec(name, None)
        if found is not None:
            return found
    return None


def origins(found: ModuleType | ModuleSpec) -> list[Path]:
    """Return where a module's code is: one file, or the folders of a package that has none."""
    spec = found if isinstance(found, ModuleSpec) else found.__spec__
    origin = getattr(found, "__file__", None) or (spec and spec.has_location and spec.origin)
    where = [origin] if origin else list(getattr(spec, "submodule_search_locations", None) or ())
    return [Path(path).resolve() for path in where]


def _top(name: str) -> str:
    return name.partition(".")[0]
