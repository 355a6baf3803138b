import copy
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from natscope.core.features import FeatureMap
from natscope.core.kernels import FactorKernel
from natscope.core.measurements import loss_weight, margin
from natscope.core.methods.artifacts import FACTOR_FILES, EkfacSpec
from natscope.core.methods.ekfac import (
    EkfacInfluence,
    _even_directions,
    _large_directions,
    _MarginTask,
    factor_contents,
    factors_folder,
    fit_factors,
    seen_layers,
)
from natscope.core.sketches import SketchSpec

COUNT, CLASSES = 80, 4
_NAMES = [file.rpartition("/")[2] for file in FACTOR_FILES]


@pytest.fixture(scope="module")
def network():
    generator = torch.Generator().manual_seed(1)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(9, 7, bias=False), torch.nn.ReLU(), torch.nn.Linear(7, CLASSES, bias=False)
    )
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(COUNT, 1, 3, 3, generator=generator), torch.randint(CLASSES, (COUNT,), generator=generator)


@pytest.fixture(scope="module")
def folder(network, data, tmp_path_factory):
    home = tmp_path_factory.mktemp("factors")
    fit_factors(network, data[0], home, EkfacSpec(batch_size=50), lambda *_: None)
    return factors_folder(home)


def layers_of(network, inputs, scalar):
    """The input and the output gradient of both layers, for one scalar an example."""
    first, second = network[1], network[3]
    a = inputs.flatten(1)
    z = first(a).detach().requires_grad_()
    hidden = torch.relu(z)
    logits = second(hidden)
    back_z, back_logits = torch.autograd.grad(scalar(logits).sum(), (z, logits))
    return [(a, back_z), (hidden.detach(), back_logits)]


def exact_ekfac(network, inputs, labels, query, target):
    """EK-FAC with the exact Fisher, written out in float64: Grosse et al. 2023, equations 16 to 20."""
    network, inputs, query = copy.deepcopy(network).double(), inputs.double(), query.double()
    shares = torch.softmax(network(inputs), dim=1).detach()
    directions = [shares[:, k : k + 1].sqrt() * (torch.eye(CLASSES)[k] - shares) for k in range(CLASSES)]
    pairs = [layers_of(network, inputs, lambda z, u=u: (z * u).sum(1)) for u in directions]
    asked = layers_of(network, query, lambda z: margin(z, torch.tensor([target])))
    trained = layers_of(network, inputs, lambda z: -cross_entropy(z, labels, reduction="none"))
    total = torch.zeros(COUNT, dtype=torch.float64)
    for place in range(2):
        a = pairs[0][place][0]
        axes_in = torch.linalg.eigh(a.T @ a)[1]
        axes_out = torch.linalg.eigh(sum(d.T @ d for _, d in (p[place] for p in pairs)))[1]
        variances = sum(((d @ axes_out) ** 2).T @ ((a @ axes_in) ** 2) for _, d in (p[place] for p in pairs)) / COUNT
        (a_query, d_query), (a_train, d_train) = asked[place], trained[place]
        gradient = (axes_out.T @ d_query.T) @ (a_query @ axes_in) / (variances + 0.1 * variances.mean())
        total += torch.einsum("no,oi,ni->n", d_train @ axes_out, gradient, a_train @ axes_in)
    return total.numpy()


def test_influence_is_ekfac_with_the_exact_fisher(network, data, folder):
    inputs, labels = data
    query = torch.ones(1, 1, 3, 3)
    found = EkfacInfluence(network, folder).scores(query, 2, inputs, labels.numpy())[0]
    np.testing.assert_allclose(found, exact_ekfac(network, inputs, labels, query, 2), rtol=2e-3, atol=2e-3)


