"""What a person should know of a folder that became a data set: what was taken, what was not, and what is odd."""

import os
from collections.abc import Sequence
from pathlib import Path

from natscope.core.text import few
from natscope.precompute.data.decode import deepest
from natscope.precompute.data.folders import LARGEST_FILE, FolderSpec, content_of, listed
from natscope.precompute.data.splits import parts, shown, subfolders

_LISTED = 4  # files named in a sentence
_SIXTEEN = {".png", ".tif", ".tiff", ".pgm"}  # of files that may hold grey values of 16 bits
_DEEP = 50  # files that are looked at for them


def remarks(path: Path, spec: FolderSpec, *, train: Sequence[str], test: Sequence[str]) -> list[str]:
    """Return what a person should know of a folder that became a data set, in sentences.

    Args:
        path: the folder.
        spec: its settings.
        train: where the training images come from, as in `Dataset.train_sources`.
        test: likewise.
    """
    found, (classes, *splits) = [], listed(path, spec)
    _, held_out, others = parts(path, spec.test_folder)
    if held_out is not None and others:
        found.append(
            f"{held_out} is the test split, and {', '.join(others)} {'is' if len(others) == 1 else 'are'} not used"
        )
    elif held_out is not None and held_out.lower() != "test":
        found.append(f"{held_out} is the test split")
    if spec.missing_classes and len(splits) > 1:
        alone = [name for label, name in enumerate(classes) if all(label != other for _, other in splits[1])]
        left = sorted(set(subfolders(path / str(held_out))) - set(classes))
        found += [f"without a test image: {few(alone, _LISTED)}"] if alone else []
        found += [f"left out, having no training image: {few(left, _LISTED)}"] if left else []
    images = {file for split in splits for file, _ in split}
    unused = [shown(file.relative_to(path)) for file in _every(path) if file not in images]
    if unused:
        found.append(f"{_counted(unused, 'file')} not used, no image of a class: {few(unused, _LISTED)}")
    contents = {_digest(path / name): name for name in train}
    twice = [f"{name} = {contents[key]}" for name in test if (key := _digest(path / name)) in contents]
    if twice:
        same = "also a training image" if len(twice) == 1 else "also training images"
        found.append(f"{_counted(twice, 'test image')} {same}, byte for byte: {few(twice, _LISTED)}")
    bits = max((known.bit_length() for name in train[:_DEEP] if (known := _deepest(path / name))), default=16)
    if bits < spec.reading.bits:
        found.append(f"files of 16 bits hold values of {bits} bits, so images are dark; --bits {bits} uses them whole")
    return found


def _digest(file: Path) -> str:
    """Return the checksum of a file, known if it did not change; its name if there is none of that name."""
    if not file.is_file():  # its name holds what cannot be printed
        return str(file)
    return content_of(file)


def _deepest(file: Path) -> int | None:
    large = not file.is_file() or file.stat().st_size > LARGEST_FILE
    return None if large or file.suffix.lower() not in _SIXTEEN else deepest(file.read_bytes())


def _counted(files: Sequence[str], thing: str) -> str:
    return f"{len(files):,} {thing} is" if len(files) == 1 else f"{len(files):,} {thing}s are"


def _every(path: Path) -> list[Path]:
    """Return all files below a folder that are not hidden, whatever they are."""
    found = []
    for parent, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
    return found
