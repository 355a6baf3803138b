"""Whose code may run: a module that makes a network is imported only after the user has trusted it.

A bundle is a stranger's data and may name any module. The user trusts one by building with it, which is recorded in the
user's configuration, outside every bundle, or for one run by `--allow-code`. Modules are found here without running any
of their code; only `natscope.precompute.training.models` imports what `find` returns.
"""

import hashlib
import importlib
import json
import os
import platform
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from itertools import accumulate
from pathlib import Path
from typing import Any

import filelock

from natscope.core.bundle.format import MANIFEST, Bundle, sha256_of, write_atomically
from natscope.core.errors import BuildError, FileError, UntrustedError
from natscope.core.files import from_json, read_regular
from natscope.core.locks import locked
from natscope.precompute.paths import configuration
from natscope.precompute.training.imports import imported
from natscope.precompute.training.projects import (
    INSTALLED,
    NOT_THEIRS,
    elsewhere,
    finders,
    folders_of,
    is_bundle,
    project_in,
)

ALLOWED = "NATSCOPE_ALLOW_CODE"  # environment variable, which child processes inherit: names separated by commas
_MODEL = "--model (factory= in Python)"  # as a sentence names the option
_LONGEST = 200  # characters of "module.path:factory"
_RECORD, _RECORD_LIMIT = "trusted.json", 10_000_000  # bytes
_PATIENCE = 10.0  # seconds
_LISTED = 5  # folders in a message
_MOST_DIGESTS = 1000  # states of a module that are remembered
_built_with: dict[str, str] = {}  # files by architecture, so that a concurrent build does not affect this one


@dataclass(frozen=True)
class Code:
    """A module that was found and is trusted, but not imported yet.

    Args:
        module: its dotted name.
        factory: the name in it that makes the network.
        chain: the specs of its packages and of the module itself, the outermost first.
    """

    module: str
    factory: str
    chain: tuple[ModuleSpec, ...]

    @property
    def file(self) -> Path:
        """The file of the module, links resolved."""
        return Path(str(self.chain[-1].origin)).resolve()

    @property
    def folder(self) -> Path:
        """The folder from which the dotted name leads to the file."""
        file = Path(str(self.chain[-1].origin)).absolute()
        return (file.parent if file.name == "__init__.py" else file).parents[len(self.chain) - 1]

    @property
    def digest(self) -> str:
        """SHA-256 over the module's file and those of its project that it imports, found without running them.

        Other files that the code reads are not covered; `natscope.precompute.training.retrain` compares how training
        begins.
        """
        files = {self.module: self.file}
        if self.folder.name not in INSTALLED:
            files |= imported(self.module, self.folder)
        sums = {name: sha256_of(file) for name, file in sorted(files.items())}
        return sums[self.module] if len(sums) == 1 else hashlib.sha256(json.dumps(sums).encode()).hexdigest()

    def importable(self) -> AbstractContextManager[None]:
        """Let imports of the module lead to exactly what was found, see `natscope.precompute.training.projects`."""
        return project_in(self.folder, self.digest).importing(self.chain)


@dataclass(frozen=True)
class Trusted:
    """A record of trust.

    Args:
        architecture: a network's "module.path:factory".
        file: of the module.
        folder: that led there.
        digests: `Code.digest` of each state that was built with, the latest last.
    """

    architecture: str
    file: str
    folder: str
    digests: tuple[str, ...] = ()


def allow(names: Iterable[str]) -> None:
    """Trust modules for this run and the processes that it starts.

    Args:
        names: "module.path", or "module.path:factory" for that one factory alone.

    Raises:
        BuildError: if one is not such a name.
    """
    names = tuple(names)
    for name in names:
        module, colon, factory = name.partition(":")
        if not _is_name(module, factory if colon else "factory"):
            raise BuildError(
                f"--allow-code takes the name of a module, such as my_model or my_model:Net, not {name[:_LONGEST]!r}."
            )
    os.environ[ALLOWED] = ",".join(dict.fromkeys((*_allowed(), *names)))


def trust(architecture: str, option: str | None = None) -> None:
    """Record that the user trusts a network's module, so that its bundles open from any working directory.

    The module is looked up as Python would, and in the working directory last. natscope's own networks need no trust.

    Args:
        architecture: "module.path:function".
        option: what takes it, for messages, where it is another function than one that makes a network.

    Raises:
        BuildError: if it is not such a name, there is no such module, it lies in a bundle, or the record cannot be
            written.
    """
    if ":" not in architecture and option is None:
        return
    module, factory = _split(architecture, option)
    if (chain := _chain(module)) is None:
        raise _not_found(module)
    code = _checked_code(Code(module, factory, chain), None)
    entry = Trusted(architecture, str(code.file), str(code.folder), (code.digest,))
    _built_with[architecture] = entry.file
    recorded = _recorded()
    if _with(recorded, entry) == recorded:
        return
    folder = configuration()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        with locked(folder / f"{_RECORD}.lock", _PATIENCE):
            text = json.dumps({"trusted": [asdict(known) for known in _with(_recorded(), entry)]}, indent=1)
            write_atomically(folder / _RECORD, text.encode())
    except (OSError, filelock.Timeout) as error:
        reason = getattr(error, "strerror", None) or "another natscope holds it"
        raise BuildError(
            f"That you trust {architecture} cannot be recorded in {folder} ({reason}); name a folder for settings that "
            "can be written in XDG_CONFIG_HOME."
        ) from error


