import json
import os

import numpy as np
import pytest
from scipy.special import softmax

from natscope.core.methods import REFERENCE
from natscope.precompute.bundles.opening import open_attributor
from natscope.precompute.experiments import proof
from natscope.precompute.experiments.backdoor import fooled_queries
from natscope.precompute.training.retrain import Outcome


@pytest.fixture(autouse=True)
def own_home(monkeypatch, tmp_path):
    monkeypatch.setenv("NATSCOPE_HOME", str(tmp_path / "home"))


@pytest.fixture
def healing(monkeypatch):
    """Let retraining heal some test images, without training anything."""

    def heal(*indices):
        def measure(attributor, backdoor, index, found, others, progress):
            base = int(attributor.test_labels[index])
            after = base if index in indices else int(backdoor.targets[base])
            answers = (int(backdoor.targets[base]), after, int(backdoor.targets[base]))
            return tuple(Outcome(answer, 0.9, 0.8, 0.7, 0.6) for answer in answers)

        monkeypatch.setattr(proof, "measure", measure)

    return heal


def silent(stage, done, total):
    pass


def test_the_example_is_the_first_of_a_few_that_heals_and_else_the_first(poisoned, healing):
    logits = np.asarray(poisoned.bundle.array("test_logits"), dtype=np.float64)
    fooled = fooled_queries(poisoned)
    fooled = fooled[np.argsort(-softmax(logits[fooled], axis=1).max(axis=1), kind="stable")]  # the surest first
    for healed, chosen in (((2, 1), 1), ((0, 2), 0), ((2,), 2), ((3,), 0), ((), 0)):
        healing(*fooled[list(healed)])
        assert proof.prove(poisoned, silent).index == fooled[chosen]


def test_what_is_removed_is_what_the_reference_names_and_as_many_others_with_the_label(poisoned, healing):
    healing(0)
    made = proof.prove(poisoned, silent)
    attack = poisoned.bundle.manifest.backdoor
    base = int(poisoned.test_labels[made.index])
    assert len(made.found) == len(made.others) == proof.NAMED
    assert not set(made.found) & set(made.others)
    assert set(poisoned.train_labels[list(made.found + made.others)]) == {attack.targets[base]}
    assert np.isin(made.found, attack.culprits(base)).sum() > 15  # of 20
    assert made.shows(made.index, made.found[::-1], np.array(made.others))
    assert not made.shows(made.index, made.others, made.found)


def test_at_most_half_of_a_class_is_removed():
    found, others = proof.parted(np.array([0, 1, 1, 1, 1, 1, 0]), 1, [5, 3, 1, 2, 4])
    assert found.tolist() == [5, 3]
    assert set(others) <= {1, 2, 4}
    assert len(others) == 2


def test_a_proof_is_kept_for_its_bundle_alone(poisoned, poisoned_path, bundle_path, healing, monkeypatch):
    healing()
    assert proof.missing(poisoned.bundle)
    proof.prepare(poisoned_path, silent)
    assert proof.kept(poisoned.bundle) == proof.prove(poisoned, silent)
    assert not proof.missing(poisoned.bundle)
    other = open_attributor(bundle_path).bundle
    assert proof.kept(other) is None
    assert not proof.missing(other)  # there is no backdoor in it
    sigma2 = poisoned.bundle.sigma2(REFERENCE, purpose="backdoor")
    monkeypatch.setattr(type(poisoned.bundle), "sigma2", lambda *_, **__: 2 * sigma2)
    assert proof.missing(poisoned.bundle)  # another question


@pytest.mark.parametrize(
    "change",
    [
        {"index": -1},
        {"index": 10**6},
        {"index": "0"},
        {"found": []},
        {"found": [0] * 50},
        {"others": [0, 10**9]},
        {"others": [True] * 50},
        {"outcomes": []},
        {"outcomes": [{"answer": 99, "probability": 0.5, "class_success": 0.5, "success": 0.5, "accuracy": 0.5}] * 3},
        {"outcomes": [{"answer": 0, "probability": 0.5, "class_success": 1.5, "success": 0.5, "accuracy": 0.5}] * 3},
        {"outcomes": [{"answer": 0, "probability": 0.5, "class_success": 0.5, "success": 0.5}] * 3},
    ],
)
def test_a_file_that_does_not_fit_is_no_proof(poisoned, poisoned_path, healing, change):
    healing()
    proof.prepare(poisoned_path, silent)
    file = proof._file(poisoned.bundle)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert proof.kept(poisoned.bundle) is None
    assert proof.missing(poisoned.bundle)


@pytest.mark.parametrize("content", [b"", b"[" * 5000, b"{}", b"\xff", b" " * 200_000 + b"null"])
def test_a_damaged_file_is_no_proof(poisoned, content):
    file = proof._file(poisoned.bundle)
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    assert proof.kept(poisoned.bundle) is None
    file.unlink()
    os.mkfifo(file)
    assert proof.kept(poisoned.bundle) is None
    assert proof.missing(poisoned.bundle)


def test_where_the_attack_works_on_no_image_nothing_is_left_to_prove(poisoned, poisoned_path, monkeypatch):
    monkeypatch.setattr(proof, "fooled_queries", lambda attributor: np.zeros(0, dtype=np.int64))
    proof.prepare(poisoned_path, silent)
    assert proof.kept(poisoned.bundle) is None
    assert not proof.missing(poisoned.bundle)
