import pytest
import torch

from natscope.core.device import device, title
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
    for key in ("allow_tf32", "deterministic"):
        monkeypatch.setattr(torch.backends.cudnn, key, getattr(torch.backends.cudnn, key))
    for name in ("cuda", "cuda:1"):
        monkeypatch.setenv("NATSCOPE_DEVICE", name)
        assert str(device()) == name
    assert taken == [1]