def admit(architecture: str, digest: str) -> None:
    """Let this process import a network's module if it is what whoever started its task trusts, and record nothing.

    Args:
        architecture: "module.path:factory".
        digest: `Code.digest` of what is trusted.

    Raises:
        BuildError: if there is no such module, or it is another.
    """
    with suppress(BuildError, UntrustedError):
        if find(architecture).digest == digest:
            return
    module, factory = _split(architecture)
    if (chain := _chain(module)) is None:
        raise _not_found(module)
    code = _checked_code(Code(module, factory, chain), None)
    if code.digest != digest:
        raise BuildError(
            f"The module {module} ({code.file} on {platform.node()}), or one that it imports, is not as it was where "
            "the build was started; use the same on every machine, and run the command again."
        )
    allow([architecture])


def find(architecture: str, bundle: Bundle | None = None) -> Code:
    """Return the trusted module of a network, without running any of its code.

    Args:
        architecture: "module.path:factory".
        bundle: the bundle whose manifest names it, if any.

    Raises:
        BuildError: if it is not such a name, is not found, or lies in a bundle.
        UntrustedError: if it is not trusted.
    """
    module, factory = _split(architecture)
    allowed = bool({module, architecture} & _allowed().keys())
    if allowed and (chain := _chain(module)):
        return _checked_code(Code(module, factory, chain), bundle)
    recorded = [known for known in _recorded() if known.architecture == architecture]
    candidates = _candidates(architecture, recorded, bundle)
    for known in candidates:
        for chain in (_chain(module, known.folder), _chain(module)):
            if chain and str((code := Code(module, factory, chain)).file) == known.file:
                return _checked_code(code, bundle)
    if allowed:
        raise _not_found(module)
    if recorded and not candidates:
        folders = ", ".join(known.folder for known in recorded[-_LISTED:])
        raise BuildError(
            f"You trust several modules called {module} ({folders}), and this bundle was built with none of them as it "
            f"is or was; run natscope in the folder of the one that belongs to it, with `--allow-code {architecture}`."
        )
    if recorded:
        raise BuildError(
            f"The module {module}, which you trusted, is no longer at {candidates[0].file}; put it back, or run "
            f"natscope where it is with `--allow-code {architecture}`."
        )
    who = f"The network {architecture}" if bundle is None else f"The bundle {bundle.path}"
    raise UntrustedError(
        f"{who} wants to run code from the module {module}, which is not part of natscope and which you have not "
        f"trusted; if you trust whoever made it, run natscope in the folder that holds it, with `--allow-code "
        f"{architecture}`."
    )


def _split(architecture: str, option: str | None = None) -> tuple[str, str]:
    module, _, factory = architecture.partition(":")
    takes = f"{option or _MODEL} takes module.path:function of your own"
    if not _is_name(module, factory):
        example = "my_data:function" if option else "my_model:Net"
        raise BuildError(f"{takes}, such as {example}, not {architecture[:60]!r}.")
    if module.partition(".")[0] in NOT_THEIRS:
        raise BuildError(f"{module} is a module of Python or natscope; {takes}.")
    return module, factory


def _is_name(module: str, factory: str) -> bool:
    """Return whether these are identifiers, which hold no markup or control characters."""
    return len(module) + len(factory) < _LONGEST and all(map(str.isidentifier, (*module.split("."), factory)))


def _allowed() -> dict[str, None]:
    return dict.fromkeys(name for name in os.environ.get(ALLOWED, "").split(",") if name)


def _recorded() -> list[Trusted]:
    """Return what is trusted, the latest last."""
    file = configuration() / _RECORD
    try:
        read = from_json(read_regular(file, _RECORD_LIMIT, links=True))["trusted"]
        found = [Trusted(**entry | {"digests": tuple(entry.get("digests", ()))}) for entry in read]
        texts = (text for each in found for text in (each.architecture, each.file, each.folder, *each.digests))
        if not all(isinstance(text, str) and "\0" not in text for text in texts):
            raise TypeError
    except FileError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return []
        raise BuildError(f"What code you trust cannot be read: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BuildError(
            f"The record of what code you trust, {file}, is damaged; delete it and build again."
        ) from error
    return found


