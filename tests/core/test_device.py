import threading

import pytest
import torch

from natscope.core.device import device, full_precision, precision, reseed, set_precision, title
from natscope.core.errors import BuildError


def test_networks_run_on_the_processor_unless_another_device_is_named(monkeypatch):
    monkeypatch.delenv("NATSCOPE_DEVICE", raising=False)
    assert device() == torch.device("cpu")
    assert title(device()) == "cpu"
    monkeypatch.setenv("NATSCOPE_DEVICE", "")
    assert device() == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "meta", "cpu:x", "xpu", "hpu", "privateuseone"])
def test_a_device_that_is_not_there_is_one_sentence(monkeypatch, name):
    monkeypatch.setenv("NATSCOPE_DEVICE", name)
    with pytest.raises(BuildError, match=f"^PyTorch finds no device {name} here; .*\\.$"):
        device()


def test_an_accelerator_without_a_number_is_the_one_that_libraries_take(monkeypatch):
    taken = []

    def take(found):
        if found.index is None:
            raise ValueError("Expected a torch.device with a specified index or an integer")  # torch 2.11
        taken.append(found.index)

    monkeypatch.setattr(torch, "empty", lambda *_, device: None)
    monkeypatch.setattr(torch.cuda, "set_device", take)
    before = precision()
    for name in ("cuda", "cuda:1"):
        monkeypatch.setenv("NATSCOPE_DEVICE", name)
        assert str(device()) == name
    assert taken == [1]
    assert precision() == before


def test_full_precision_lasts_until_the_last_thread_is_done():
    entered, left, found = threading.Event(), threading.Event(), []

    def work():
        with full_precision():
            entered.set()
            left.wait(30)
            found.append(torch.get_float32_matmul_precision())

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with full_precision():
            thread = threading.Thread(target=work)
            thread.start()
            assert entered.wait(30)
        left.set()
        thread.join()
        assert found == ["highest"]
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="before torch 2.9")
def test_operations_that_a_notebook_has_set_one_by_one_are_set_so_again():
    product, convolution, before = torch.backends.cuda.matmul, torch.backends.cudnn.conv, precision()
    product.fp32_precision, convolution.fp32_precision = "tf32", "ieee"
    try:
        with pytest.raises(RuntimeError, match="mix"):
            torch.get_float32_matmul_precision()
        with full_precision():
            assert (product.fp32_precision, convolution.fp32_precision) == ("ieee", "ieee")
            assert torch.get_float32_matmul_precision() == "highest"
        assert (product.fp32_precision, convolution.fp32_precision) == ("tf32", "ieee")
    finally:
        set_precision(before)


def test_the_processor_is_seeded_as_by_torch():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        drawn = torch.rand(5)
        torch.rand(5)
        reseed(3, torch.device("cpu"))
        assert torch.equal(torch.rand(5), drawn)
