import mmap
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch

from natscope.core.errors import FileError, explained, out_of_memory

_NO_MEMORY = "There is not enough memory"


@pytest.mark.parametrize(
    "ask", [lambda: np.zeros(2**59), lambda: torch.zeros(2**59), lambda: mmap.mmap(-1, 2**62), lambda: bytes(2**62)]
)
def test_every_library_that_gets_no_memory_is_one_sentence(ask):
    with pytest.raises((MemoryError, RuntimeError, OSError)) as raised:
        ask()
    assert out_of_memory(raised.value)
    assert explained(raised.value).startswith(_NO_MEMORY)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RuntimeError("std::bad_alloc"), _NO_MEMORY),
        (RuntimeError("can't start new thread"), _NO_MEMORY),
        (RuntimeError("Cannot Allocate Memory"), _NO_MEMORY),
        (SystemError("error return without exception set"), _NO_MEMORY),
        (OSError("mmap: not enough memory"), _NO_MEMORY),
        (ImportError("libx.so: failed to map segment from shared object"), _NO_MEMORY),
        (PermissionError(13, "Permission denied", "/proc/x"), "/proc/x cannot be used: Permission denied"),
        (OSError(28, "No space left on device"), "The system refuses this: No space left"),
        (OSError("telnetlib"), "The system refuses this: telnetlib"),
    ],
)
def test_what_the_system_refuses_is_one_sentence(error, sentence):
    assert explained(error).startswith(sentence)


@pytest.mark.parametrize(
    "error", [RuntimeError("sizes do not match"), ValueError("x"), KeyError("x"), ImportError("x")]
)
def test_a_fault_of_the_program_is_not_explained_away(error):
    assert explained(error) is None


def test_an_error_about_a_file_crosses_the_border_of_a_process():
    error = FileError(Path("a") / "b", "is missing")
    again = ForkingPickler.loads(bytes(ForkingPickler.dumps(error)))
    assert (type(again), str(again), again.path, again.fault) == (FileError, "a/b is missing.", error.path, error.fault)
