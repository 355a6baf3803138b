from types import SimpleNamespace

import numpy as np
import pytest

from natscope.app import words
from natscope.app.components import trigger_patch
from natscope.app.figures.backdoor import roc
from natscope.app.links import BackdoorView, Limits, parameters, read
from natscope.app.views import backdoor, backdoor_proof, backdoor_retell, backdoor_scene, backdoor_search
from natscope.core.methods import METHODS
from natscope.precompute.training.retrain import Outcome


def test_shares_and_numbers_are_said_as_a_person_would_say_them():
    scene = SimpleNamespace(base=0, target=1, name=str)
    nobody, somebody = (Outcome(0, 0.9, share, share, 0.8) for share in (0.0, 0.9))
    assert "works on **none** of the pictures" in backdoor_proof._said(somebody, nobody, somebody, scene, 50)
    assert "is never fooled." in backdoor_retell._proof(backdoor_scene.Proven(50, "natscope", 0.9, 0.0))
    one = backdoor_retell._proof(backdoor_scene.Proven(1, "natscope", 0.9, 0.8, date="2026-01-02"))
    assert one == (
        "Measured once, on 2026-01-02: a model trained without the 1 picture that natscope named is still fooled in "
        "80% of cases."
    )
    for share in (0.004, 0.005):
        assert words.in_cases(share, only=True) == "in less than 1% of cases"
        assert words.portion(share) == "less than 1%"
    assert [words.planted_among(planted, 50) for planted in (0, 1, 47)] == [
        "none of the first 50 was planted",
        "1 of the first 50 was planted",
        "47 of the first 50 were planted",
    ]


def test_only_a_whole_patch_is_taken_from_a_browser(monkeypatch):
    taken, made = [], {}
    monkeypatch.setattr(trigger_patch, "component", lambda *_: lambda **settings: made.update(settings))
    shown = trigger_patch.Shown("", "", "", "", False)
    for sent in ("0.1.010", "0.1.01201", "0110", 5, None, ["0", "1", "0", "1"], "0.1.٠١٠١", "1.1.1111", "0.3.0110"):
        monkeypatch.setattr(trigger_patch.st, "session_state", {"patch": {"drawn": sent}})
        trigger_patch.trigger_patch(shown, [[0, 1], [1, 1]], "", shown, key="patch", on_draw=taken.append)
        made["on_drawn_change"]()
    assert taken == ["0110"]
    trigger_patch.trigger_patch(shown, [[0, 1], [1, 0]], "", shown, key="patch", on_draw=taken.append)
    assert (made["data"]["heard"], made["data"]["turn"]) == (3, 0)


def test_what_was_drawn_before_another_patch_was_put_there_no_longer_counts(monkeypatch):
    taken, made = [], {}
    monkeypatch.setattr(trigger_patch, "component", lambda *_: lambda **settings: made.update(settings))
    monkeypatch.setattr(trigger_patch.st, "session_state", {"patch": {"drawn": "0.1.0110"}})
    shown = trigger_patch.Shown("", "", "", "", False)
    trigger_patch.trigger_patch(shown, [[0, 1], [1, 1]], "", shown, key="patch", on_draw=taken.append)
    trigger_patch.forget_drawing("patch")
    made["on_drawn_change"]()  # on its way since before that
    assert taken == []
    trigger_patch.st.session_state["patch"]["drawn"] = "1.2.0110"
    made["on_drawn_change"]()
    assert taken == ["0110"]


def test_a_class_that_no_test_image_shows_or_gets_right_is_no_fault(monkeypatch):
    labels, changed = np.array([0, 1, 0]), []  # nothing shows class 2
    attributor = SimpleNamespace(test_labels=labels)
    scene = SimpleNamespace(attributor=attributor, works=np.zeros(3, dtype=bool), attack=None)
    assert backdoor._fooled_share("identity", 2, "0", scene, None) == 0
    monkeypatch.setattr(backdoor, "_set", lambda **changes: changed.append(changes))
    backdoor._another(scene, 2)
    assert changed == []
    backdoor._another(scene, 1)
    assert changed == [{"image": 1, "patch": None, "seen": ()}]


def test_the_link_reopens_the_view():
    view = BackdoorView(image=7, patch=2, drawn="010101010", method="relatif", rival="repsim")
    limits = Limits(images=10, classes=10, squares=9)
    assert read(BackdoorView(), parameters(view), limits) == (view, [])
    assert parameters(BackdoorView()) == {}
    bad = {"image": "10", "patch": "-1", "drawn": "01", "method": "magic", "rival": ""}
    found, complaints = read(BackdoorView(), bad, limits)
    assert found == BackdoorView()
    assert len(complaints) == 5


def test_the_weak_method_is_the_one_that_found_least_though_more_than_chance():
    rows = [
        {"method": name, "sigma2": 10.0, "recall": {"mean": mean}}
        for name, mean in (("info_loss", 0.9), ("repsim", 0.4), ("graddot", 0.2), ("random", 0.03))
    ]
    result = {"rows": rows, "attack": {"base_rate": {"mean": 0.033}}}
    assert backdoor_scene.weak(tuple(METHODS), result) == "graddot"
    assert backdoor_scene.weak(("info_loss", "random"), result) == "info_loss"
    assert backdoor_scene.weak(("info_loss", "random"), None) == "random"


def test_the_area_under_roc_by_hand():
    assert backdoor_search._area(np.array([True, False, True, False])) == pytest.approx(0.75)
    assert backdoor_search._area(np.array([True, True, False])) == 1
    line = roc({"repsim": np.array([True, False, True, False])}).series[1]
    assert (line.x, line.y) == ([0, 0, 50, 50, 100], [0, 50, 50, 100, 100])