def test_scores_are_kronfluences_own(network, data, folder):
    inputs, labels = data
    query, targets = torch.randn(3, 1, 3, 3, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 3, 1])
    task = _MarginTask()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        home = folder.parents[1]
        analyzer = Analyzer(
            "natscope", prepare_model(copy.deepcopy(network), task), task, cpu=True, output_dir=str(home),
            disable_tqdm=True,
        )  # fmt: skip
        analyzer.compute_pairwise_scores(
            "own", folder.name.removeprefix("factors_"), TensorDataset(query, targets), TensorDataset(inputs, labels),
            per_device_query_batch_size=3, per_device_train_batch_size=17,
            score_args=ScoreArguments(damping_factor=None),
        )  # fmt: skip
        wanted = analyzer.load_pairwise_scores("own")["all_modules"].numpy()
    influence = EkfacInfluence(network, folder)
    for place in range(3):
        found = influence.scores(query[place : place + 1], int(targets[place]), inputs[10:40], labels.numpy()[10:40])
        np.testing.assert_allclose(found[0], wanted[place, 10:40], rtol=1e-4, atol=1e-5)
    together = influence.scores(query, 1, inputs, labels.numpy())
    np.testing.assert_allclose(together[2], wanted[2], rtol=1e-4, atol=1e-5)
    assert not np.allclose(together[0], wanted[0], rtol=0.1)  # that query was asked about class 0
    mean = influence.scores(query, targets.numpy(), inputs, labels.numpy(), mean=True)
    np.testing.assert_allclose(mean, wanted.mean(axis=0)[None], rtol=1e-4, atol=1e-5)


class Doubled(torch.nn.Linear):
    """A subclass that computes something else of its weight."""

    def forward(self, x):
        return 2 * super().forward(x)


