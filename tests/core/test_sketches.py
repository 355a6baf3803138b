import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.sketches import excess_variances
from natscope.core.blocks import Formed, Lookup, Summed
from natscope.core.features import FeatureMap, kernel_of
from natscope.core.jacobians import jacobian_blocks
from natscope.core.sketches import SKETCHES, SketchSpec, make_sketch

PROJECTIONS = sorted(set(SKETCHES) - {"exact"})


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    # The first weight is large enough for rows that share a shift, and wider than the sketch.
    return nn.Sequential(nn.Linear(300, 450), nn.Tanh(), nn.Linear(450, 20), nn.Tanh(), nn.Linear(20, 4)).eval()


@pytest.fixture(scope="module")
def batch(network):
    inputs = torch.randn(12, 300, generator=torch.Generator().manual_seed(1))
    return jacobian_blocks(network, inputs, torch.arange(12) % 4, ntk=True)


@pytest.fixture(scope="module")
def gram(batch):
    flat = torch.cat([block.form().flatten(1) for block in batch], dim=1).double()
    return (flat @ flat.T).numpy()


def relative_error(features, gram):
    features = features.double().numpy()
    return np.linalg.norm(features @ features.T - gram) / np.linalg.norm(gram)


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_inner_products_are_kept_on_average(kind, batch, gram):
    total = np.zeros_like(gram)
    for seed in range(60):
        features = make_sketch(SketchSpec(kind, 128, seed))(batch).double().numpy()
        total += features @ features.T / 60
    # One sketch of 128 dimensions errs by about sqrt(2 / 128); the mean of 60 by an eighth of that.
    assert np.linalg.norm(total - gram) / np.linalg.norm(gram) < 0.05


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_the_error_falls_with_the_root_of_the_dimension(kind, batch, gram):
    def error(dim):
        specs = [SketchSpec(kind, dim, seed) for seed in range(12)]
        return np.mean([relative_error(make_sketch(spec)(batch), gram) for spec in specs])

    assert error(1024) == pytest.approx(error(64) / 4, rel=0.35)


