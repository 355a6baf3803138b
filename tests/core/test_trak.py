import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from trak import TRAKer
from trak.projectors import AbstractProjector, ProjectionType

from natscope.core.blocks import Formed
from natscope.core.features import FeatureMap
from natscope.core.methods.trak import scores, trak_features
from natscope.core.sketches import SketchSpec

CLASSES = 5


@pytest.fixture(scope="module")
def trained():
    """A small MLP, its training data (600, 20) and 20 queries, with their labels."""
    generator = torch.Generator().manual_seed(0)
    centres = 0.7 * torch.randn(CLASSES, 20, generator=generator)
    labels = torch.randint(CLASSES, (620,), generator=generator)
    inputs = centres[labels] + torch.randn(620, 20, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(20, 10, bias=False), torch.nn.ReLU(), torch.nn.Linear(10, CLASSES, bias=False)
        )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(100):
        loss = torch.nn.functional.cross_entropy(model(inputs[:600]), labels[:600])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), inputs[:600], labels[:600], inputs[600:], labels[600:]


def by_natscope(trained, folder, spec, ridge=0.0):
    model, inputs, labels, queries, targets = trained
    tangent = FeatureMap(model, spec, ntk=False)
    rows = tangent.features(inputs, labels, measurement="margin")
    features, weights = trak_features(
        model, lambda part: inputs[part], labels.numpy(), rows, folder=folder, progress=lambda *_: None, ridge=ridge
    )
    asked = tangent.features(queries, targets, measurement="margin")
    return np.stack([scores(features, weights, query) for query in asked], axis=1)


def by_traker(trained, folder, **settings):
    """TRAKer from end to end, with its own gradients."""
    model, inputs, labels, queries, targets = trained
    traker = TRAKer(
        model,
        "image_classification",
        len(inputs),
        save_dir=str(folder),
        device="cpu",
        use_half_precision=False,
        logging_level="ERROR",
        **settings,
    )
    traker.load_checkpoint(model.state_dict(), model_id=0)
    for start in range(0, len(inputs), 200):
        traker.featurize((inputs[start : start + 200], labels[start : start + 200]), num_samples=200)
    traker.finalize_features()
    traker.start_scoring_checkpoint("queries", model.state_dict(), 0, len(queries))
    traker.score((queries, targets), num_samples=len(queries))
    return np.array(traker.finalize_scores("queries"))


class SketchProjector(AbstractProjector):
    """natscope's sketch as a projector of traker's: it gets a dict of per-sample gradients."""

    def __init__(self, tangent, dim):
        super().__init__(0, dim, 0, ProjectionType.rademacher, "cpu")
        self.tangent = tangent

    def project(self, grads, model_id):
        return self.tangent.sketch([Formed(name, gradient) for name, gradient in grads.items()]).clone()

    def free_memory(self):
        pass


def test_scores_are_trakers_own_with_the_same_projector(trained, tmp_path):
    spec = SketchSpec("dense", 60)
    wanted = by_traker(
        trained, tmp_path / "a", projector=SketchProjector(FeatureMap(trained[0], spec, ntk=False), 60), proj_dim=60
    )
    found = by_natscope(trained, tmp_path / "b", spec)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_ranks_are_trakers_own_with_its_projector_at_large_dimension(trained, tmp_path):
    dim, ridge = 2000, 0.1
    wanted = by_traker(trained, tmp_path / "a", proj_dim=dim, lambda_reg=ridge)
    # traker's projector on a CPU is not scaled: its inner products are K times the gradients', and so is its ridge.
    found = by_natscope(trained, tmp_path / "b", SketchSpec("dense", dim), ridge / dim)
    agreement = [spearmanr(found[:, query], wanted[:, query]).statistic for query in range(found.shape[1])]
    assert np.mean(agreement) > 0.95


def test_coordinates_that_a_sketch_leaves_empty_do_no_harm(trained, tmp_path):
    model, inputs, labels, *_ = trained
    rows = FeatureMap(model, SketchSpec("dense", 40), ntk=False).features(inputs, labels, measurement="margin")
    padded = np.insert(rows, [0, 7], 0.0, axis=1)

    def features(of, folder):
        return trak_features(
            model, lambda part: inputs[part], labels.numpy(), of, folder=folder, progress=lambda *_: None
        )[0]

    plain, found = features(rows, tmp_path / "a"), features(padded, tmp_path / "b")
    np.testing.assert_allclose(np.delete(found, [0, 8], axis=1), plain)
    assert not found[:, [0, 8]].any()


@pytest.mark.parametrize(("dim", "words"), [(600, "600 are not more than 600"), (400, "more than this network's")])
def test_more_dimensions_than_can_be_told_apart_are_refused(trained, tmp_path, dim, words):
    model, inputs, labels, *_ = trained
    rows = np.random.default_rng(0).normal(size=(600, 300)).astype(np.float32)
    rows = np.concatenate([rows, rows[:, : dim - 300]], axis=1)
    with pytest.raises(ValueError, match=words):
        trak_features(model, lambda p: inputs[p], labels.numpy(), rows, folder=tmp_path, progress=lambda *_: None)