class Attending(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = torch.nn.MultiheadAttention(9, 3, batch_first=True)

    def forward(self, x):
        return self.mix(x[:, None], x[:, None], x[:, None])[0][:, 0]


class Spare(torch.nn.Module):
    """It has a layer that it does not call."""

    def __init__(self):
        super().__init__()
        self.old = torch.nn.Linear(9, 9)

    def forward(self, x):
        return x + 0 * self.old.weight.sum()


class Frozen(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.back = torch.nn.Linear(9, 9)

    def forward(self, x):
        with torch.no_grad():
            return self.back(x)


class Twice(torch.nn.Module):
    """A layer that runs twice."""

    def __init__(self):
        super().__init__()
        self.middle, self.head = torch.nn.Linear(9, 9, bias=False), torch.nn.Linear(9, CLASSES, bias=False)

    def inputs_of_middle(self, x):
        first = x.flatten(1)
        return [first, torch.tanh(self.middle(first))]

    def forward(self, x):
        return self.head(torch.tanh(self.middle(self.inputs_of_middle(x)[1])))


def test_a_layer_that_runs_twice_has_one_gradient(data, tmp_path):
    """Its axes come from both calls; its variances, and what is scored, from the sum of both gradients."""
    inputs, labels = data
    torch.manual_seed(3)
    model, target, query = Twice().eval(), 1, torch.ones(1, 1, 3, 3)
    fit_factors(model, inputs, tmp_path, EkfacSpec(batch_size=50), lambda *_: None)
    found = EkfacInfluence(model, factors_folder(tmp_path)).scores(query, target, inputs, labels.numpy())[0]

    model, inputs, query = model.double(), inputs.double(), query.double()
    shares = torch.softmax(model(inputs), dim=1).detach()
    total = torch.zeros(COUNT, dtype=torch.float64)
    for layer in (model.middle, model.head):

        def gradients(x, scalar, layer=layer):
            return torch.stack(
                [torch.autograd.grad(value, layer.weight, retain_graph=True)[0] for value in scalar(model(x))]
            )

        calls = []
        hook = layer.register_forward_hook(lambda _, args, output, calls=calls: calls.append((args[0], output)))
        logits = model(inputs)
        hook.remove()
        a = torch.cat([given.detach() for given, _ in calls])
        directions = [shares[:, k : k + 1].sqrt() * (torch.eye(CLASSES)[k] - shares) for k in range(CLASSES)]
        d = torch.cat(
            [
                part
                for u in directions
                for part in torch.autograd.grad((logits * u).sum(), [out for _, out in calls], retain_graph=True)
            ]
        )
        axes_in, axes_out = torch.linalg.eigh(a.T @ a)[1], torch.linalg.eigh(d.T @ d)[1]
        turned = [axes_out.T @ gradients(inputs, lambda z, u=u: (z * u).sum(1)) @ axes_in for u in directions]
        variances = sum((g**2).sum(0) for g in turned) / COUNT
        asked = axes_out.T @ gradients(query, lambda z: margin(z, torch.tensor([target])))[0] @ axes_in
        trained = axes_out.T @ gradients(inputs, lambda z: -cross_entropy(z, labels, reduction="none")) @ axes_in
        total += (trained * (asked / (variances + 0.1 * variances.mean()))).sum((1, 2))
    np.testing.assert_allclose(found, total.numpy(), rtol=1e-3, atol=1e-4 * float(total.abs().max()))


class ByName(torch.nn.Module):
    """It calls a layer by keyword."""

    def __init__(self):
        super().__init__()
        self.old = torch.nn.Linear(9, 9)

    def forward(self, x):
        return self.old(input=x)


class InTokens(torch.nn.Module):
    """It puts parts of an example before the examples."""

    def __init__(self):
        super().__init__()
        self.old = torch.nn.Linear(3, 3)

    def forward(self, x):
        return self.old(x.view(len(x), 3, 3).transpose(0, 1)).transpose(0, 1).flatten(1)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: Doubled(9, 7),
        lambda: torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(9, 7)),
        lambda: torch.nn.utils.weight_norm(torch.nn.Linear(9, 7)),
        Attending,
        Spare,
        Frozen,
        lambda: torch.nn.Linear(9, 7).requires_grad_(False),
        ByName,
        InTokens,
    ],
    ids=[
        *("subclass", "parametrised", "weight norm", "attention", "never called", "without gradients", "frozen"),
        *("by name", "tokens first"),
    ],
)
@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm")
def test_layers_that_it_cannot_follow_are_left_out(layer, data, tmp_path):
    torch.manual_seed(0)
    inputs, labels = data
    found = layer()
    width = found(torch.zeros(2, 9)).shape[1]
    model = torch.nn.Sequential(torch.nn.Flatten(), found, torch.nn.ReLU(), torch.nn.Linear(width, CLASSES)).eval()
    assert list(seen_layers(model))[-1] == "3"
    model(inputs)
    fit_factors(model, inputs, tmp_path, EkfacSpec(batch_size=50), lambda *_: None)
    scores = EkfacInfluence(model, factors_folder(tmp_path)).scores(inputs[:1], 1, inputs, labels.numpy())
    assert list(load_file(factors_folder(tmp_path) / "lambda_matrix.safetensors")) == ["3"]
    assert np.isfinite(scores).all()
    assert scores.any()


def _source(model, data, folder):
    inputs, labels = data
    return SimpleNamespace(
        model=model.eval(), inputs=lambda rows: inputs[rows], labels=labels.numpy(), folder=folder,
        ekfac=EkfacSpec(batch_size=50), progress=lambda *_: None,
    )  # fmt: skip


def test_a_network_without_a_layer_that_it_sees_is_one_sentence(data, tmp_path):
    model = torch.nn.Sequential(torch.nn.Flatten(), Doubled(9, CLASSES))
    with pytest.raises(ValueError, match="this network calls none"):
        factor_contents(_source(model, data, tmp_path))


def test_a_network_too_sure_to_have_curvature_is_one_sentence(network, data, tmp_path):
    sure = copy.deepcopy(network)
    for parameter in sure.parameters():
        parameter.data *= 1e4
    with pytest.raises(ValueError, match="too sure of its training examples"):
        factor_contents(_source(sure, data, tmp_path))


