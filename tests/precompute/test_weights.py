import pickle
import warnings
import zipfile
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from torch import nn

from natscope.core.errors import BuildError
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.training.models import ModelSpec, build_model
from natscope.precompute.training.weights import load_weights
from tests.conftest import one_sentence

_SPEC = ModelSpec(widths=(6, 5, 3), bias=True)
_OWN = ModelSpec("their.module:network", None)


class Net(nn.Module):
    """A network whose names begin like a prefix that training scripts add."""

    def __init__(self):
        super().__init__()
        self.model = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)


@pytest.fixture
def model():
    return build_model(_SPEC, seed=0)


@pytest.fixture
def weights():
    return build_model(_SPEC, seed=1).state_dict()


def _nested():
    with warnings.catch_warnings(action="ignore"):  # a prototype
        return torch.nested.nested_tensor([torch.ones(3), torch.ones(2)])


def _same(model, weights):
    return all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def _prefixed(weights, prefix):
    return {prefix + name: tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"state_dict": w, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda w: {"model": w},
        lambda w: {"model_state_dict": w},
        lambda w: {"state_dict": _prefixed(w, "module.")},
        lambda w: _prefixed(w, "_orig_mod.module."),
        lambda w: {"checkpoint": 1, "model": {"state_dict": _prefixed(w, "model.")}},
        lambda w: {"model_state": w, "step": 7},
        lambda w: {"ema": {"module": w, "decay": 0.99}},
        lambda w: _prefixed(w, "backbone."),
        lambda w: _prefixed(w, "my_task.classifier."),
        lambda w: {f"backbone.{name}" if name.startswith("1.") else name: t for name, t in w.items()},
        lambda w: {"n_averaged": torch.tensor(3), **_prefixed(w, "module.")},
    ],
)
@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights"])
def test_state_dicts_of_torch_are_found_where_training_scripts_put_them(model, weights, tmp_path, wrap, name):
    torch.save(wrap(weights), tmp_path / name)
    load_weights(model, tmp_path / name, _SPEC)
    assert _same(model, weights)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("name", ["weights.safetensors", "weights"])
def test_safetensors_are_known_by_their_content(model, weights, tmp_path, prefix, name):
    safetensors.torch.save_file(_prefixed(weights, prefix), tmp_path / name)
    load_weights(model, tmp_path / name, _SPEC)
    assert _same(model, weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_load_into_float32(model, weights, tmp_path, dtype):
    torch.save({name: tensor.to(dtype) for name, tensor in weights.items()}, tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt", _SPEC)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert _same(model, {name: tensor.to(dtype).float() for name, tensor in weights.items()})


def test_a_prefix_that_the_network_has_itself_is_left(tmp_path):
    weights = {name: t for name, t in Net().state_dict().items() if name.startswith("model.")}
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(BuildError, match=r"no 'norm\.weight' \(and 3 more\)"):
        load_weights(Net(), tmp_path / "w.pt", _OWN)


def test_batch_norm_may_lack_the_count_of_its_batches(tmp_path):
    weights = {name: t for name, t in Net().state_dict().items() if "num_batches" not in name}
    torch.save(weights, tmp_path / "w.pt")
    load_weights(Net(), tmp_path / "w.pt", _OWN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("3.bias"), "the file has no '3.bias'"),
        (lambda w: w.update(extra=torch.zeros(1)), "the network has no 'extra'"),
        (lambda w: w.update({"3.weight": torch.zeros(4, 5)}), "'3.weight' is 3 × 5, the file's 4 × 5"),
    ],
)
@pytest.mark.parametrize(
    ("spec", "advice"),
    [
        (_SPEC, ["mlp 6-5-3: ", "--widths and --bias"]),
        (_OWN, ["their.module:network: "]),
    ],
)
def test_weights_of_another_network_are_told_apart(model, weights, tmp_path, change, message, spec, advice):
    change(weights)
    file = tmp_path / "w.pt"
    torch.save(weights, file)
    with pytest.raises(BuildError, match="do not fit") as caught:
        load_weights(model, file, spec)
    assert all(part in one_sentence(str(caught.value)) for part in (str(file), message, *advice))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda f: torch.save(Net(), f), "something else than weights"),
        (lambda f: torch.save({"a": 1}, f), "holds 'a', .* not a weight"),
        (lambda f: torch.save([torch.zeros(1)], f), "holds list and not"),
        (lambda f: torch.save({}, f), "holds dict and not"),
        (lambda f: f.write_bytes(b"PK\x03\x04" + b"x" * 100), "is damaged, .* torch.save"),
        (lambda f: f.write_bytes(b"\x80\x04" + b"x" * 100), "something else than weights"),
        (lambda f: f.write_text("weights"), "neither a safetensors file"),
        (lambda f: f.write_bytes(b""), "neither a safetensors file"),
        (lambda f: f.mkdir(), "no file of weights at"),
        (lambda f: None, "no file of weights at"),
        (lambda f: torch.save({"1.weight": torch.zeros(5, 6, dtype=torch.int8)}, f), "'1.weight' as int8"),
        (lambda f: torch.save({"1.weight": torch.eye(6).to_sparse()}, f), "'1.weight' as a sparse"),
        (lambda f: torch.save({"1.weight": _nested()}, f), "nested"),
        (lambda f: torch.save({"1.weight": torch.empty(5, 6, device="meta")}, f), "'1.weight' as .* empty"),
    ],
)
def test_files_that_are_no_weights_are_one_sentence(model, tmp_path, write, message):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    write(tmp_path / "w.pt")
    with pytest.raises(BuildError, match=message) as caught:
        load_weights(model, tmp_path / "w.pt", _SPEC)
    one_sentence(str(caught.value))
    assert _same(model, before)


