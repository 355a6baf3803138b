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
    with pytest.raises(BuildError, match=f"^NATSCOPE_DEVICE is {name}, which PyTorch does not find here; .*\\.$"):
        device()