def test_without_curvature_it_is_the_gradient_product(network, data, tmp_path):
    inputs, labels = data
    query, target = torch.ones(1, 1, 3, 3), torch.tensor([1])
    task = _MarginTask()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        analyzer = Analyzer(
            "a", prepare_model(copy.deepcopy(network), task), task, cpu=True, output_dir=str(tmp_path),
            disable_tqdm=True,
        )  # fmt: skip
        train = TensorDataset(inputs, labels)
        analyzer.fit_all_factors(
            "none", train, per_device_batch_size=20, factor_args=FactorArguments(strategy="identity")
        )
        analyzer.compute_pairwise_scores(
            "s", "none", TensorDataset(query, target), train,
            per_device_query_batch_size=1, per_device_train_batch_size=20,
        )  # fmt: skip
        theirs = analyzer.load_pairwise_scores("s")["all_modules"][0].numpy()
    tangent = FeatureMap(network, SketchSpec("exact"), ntk=False)
    rows = tangent.features(inputs, labels, measurement="margin")
    asked = tangent.features(query, target, measurement="margin")
    with torch.no_grad():
        weights = loss_weight(network(inputs), labels).numpy()
    products = FactorKernel(tangent.layout(inputs[:1]))(rows, asked)[:, 0]
    np.testing.assert_allclose(weights * products, theirs, rtol=1e-5, atol=1e-5)


def test_drawn_directions_have_the_fisher_as_their_second_moment(network, data):
    """By the logits: the mean of weight^2 p_k (e_k - p)(e_k - p)^T is the mean of diag(p) - p p^T."""
    inputs, _ = data
    with torch.no_grad():
        shares = torch.softmax(network(inputs), dim=1)
    fisher = (torch.diag_embed(shares) - shares[:, :, None] * shares[:, None, :]).mean(0)

    def moment(directions):
        rows, classes, weights = directions._rows, directions._classes, directions._weights
        steps = weights[:, None] * shares[rows, classes].sqrt()[:, None] * (torch.eye(CLASSES)[classes] - shares[rows])
        return steps.T @ steps / len(steps)

    torch.testing.assert_close(moment(_even_directions(inputs, shares, EkfacSpec())), fisher, rtol=1e-5, atol=1e-6)
    draws = torch.stack(
        [moment(_large_directions(inputs, shares, EkfacSpec(lambda_directions=300, seed=s))) for s in range(200)]
    )
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - fisher).abs() < 4 * error).all()


def test_the_network_is_left_as_it_was_and_progress_ends(network, data, tmp_path):
    before, steps = copy.deepcopy(network.state_dict()), []
    fit_factors(network, data[0], tmp_path, EkfacSpec(batch_size=64), lambda *step: steps.append(step))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert steps[-1][1] == steps[-1][2]
    assert all((factors_folder(tmp_path) / name).is_file() for name in _NAMES)


def test_fitting_goes_on_where_it_was(network, data, tmp_path):
    class Stopped(Exception):
        pass

    def stop(stage, done, total):
        if done == total - 2:
            raise Stopped

    spec = EkfacSpec(batch_size=40)
    with pytest.raises(Stopped):
        fit_factors(network, data[0], tmp_path / "a", spec, stop)
    kept = {f: f.stat().st_mtime_ns for f in factors_folder(tmp_path / "a").glob("*covariance*.safetensors")}
    fit_factors(network, data[0], tmp_path / "a", spec, lambda *_: None)
    fit_factors(network, data[0], tmp_path / "b", spec, lambda *_: None)
    assert kept
    assert kept == {f: f.stat().st_mtime_ns for f in kept}
    for name in _NAMES:
        if name.endswith(".safetensors"):
            resumed, whole = (load_file(factors_folder(tmp_path / run) / name) for run in "ab")
            assert all(torch.equal(resumed[layer], whole[layer]) for layer in whole)


def test_a_large_network_takes_fewer_examples_at_a_time():
    small, large = torch.nn.Linear(20, 3), torch.nn.Linear(2**13, 2**10, device="meta")
    assert EkfacSpec.usual(small) == EkfacSpec()
    assert EkfacSpec.usual(torch.nn.Sequential(small, large)) == EkfacSpec(batch_size=50)