@pytest.mark.parametrize(
    ("wrap", "key", "prefix"),
    [
        (lambda w: {"model": _zeros(w), "ema": w}, "ema", ""),
        (lambda w: {"mine": {"best": {"model": w}}}, "mine.best", ""),
        (lambda w: {"mine.best": w}, "mine.best", ""),
        (lambda w: _prefixed(w, "student.") | _prefixed(_zeros(w), "teacher."), None, "student."),
        (lambda w: {"state": _prefixed(w, "net.") | {"loss.weight": torch.ones(1)}}, "state", "net."),
        (lambda w: {"model": w, "model_ema": _zeros(w)}, "model", ""),
        (lambda w: {"model": {**w, "ema": _zeros(w)}}, "model", ""),
        (lambda w: {"model": {"net": {"depth": 2}, "state_dict": w, "step": torch.tensor(3)}}, "model", ""),
        (lambda w: {"model": {"state_dict": w, "ema": _zeros(w)}}, "model.state_dict", ""),
        (lambda w: {"model": {"net": {"depth": 2}}, "weights": w}, None, ""),
        (lambda w: {"state_dict": w, "best": torch.tensor(0.9)}, None, ""),
    ],
)
def test_a_part_of_a_file_is_taken_when_named(model, weights, tmp_path, wrap, key, prefix):
    torch.save(wrap(weights), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt", _SPEC, key=key, prefix=prefix)
    assert _same(model, weights)


def _zeros(weights):
    return {name: torch.zeros_like(tensor) for name, tensor in weights.items()}


@pytest.mark.parametrize(
    ("wrap", "options", "message"),
    [
        (lambda w: {"model": w, "ema": w}, {}, "under model and ema; choose by --key model"),
        (lambda w: {"model": {"state_dict": w, "ema": w}}, {"key": "model"}, "choose by --key model.state_dict,"),
        (lambda w: {"model": {"state_dict": w, "ema": w}}, {}, "choose by --key model.state_dict,"),
        (lambda w: {**w, "ema": w}, {}, "holds weights under ema and by name beside it; choose by --key ema,"),
        (lambda w: {"model": {"mine": w}}, {}, "name the entry that holds the weights by --key model.mine"),
        (lambda w: {**w, "_extra_state": None}, {}, "holds '_extra_state', a NoneType, which is not a weight"),
        (lambda w: {**w, 7: w["1.weight"]}, {}, "holds 7, a Tensor, which is not a weight"),
        (lambda w: {**w, "scale": 1.5}, {}, "holds 'scale', a float, which is not a weight"),
        (lambda w: {"model": w}, {"key": "model.1.weight"}, "holds Tensor and not the weights"),
        (lambda w: {"mine": w, "epoch": 3}, {}, "name the entry that holds the weights by --key mine"),
        (lambda w: {"mine": w}, {"key": "yours"}, "no entry 'yours'; it holds mine"),
        (lambda w: {"mine": w}, {"key": "mine.1.weight.x"}, "no entry '1.weight.x'"),
        (lambda w: _prefixed(w, "model."), {"key": "model"}, "no entry 'model', .* by --prefix model."),
        (lambda w: [w], {"key": "0"}, "no entries by name"),
        (lambda w: w, {"prefix": "body."}, "No name in .* begins with 'body.'; the first is '1.weight'"),
        (lambda w: _prefixed(w, "a.") | _prefixed(w, "b."), {}, "take those that begin with a. by --prefix a\\."),
    ],
)
def test_a_part_that_must_be_named_or_is_not_there_is_one_sentence(model, weights, tmp_path, wrap, options, message):
    torch.save(wrap(weights), tmp_path / "w.pt")
    with pytest.raises(BuildError, match=message) as caught:
        load_weights(model, tmp_path / "w.pt", _SPEC, **options)
    one_sentence(str(caught.value))


def test_what_is_no_weights_is_named(model, tmp_path):
    torch.save(Net(), tmp_path / "w.pt")
    with pytest.raises(BuildError, match=r"a whole network \([\w.]*test_weights\.Net\)"):
        load_weights(model, tmp_path / "w.pt", _SPEC)
    with warnings.catch_warnings(action="ignore"):  # deprecated
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "w.pt")
    with pytest.raises(BuildError, match="is a network of TorchScript"):
        load_weights(model, tmp_path / "w.pt", _SPEC)


@pytest.mark.parametrize("archive", [True, False])
def test_tuples_within_tuples_that_would_be_hashed_for_ever_are_refused(model, tmp_path, archive):
    key = ()
    for _ in range(60):
        key = (key, key)
    pickled = pickle.dumps(key, 2)[:-1]  # without the end, so that it can be a key
    content = b"\x80\x02}" + pickled[2:] + b"K\x01s."
    file = tmp_path / "net.pt"
    if archive:
        with zipfile.ZipFile(file, "w") as packed:
            packed.writestr("net/data.pkl", content)
    else:
        header = (pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2), pickle.dumps({}, 2))
        file.write_bytes(b"".join((*header, content)))
    with pytest.raises(BuildError, match="tuples within tuples") as caught:
        load_weights(model, file, _SPEC)
    one_sentence(str(caught.value))


def test_the_part_that_is_named_is_one_of_the_settings(weights, tmp_path):
    torch.save({"ema": _prefixed(weights, "net.")}, tmp_path / "w.pt")
    spec = BuildSpec(model=_SPEC, weights=tmp_path / "w.pt")
    named = replace(spec, weights_key="ema", weights_prefix="net.")
    assert named.settings() == spec.settings() | {"weights_key": "ema", "weights_prefix": "net."}
    loaded = build_model(_SPEC, seed=0)
    named.load_into(loaded, _SPEC)
    assert _same(loaded, weights)