@pytest.mark.parametrize("kind", [*PROJECTIONS, "exact"])
def test_a_query_seen_later_lands_in_the_same_coordinates(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 20, bias=False), nn.Tanh(), nn.Linear(20, 4, bias=False)).eval()
    inputs, targets = torch.randn(9, 30), torch.arange(9) % 4
    spec = SketchSpec(kind, 64, 3)
    together = make_sketch(spec)(jacobian_blocks(model, inputs, targets))
    later = make_sketch(spec)
    alone = torch.cat([later(jacobian_blocks(model, inputs[i : i + 1], targets[i : i + 1])) for i in range(9)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    assert together.dtype == torch.float32


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_another_seed_is_another_sketch(kind, batch):
    first, second = (make_sketch(SketchSpec(kind, 64, seed))(batch) for seed in (0, 1))
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("kind", ["countsketch", "countsketch_rows", "dense"])
def test_a_factored_gradient_is_sketched_like_the_formed_one(kind, batch):
    formed = [Formed(block.name, block.form()) for block in batch]
    sketch = make_sketch(SketchSpec(kind, 96, 0))
    torch.testing.assert_close(sketch(batch), sketch(formed), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rows", "columns"), [(30, 5), (3000, 70)])
@pytest.mark.parametrize("kind", PROJECTIONS)
def test_what_is_kept_of_a_gradient_is_sketched_like_the_whole(kind, rows, columns, generator):
    def random(*shape):
        return torch.randn(*shape, generator=generator)

    read = torch.randint(0, rows, (7, 6), generator=generator)
    table = Lookup("table", random(7, 6, columns), read, rows, 0.7)
    one = Summed("one", random(7, rows, 1), random(7, columns, 1), lambda values: values, columns, 0.7)
    sketch = make_sketch(SketchSpec(kind, 64))
    for block in (table, one):
        torch.testing.assert_close(sketch([block]), sketch([Formed(block.name, block.form())]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_sketches_are_linear(kind, batch):
    sketch = make_sketch(SketchSpec(kind, 96, 0))
    doubled = [Formed(block.name, block.form(), 2.0) for block in batch]
    formed = [Formed(block.name, block.form()) for block in batch]
    torch.testing.assert_close(sketch(doubled), 2 * sketch(formed))


def test_large_batches_are_cut_without_a_seam(network):
    inputs, targets = torch.randn(600, 300), torch.arange(600) % 4
    blocks = jacobian_blocks(network, inputs, targets)
    sketch = make_sketch(SketchSpec("countsketch", 64, 0))
    tail = sketch(jacobian_blocks(network, inputs[500:], targets[500:]))
    torch.testing.assert_close(sketch(blocks)[500:], tail, rtol=1e-4, atol=1e-5)


def test_exact_factors_give_the_exact_kernel():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 20, bias=False), nn.Tanh(), nn.Linear(20, 4, bias=False)).double().eval()
    inputs, targets = torch.randn(9, 30, dtype=torch.float64), torch.arange(9) % 4
    flat = torch.cat([b.form().flatten(1) for b in jacobian_blocks(model, inputs, targets, ntk=True)], dim=1)
    features = FeatureMap(model, SketchSpec("exact"), ntk=True, batch_size=4)
    rows = features.features(inputs, targets)
    kernel = kernel_of(SketchSpec("exact"), features.layout(inputs[:1]))
    np.testing.assert_allclose(kernel(rows, rows), (flat @ flat.T).numpy(), rtol=1e-5)
    np.testing.assert_allclose(kernel.diagonal(rows), np.diag(kernel(rows, rows)))


def test_exact_factors_need_a_network_of_linear_weights(batch):
    with pytest.raises(ValueError, match=r"'0\.bias' is not one"):
        make_sketch(SketchSpec("exact"))(batch)
    with pytest.raises(ValueError, match="Linear weights alone"):
        kernel_of(SketchSpec("exact"), None)


def test_the_layout_of_a_network_with_biases_is_none(network):
    assert FeatureMap(network, SketchSpec(dim=8), ntk=False).layout(torch.ones(1, 300)) is None


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (SketchSpec("nothing"), "'nothing'; .* countsketch"),
        (SketchSpec("countsketch", 0), "dimension, not 0"),
        (SketchSpec("tensorsketch", 63), "even number .* not 63"),
    ],
)
def test_a_sketch_that_cannot_be_made_is_refused(spec, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_sketch(spec)


def test_squared_lengths_scatter_hardly_more_than_under_a_dense_projection(attributor):
    """On the embedded network, whose second layer is the hard one: few of its units pass most of the gradient."""
    inputs, targets = attributor.bundle.inputs("train")[:48], torch.from_numpy(attributor.train_labels[:48])
    excess = excess_variances(jacobian_blocks(attributor.features.model, inputs, targets, ntk=True), 4096)
    assert np.median(excess) < 0.05
    assert excess.max() < 0.15


def test_the_excess_variance_is_what_many_sketches_show(batch):
    dim, blocks = 256, [block for block in batch if block.name == "0.weight"]
    lengths = np.stack([make_sketch(SketchSpec(dim=dim, seed=s))(blocks).square().sum(1).numpy() for s in range(400)])
    exact = blocks[0].form().flatten(1).double().numpy()
    squared = (exact**2).sum(1)
    dense = 2 / dim * (squared**2 - (exact**4).sum(1))
    expected = 1 + excess_variances(blocks, dim)
    assert np.mean(lengths.var(axis=0) / dense) == pytest.approx(np.mean(expected), rel=0.1)


def test_a_column_that_holds_most_of_a_gradient_costs_a_sketch_by_rows_nothing():
    random = torch.Generator().manual_seed(0)
    gradient = torch.randn(8, 400, 400, generator=random) * 0.05
    gradient[:, :, 7] = torch.randn(8, 400, generator=random)  # as where one activation is large for every example
    block = Formed("weight", gradient, 1.0)
    flat = gradient.flatten(1).double()
    exact = (flat @ flat.T).numpy()

    def error(kind):
        return np.mean([relative_error(make_sketch(SketchSpec(kind, 4096, seed))([block]), exact) for seed in range(4)])

    assert error("countsketch_rows") < 1.2 * error("dense")
    assert error("countsketch") > 2 * error("countsketch_rows")
