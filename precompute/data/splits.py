"""The parts of a folder of images: which of its folders holds the training images, which the test images."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from natscope.core.errors import DataError
from natscope.core.text import UNSEEN
from natscope.precompute.data.decode import EXTENSIONS

HIDDEN = (".", "__MACOSX")  # how folders begin that an archive or a system adds
_TRAINING = ("train", "training")  # names for the training split
_HELD_OUT = {"test", "testing", "val", "valid", "validation", "eval", "dev", "holdout"}  # names for the test split


def parts(path: Path, test_folder: str | None) -> tuple[str, str | None, list[str]]:
    """Return the folder of the training images, "" for the whole, that of the test images if any, and those not used.

    A folder is divided into splits if it has one called train, or training, that holds classes or stands beside usual
    names of a test split alone.

    Args:
        path: the folder of the data set.
        test_folder: name of the folder of test images; the one of a usual name when None.

    Raises:
        DataError: if it is not clear which folder holds the test images.
    """
    names = subfolders(path)
    there = {name.lower() for name in names}
    train = next((name for name in _TRAINING if name in there), None)
    others = [name for name in dict.fromkeys(map(str.lower, names)) if name != train]
    usual = [name for name in others if name in _HELD_OUT]
    if test_folder is not None:
        taken = test_folder.lower()
        if train is None or taken not in others:
            raise DataError(f"{path} has no folders train and {test_folder}, as --test-folder {test_folder} says.")
    elif train is None:
        if usual and usual == others and all(_holds_classes(path / name) for name in names):
            raise DataError(f"{path} has {' and '.join(names)} and no train; call the folder of training images train.")
        return "", None, []
    elif all(_holds_images(path / name) for name in names):  # classes of these names
        return "", None, []
    elif "test" in others:
        taken = "test"
    elif usual == others or _holds_classes(path / _only(path, names, train)):
        if len(usual) > 1:
            raise DataError(f"{path} has {' and '.join(usual)} beside train; choose one by --test-folder {usual[0]}.")
        alike = [name for name in names if name.lower() in others and _holds_classes(path / name)]
        if not usual and alike:
            raise DataError(
                f"{path} has {alike[0]} beside {train}; if it holds the test images, say so by --test-folder "
                f"{alike[0]}, and if both are classes, rename {train}."
            )
        if not usual:
            return _only(path, names, train), None, [name for name in names if name.lower() != train]
        taken = usual[0]
    else:
        return "", None, []
    left = [name for name in names if name.lower() not in (train, taken)]
    return _only(path, names, train), _only(path, names, taken), left


def _only(path: Path, names: Sequence[str], wanted: str) -> str:
    """Return the folder of a name, whose letters may be large; raises DataError if there are two of them."""
    found = [name for name in names if name.lower() == wanted]
    if len(found) > 1:
        raise DataError(_alike("folders", found[0], found[1], path))
    return found[0]


def _holds_classes(folder: Path) -> bool:
    """Return whether a folder looks like a split: with folders of its own, and no image beside them."""
    return len(subfolders(folder)) > 1 and not _holds_images(folder)


def _holds_images(folder: Path) -> bool:
    return any(file.suffix.lower() in EXTENSIONS for file in folder.iterdir())


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder that are not hidden, sorted."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(HIDDEN))


def _alike(kind: str, one: str, other: str, folder: Path) -> str:
    return (
        f"The {kind} {one} and {other} of {folder} differ in nothing but upper and lower case or the way an accent is "
        "written; merge or rename one."
    )


def class_names(folder: Path) -> list[str]:
    """Return the classes of a folder; names that some systems or commands cannot tell apart are refused."""
    names, known = subfolders(folder), dict[str, str]()
    for name in names:
        if not name.isprintable():
            raise DataError(f"The class folder {shown(Path(name))!r} in {folder} has no printable name; rename it.")
        other = known.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise DataError(_alike("classes", other, name, folder))
    return names


def shown(path: Path) -> str:
    """Return a path as text that can be printed; what is not text in it becomes question marks."""
    return UNSEEN.sub("\ufffd", os.fsencode(path).decode(errors="replace"))