def _with(recorded: Sequence[Trusted], entry: Trusted) -> list[Trusted]:
    """Return the record with an entry as its latest, which takes over the digests of an earlier one of its file."""
    same = [known for known in recorded if (known.architecture, known.file) == (entry.architecture, entry.file)]
    before = [digest for known in same for digest in known.digests if digest not in entry.digests]
    merged = replace(entry, digests=(*before, *entry.digests)[-_MOST_DIGESTS:])
    return [*(known for known in recorded if known not in same), merged]


def _candidates(architecture: str, recorded: Sequence[Trusted], bundle: Bundle | None) -> list[Trusted]:
    """Return the files of one name that a network may come from, the likeliest first.

    A bundle's own are those as it was built with, then those that were so once and have been edited since. Of several
    alike, as copies are, that of the working directory comes first, then the latest. Only a bundle from elsewhere may
    get any other: the only one, or that of the working directory.
    """
    if bundle is None:
        return sorted(recorded, key=lambda known: known.file == _built_with.get(known.architecture))[::-1]
    source = _source(architecture, bundle.manifest.results.get("settings"))
    same = [known for known in recorded if source is not None and _digest(known) == source]
    edited = [known for known in recorded if source in known.digests and known not in same]
    here = [known for known in recorded if known.folder in _here()]
    for alike in (same, edited):
        alike.sort(key=lambda known: (known in here, recorded.index(known)), reverse=True)
    return [*same, *edited] or (list(recorded) if len(recorded) == 1 else here)


def _source(name: str, settings: object) -> str | None:
    """Return the checksum of code with which a bundle was built: of its network, or of another function that it names.

    Args:
        name: "module.path:factory".
        settings: of the bundle, which a stranger may have written.
    """
    model, others = (_part(settings, key) for key in ("model", "code"))
    source = others.get(name, model.get("source"))
    return source if isinstance(source, str) else None


def _part(settings: object, key: str) -> dict[str, Any]:
    found = settings.get(key) if isinstance(settings, dict) else None
    return found if isinstance(found, dict) else {}


def _digest(known: Trusted) -> str | None:
    module, factory = _split(known.architecture)
    chain = _chain(module, known.folder)
    return Code(module, factory, chain).digest if chain else None


def _chain(module: str, folder: str | None = None) -> tuple[ModuleSpec, ...] | None:
    """Find a module's packages and the module itself; None if one is missing.

    `importlib.util.find_spec` would import the packages. Here each is looked up in the folders of the one before, by
    its last name alone, and no `__init__.py` can extend them.

    Args:
        module: dotted name.
        folder: where to begin; Python's own path, then the working directory, when None.
    """
    with finders:
        importlib.invalidate_caches()
    chain: list[ModuleSpec] = []
    for name in accumulate(module.split("."), "{}.{}".format):
        last = name.rpartition(".")[2]
        if chain:
            found = PathFinder.find_spec(last, list(chain[-1].submodule_search_locations or ()))
        else:
            found = elsewhere(last, *_here()) if folder is None else PathFinder.find_spec(last, [folder])
        if found is None:
            return None
        chain.append(_renamed(found, name))
    if chain[-1].origin is None:
        return None  # a folder without code
    return tuple(chain)


def _renamed(found: ModuleSpec, name: str) -> ModuleSpec:
    """Return the same origin under a dotted name, once it is known to be a folder or a Python source file."""
    if found.origin is None and found.submodule_search_locations:
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = list(found.submodule_search_locations)
        return spec
    if not isinstance(found.loader, SourceFileLoader) or not str(found.origin).endswith(".py"):
        raise BuildError(
            f"The module {name} is not a Python source file, and natscope imports no other kind to make a network; "
            "import it in a file of your own."
        )
    return spec_from_file_location(name, str(found.origin))  # type: ignore[return-value]  # never None for a .py file


def _here() -> list[str]:
    try:
        return [str(Path.cwd())]
    except OSError:  # it was deleted
        return []


def _checked_code(code: Code, bundle: Bundle | None) -> Code:
    """Return the module if neither it nor a package of it lies in a bundle: a bundle's own code is never trusted."""
    for spec in code.chain:
        for folder in folders_of(spec) if spec.origin else ():
            if _is_bundle(folder, None if bundle is None else bundle.path.resolve()):
                raise BuildError(
                    f"The module {spec.name} lies in the bundle {folder}, and nothing in a bundle is ever run; if you "
                    "trust whoever made it, copy it out of the bundle into the folder in which you run natscope."
                )
    return code


def _is_bundle(folder: Path, opened: Path | None) -> bool:
    beside = opened is not None and folder.parent == opened.parent and (folder / MANIFEST).exists()
    return folder == opened or beside or is_bundle(folder)


def _not_found(module: str) -> BuildError:
    return BuildError(
        f"There is no module {module} here; run natscope in the folder that holds it, or install it beside natscope."
    )
