import numpy as np
import pytest

from natscope.core.analysis.audit import class_suspicion, support, suspicion
from natscope.core.metrics import average_precision
from tests.oracles import variance


def test_support_is_information_lost_without_one_image_and_without_oneself():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(7, 4))
    gram, sigma2 = features @ features.T, 0.3
    shares = support(gram, sigma2=sigma2)
    for j in range(7):
        others = [i for i in range(7) if i != j]
        whole = variance(features[j], features[others], sigma2)
        lost = np.zeros(7)
        for i in others:
            without = [k for k in others if k != i]
            lost[i] = 0.5 * np.log(float(variance(features[j], features[without], sigma2) / whole))
        np.testing.assert_allclose(shares[:, j], lost / lost.sum(), rtol=1e-8)


def test_a_small_group_that_leans_on_itself_comes_first():
    rng = np.random.default_rng(1)
    honest = rng.normal(size=(200, 30))
    group = rng.normal(size=30) * 0.2 + rng.normal(size=(12, 30)) * 0.05
    features = np.concatenate([np.pad(honest, ((0, 0), (0, 5))), np.pad(group, ((0, 0), (0, 5)))])
    features[200:, 30] = 3.0  # a direction that only the group has
    scores = class_suspicion(features @ features.T, sigma2=10.0, first=10)
    assert set(np.argsort(-scores)[:12]) == set(range(200, 212))
    assert ((scores >= 0) & (scores <= 1 + 1e-12)).all()


def test_images_without_features_are_not_suspect():
    features = np.zeros((30, 3))
    features[:25] = np.random.default_rng(2).normal(size=(25, 3))
    scores = class_suspicion(features @ features.T, sigma2=1.0, first=5)
    assert np.isfinite(scores).all()
    assert (scores[25:] == 0).all()


def test_the_audit_finds_what_was_planted_and_not_by_reading_the_manifest(poisoned):
    steps = []
    scores = suspicion(poisoned, progress=lambda *step: steps.append(step))
    planted = np.array(poisoned.bundle.manifest.poison["train_indices"])
    order = np.argsort(-scores, kind="stable")
    base_rate = len(planted) / len(scores)
    assert average_precision(order, planted) > 0.7
    assert steps[-1][1] == steps[-1][2]
    shuffled = np.random.default_rng(0).choice(len(scores), len(planted), replace=False)
    assert average_precision(order, shuffled) < 2 * base_rate


def test_average_precision_by_hand():
    assert average_precision([5, 1, 7, 2], [5, 7]) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([1, 2], [3]) == 0
    assert average_precision([3, 2], [3, 9]) == 0.5
