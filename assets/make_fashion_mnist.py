"""Make `assets/fashion_mnist`, a quarter of Fashion-MNIST: `python -m natscope.assets.make_fashion_mnist`.

The training part holds 1,500 images a class, drawn without replacement by numpy's default_rng(0), class by class, and
sorted by their original index; the test part is whole. Files are IDX as in the original.
"""

import argparse
import gzip
import struct
from pathlib import Path

import numpy as np

from natscope import assets
from natscope.precompute.data.datasets import DEBIAN_FOLDER, read_idx

_PER_CLASS = 1500
_CODES = {np.dtype(np.uint8): 0x08, np.dtype(np.int32): 0x0C}


def make(source: Path, out: Path) -> None:
    """Write the five .gz files.

    Args:
        source: the folder of the four original .gz files.
        out: the folder to write to; made if missing.

    Raises:
        DataError: if an original is missing or damaged.
    """
    out.mkdir(parents=True, exist_ok=True)
    labels = read_idx(source / "train-labels-idx1-ubyte.gz")
    rng = np.random.default_rng(0)
    drawn = [rng.choice(np.flatnonzero(labels == label), _PER_CLASS, replace=False) for label in range(10)]
    indices = np.sort(np.concatenate(drawn))
    write_idx(out / "train-indices-idx1-int.gz", indices.astype(np.int32))
    write_idx(out / "train-labels-idx1-ubyte.gz", labels[indices])
    write_idx(out / "train-images-idx3-ubyte.gz", read_idx(source / "train-images-idx3-ubyte.gz")[indices])
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        write_idx(out / name, read_idx(source / name))


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write an array of uint8 or int32 as a compressed IDX file without time stamp or file name."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, _CODES[array.dtype], array.ndim, *array.shape)
    data = array.astype(array.dtype.newbyteorder(">")).tobytes()
    with path.open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as compressed:
        compressed.write(header + data)


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description="Make the Fashion-MNIST subset that natscope ships.")
    parser.add_argument("--source", type=Path, default=DEBIAN_FOLDER, help="folder of the original .gz files")
    parser.add_argument("--out", type=Path, default=assets.path("fashion_mnist"), help="folder to write to")
    arguments = parser.parse_args()
    make(arguments.source, arguments.out)


if __name__ == "__main__":
    main()
