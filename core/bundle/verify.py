"""The check of a whole bundle: every file, and whether they fit each other."""

from collections.abc import Callable, Iterator
from pathlib import Path

from natscope.core.bundle.file_checks import fault
from natscope.core.bundle.format import FIX, Bundle, read_manifest
from natscope.core.errors import BundleError
from natscope.core.files import irregular

_SPLITS = {"train": "training set", "test": "test set"}


def check_bundle(path: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """Return one sentence for each fault that opening and using a bundle would find, except those of its network.

    Args:
        path: the bundle.
        progress: called with bytes read and bytes in all.

    Raises:
        BundleError: if there is no bundle with a manifest that can be used.
    """
    manifest = read_manifest(path)
    total, done, faults = sum(r.bytes for r in manifest.files.values()), 0, list[str]()
    for record in manifest.files.values():
        if wrong := fault(path, record, len(manifest.dataset["classes"])):
            faults.append(f"'{record.file}' {wrong}.")
        done += record.bytes
        progress(done, total)
    files = [path / record.file for record in manifest.files.values()]
    reported = {*files, *(file.parent for file in files)}
    for error in irregular(path):
        if error.path not in reported:
            faults.append(f"'{error.path.relative_to(path)}' {error.fault}; remove it.")
    return faults or list(_joint_faults(Bundle(path)))


def _joint_faults(bundle: Bundle) -> Iterator[str]:
    """Yield a sentence on each mismatch between files of a bundle that are intact one by one."""
    try:
        _ = bundle.members
        for split in ("train", "test"):
            bundle.sources(split)
            for wrong in bundle.modality.misfits(bundle.examples(split)):
                yield f"The {_SPLITS[split]} of the bundle {bundle.path} is damaged: it {wrong}. To fix it, {FIX}."
        for name in bundle.manifest.files:
            if name.startswith("index_"):
                bundle.index(name)
    except BundleError as error:
        yield str(error)
