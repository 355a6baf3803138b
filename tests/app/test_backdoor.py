import csv
import io
import json
import re
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from natscope.app.serve import BUNDLES
from natscope.app.views import (
    backdoor,
    backdoor_audit,
    backdoor_proof,
    backdoor_scene,
    inspector,
)
from natscope.core.methods import METHODS, REFERENCE
from natscope.precompute.bundles.opening import open_attributor
from natscope.precompute.experiments import proof
from natscope.precompute.experiments.backdoor import backdoor_of, fooled_queries, stamped_query
from natscope.precompute.training.retrain import Outcome


@pytest.fixture
def served(poisoned_path, monkeypatch, tmp_path):
    monkeypatch.setenv(BUNDLES, str(poisoned_path.parent))
    monkeypatch.setenv("NATSCOPE_HOME", str(tmp_path))


@pytest.fixture
def page(served):
    """The page alone, as the app's navigation would draw it."""

    def draw():
        from natscope.app.views import backdoor

        backdoor.page()

    def open_page(**link):
        app = AppTest.from_function(draw, default_timeout=90)
        app.query_params.update(link)
        return _whole(app.run())

    return open_page


def _whole(app):
    assert [error.message for error in app.exception] == []
    return app


def _artifacts(app, field):
    return [json.loads(g.proto.json) for g in app.get("bidi_component") if f'"{field}"' in g.proto.json]


def _texts(app):
    return " ".join(element.value for element in [*app.markdown, *app.subheader, *app.caption])


def _html_of(app):
    return " ".join(element.proto.body for element in app.get("html"))


def _html(app):
    return " ".join(element.proto.body for element in app.get("html") if "<style>" not in element.proto.body)


def _press(app, key):
    return _whole(app.button(key=f"backdoor_{key}").click().run())


def _experts(app, step):
    app.session_state[f"backdoor_experts_{step}"] = True
    return _whole(app.run())


_JARGON = ("jacobian", "posterior", "σ²", "gradient", "sketch", "logit", "recall", "mrr", "reciprocal", "query", "roc")
_JARGON += ("redundancy", "pool", *(method.title.lower() for method in METHODS.values() if not method.at_random))


def test_the_story_has_its_four_steps_in_plain_words(page):
    app = page()
    titles = [element.value for element in app.subheader]
    assert [title[0] for title in titles] == ["1", "2", "3", "4"]
    assert [element.proto.anchor for element in app.subheader] == list(backdoor._STEPS)
    (picture,) = _artifacts(app, "pattern")
    assert not picture["clean"]["wrong"]
    assert picture["stamped"]["wrong"]
    shown = f"{_texts(app)} {_html(app)} {' '.join(button.label for button in app.button)}".lower()
    assert not [word for word in _JARGON if re.search(rf"\b{word}\b", shown)]
    assert not re.search(r"\d %", shown)


def _retold(app):
    (said,) = [element.proto.body for element in app.get("html") if "<figcaption>" in element.proto.body]
    return said.partition("</figure>")[0]


def test_what_it_says_to_retell_grows_with_what_was_seen(page, poisoned, poisoned_path, monkeypatch):
    monkeypatch.setattr(backdoor_audit, "run_job", _at_once)
    _prove(poisoned_path, int(fooled_queries(poisoned)[0]), 0)
    planted = len(poisoned.bundle.manifest.backdoor.culprits(0))
    app = page()
    assert f"in {planted} of {len(poisoned.train_labels):,} training pictures" in _retold(app)
    assert not re.search("natscope|without|audit", _retold(app))
    assert "This summary grows" in _retold(app)
    app = _press(app, "search_reveal")
    assert re.search(r"natscope named 50 training pictures: \d+ were planted\.", _retold(app))
    assert "A model trained without the 50 pictures that natscope named is fooled in only 4% of cases." in _retold(app)
    assert "audit" not in _retold(app)
    app = _press(app, "audit_reveal")
    assert re.search(r"An audit that knew nothing of the attack .* of its first 500 suspects, \d+ were", _retold(app))
    assert "This summary grows" not in _retold(app)


def test_each_step_says_at_most_three_sentences(page):
    for element in page().markdown[1:5]:
        assert element.value.replace("?", ".").replace("!", ".").count(". ") <= 3, element.value


def test_a_square_of_the_patch_is_drawn_on_and_put_back(page, poisoned):
    pattern = np.array(_artifacts(page(), "pattern")[0]["pattern"])
    bits = "".join(map(str, np.where(np.arange(9) == 4, 1 - pattern.ravel(), pattern.ravel())))
    app = page(drawn=bits)
    assert np.array(_artifacts(app, "pattern")[0]["pattern"]).ravel().tolist() == [int(bit) for bit in bits]
    assert "Your patch" in _texts(app)
    app = _press(app, "undo")
    assert (np.array(_artifacts(app, "pattern")[0]["pattern"]) == pattern).all()
    assert "drawn" not in app.query_params


def _patch(bits):
    return np.array(list(bits), np.uint8).reshape(3, 3)


def test_a_patch_that_fools_the_model_too_is_what_the_next_steps_are_about(page, poisoned):
    attack = poisoned.bundle.manifest.backdoor
    index = int(page().query_params["image"])
    base = int(poisoned.test_labels[index])
    image = poisoned.bundle.examples("test")[np.array([index])]
    answers = {
        bits: int(poisoned.predict(image.marked([_patch(bits)], np.zeros(1, int), attack.place))[0])
        for bits in map("{:09b}".format, range(512))
    }
    own = "".join(map(str, attack.patterns[base].ravel()))
    fooling = next(bits for bits, answer in answers.items() if answer == attack.targets[base] and bits != own)
    app = page(image=str(index), drawn=fooling)
    assert "This is about the picture with your patch, which fools the model too." in _texts(app)
    assert "a sign like it" in _retold(app)
    harmless = next(bits for bits, answer in answers.items() if answer == base)
    app = page(image=str(index), drawn=harmless)
    assert "Your patch does not fool the model, so from here on this is about the attacker’s patch." in _texts(app)
    assert "that sign" in _retold(app)


def _brought(app):
    return [part["place"] for part in _artifacts(app, "place")]


def test_a_result_that_was_waited_for_is_brought_into_view_once(page, poisoned, monkeypatch):
    done = []
    job = lambda key, *_, **about: _at_once(key, *_, **about) if done else None  # noqa: E731
    monkeypatch.setattr(backdoor_audit, "run_job", job)
    app = page()
    assert _brought(app) == []
    app = _press(app, "search_reveal")
    assert _brought(app) == ["backdoor_search_result"]
    assert _brought(_whole(app.run())) == []
    done.append(True)
    app = _whole(app.run())
    assert _brought(app) == ["backdoor_audit_result"]
    app = _press(app, "audit_reveal")
    assert _brought(app) == ["backdoor_audit_revealed_result"]
    assert _brought(_press(app, "another")) == []  # nothing of it is revealed
    assert _brought(page()) == []  # it was there at once


def test_another_picture_keeps_the_class_and_works(page, poisoned):
    app = page()
    before = app.query_params["image"]
    base = app.selectbox(key="backdoor_class").value
    for _ in range(3):
        app = _press(app, "another")
    assert app.selectbox(key="backdoor_class").value == base
    assert app.query_params["image"] != before
    assert _artifacts(app, "pattern")[0]["stamped"]["wrong"]


def test_a_class_and_a_patch_are_chosen(page):
    app = page()
    app = _whole(app.selectbox(key="backdoor_class").set_value(1).run())
    app = _experts(app, "trick")
    assert app.selectbox(key="backdoor_patch").value == 1
    app = _whole(app.selectbox(key="backdoor_patch").set_value(3).run())
    assert "patch for another class" in _texts(app)
    assert app.query_params["patch"] == "3"


def test_each_picture_says_its_label_and_once_revealed_what_was_planted(page, poisoned):
    attack = poisoned.bundle.manifest.backdoor
    app = page()
    base = int(poisoned.test_labels[int(app.query_params["image"])])
    label, shows = (poisoned.bundle.classes[k] for k in (attack.targets[base], base))
    line_ups = _artifacts(app, "appear")
    assert [len(part["items"]) for part in line_ups] == [16, 16]
    assert {item["caption"] for part in line_ups for item in part["items"]} == {f"labelled {label}"}
    assert not any(item["framed"] for part in line_ups for item in part["items"])
    app = _press(_press(app, "search_reveal"), "method_all_button")
    first, second = _artifacts(app, "appear")
    assert (len(first["items"]), len(second["items"])) == (50, 16)
    framed = {item["caption"] for item in first["items"] if item["framed"]}
    assert framed == {f"{shows}, labelled {label}"}
    found = sum(item["framed"] for item in first["items"])
    assert found > 15  # of 20
    assert f"natscope’s search: {found} of the first 50 were planted" in _texts(app)
    assert "Random picking would find about 2" in _texts(app)
    assert "backdoor_search_reveal" not in [button.key for button in app.button]


def test_a_picture_on_which_it_does_not_work_says_so(page, poisoned):
    backdoor = poisoned.bundle.manifest.backdoor
    images = poisoned.bundle.examples("test")
    fooled = poisoned.predict(backdoor.stamped(images, poisoned.test_labels)) == backdoor.targets[poisoned.test_labels]
    app = page(image=str(int(np.flatnonzero(~fooled)[0])))
    assert "does not work" in _texts(app)
    assert not _artifacts(app, "appear")
    app = _press(app, "working")
    assert len(_artifacts(app, "appear")) == 2


def test_a_test_image_that_relies_on_an_inspected_one_is_a_link_to_explain(page, poisoned, monkeypatch):
    found = SimpleNamespace(of=lambda index: np.array([3, 5]), tests=np.arange(20))
    monkeypatch.setattr(inspector, "run_job", lambda *_, **about: found)
    app = page()
    culprits = poisoned.bundle.manifest.backdoor.culprits(0)
    app.session_state["inspected"] = (backdoor_scene.KEY, "test:0", tuple(map(int, culprits)), 0)
    app = _whole(app.run())
    (reliant,) = [part for part in _artifacts(app, "items") if part["label"].startswith("Test images that rely on")]
    for number, item in zip((3, 5), reliant["items"], strict=True):
        assert item["href"].startswith(f"explain?q=test%3A{number}&")
        assert item["href"].endswith("tab=attribution")


def test_the_numbers_of_each_step_are_for_experts(page):
    app = page()
    assert not app.dataframe
    app = _experts(app, "trick")
    assert len(app.dataframe[0].value) == 10
    app = _experts(app, "question")
    table = app.dataframe[1].value
    assert table["recall@50"][0] > 0.5
    assert 0.5 < table["area under ROC"][0] <= 1
    app = _whole(app.selectbox(key="backdoor_method").set_value("repsim").run())
    assert f"{METHODS['repsim'].title}: the first 50" in _texts(app)
    assert app.query_params["method"] == "repsim"


def _prove(bundle, index, answer):
    """Keep a proof about a test image, after which the network gives an answer."""
    opened = open_attributor(bundle)
    attack = backdoor_of(opened.bundle)
    target = int(attack.targets[opened.test_labels[index]])
    asked = proof.question(opened.bundle, REFERENCE, target)
    items = opened.attribute(stamped_query(opened, attack, index), asked).items
    found, others = proof.parted(opened.train_labels, target, [item.train_index for item in items])
    shares = ((target, 0.97), (answer, 0.04), (target, 0.93))
    outcomes = tuple(Outcome(said, 0.9, share, share, 0.8) for said, share in shares)
    made = proof.Proof(index, tuple(found.tolist()), tuple(others.tolist()), outcomes)
    file = proof._file(opened.bundle)
    file.parent.mkdir()
    file.write_text(json.dumps(asdict(made)))
    return file


def test_a_proof_that_was_run_ahead_of_time_is_shown_at_once(page, poisoned, poisoned_path, monkeypatch):
    index = int(fooled_queries(poisoned)[4])
    file = _prove(poisoned_path, index, int(poisoned.test_labels[index]))
    app = page()
    assert app.query_params["image"] == str(index)
    assert "This was run when the model was prepared." in _texts(app)
    drawn = _html_of(app)
    assert drawn.index("fooled 97%") < drawn.index("fooled 4%") < drawn.index("fooled 93%")
    assert "Those pictures taught it the trick" in _texts(app)
    assert app.button(key="backdoor_proof_start").label.startswith("Run it live")
    live = (Outcome(0, 0.9, 0.96, 0.96, 0.8), Outcome(1, 0.9, 0.11, 0.1, 0.8), Outcome(0, 0.9, 0.92, 0.9, 0.8))
    monkeypatch.setattr(backdoor_proof, "run_job", lambda *_, **about: live)
    app = page()
    assert "This run was live." in _texts(app)
    assert "is fooled in only 11% of cases." in _retold(app)  # whoever ran it has seen it
    monkeypatch.undo()
    assert file.exists()


def test_a_proof_is_not_shown_for_another_picture_or_patch_or_from_a_damaged_file(page, poisoned, poisoned_path):
    first, second = map(int, fooled_queries(poisoned)[:2])
    file = _prove(poisoned_path, second, 0)
    for link in ({"image": str(first)}, {"method": "repsim"}):
        app = page(**link)
        assert "when the model was prepared" not in _texts(app)
        assert app.button(key="backdoor_proof_start").label.startswith("Remove them")
    app = _press(page(image=str(first), drawn="000000000"), "ahead")
    assert "when the model was prepared" in _texts(app)
    assert app.query_params["image"] == str(second)
    file.write_bytes(file.read_bytes()[:-9])
    app = page()
    assert app.query_params["image"] == str(first)
    assert app.button(key="backdoor_proof_start").label.startswith("Remove them")


def test_the_audit_lists_reveals_and_exports(page, poisoned, monkeypatch):
    monkeypatch.setattr(backdoor_audit, "run_job", _at_once)
    app = page()
    app = _whole(app.slider(key="backdoor_suspects").set_value(100).run())
    app = _press(app, "audit_reveal")
    assert "of the first 100 " in _texts(app)
    assert "the attack works on" in _texts(app)
    scores = np.linspace(1, 0, len(poisoned.train_labels))
    scene = type("Scene", (), {"attributor": poisoned})()
    rows = list(csv.DictReader(io.StringIO(backdoor_audit._table(scene, scores, np.array([5, 2])))))
    assert [(row["rank"], row["train_index"]) for row in rows] == [("1", "5"), ("2", "2")]


_done = {}


def _at_once(key, task, *arguments, **about):
    """Do the work of a job here; of one that was done before, return the result."""
    if key not in _done:
        _done[key] = task(lambda *step: None, *arguments)
    return _done[key]


def test_an_honest_bundle_says_how_to_get_a_poisoned_one(bundle_path, monkeypatch):
    monkeypatch.setenv(BUNDLES, str(bundle_path))

    def draw():
        from natscope.app.views import backdoor

        backdoor.page()

    app = _whole(AppTest.from_function(draw, default_timeout=60).run())
    assert "--poison-rate" in app.info[0].value


def test_where_training_takes_too_long_the_measured_result_is_shown_and_says_so(page, poisoned, monkeypatch):
    classes = list(poisoned.bundle.classes)

    def row(method, removed, planted, success):
        return {
            "method": method,
            "removed": removed,
            "poisoned_removed": planted,
            "attack_success": success,
            "class_success": [success] * len(classes),
            "test_accuracy": 0.9,
        }

    result = {
        "date": "2026-01-02",
        "command": "natscope evaluate retraining",
        "bundles": [{"command": "natscope precompute", "identity": "0"}],
        "setting": {
            "network": "mlp 784-512-256-10",
            "data": "some data",
            "queries": 1,
            "budget": 50,
            "sigma2": {"info_loss": 10.0},
        }
        | {"classes": classes},
        "rows": [row(None, 0, 0, 0.81), row("info_loss", 490, 444, 0.03), row("random", 495, 17, 0.8)],
        "finding": "What was found.",
    }
    monkeypatch.setattr(backdoor_proof, "too_slow", lambda bundle, **_: "This takes an hour.")
    monkeypatch.setattr(backdoor_proof, "retraining_results", lambda: [result])
    app = page()
    (reported,) = [element.value for element in app.info if "This takes an hour." in element.value]
    assert "2026-01-02, with some data" in reported
    drawn = " ".join(element.proto.body for element in app.get("html"))
    for words in (
        "the 490 that natscope named",
        "444 of them planted",
        "fooled 3%",
        "Without 495 random ones",
    ):
        assert words in drawn
    assert "Measured once, on 2026-01-02: a model trained without the 490 pictures that natscope named" in _retold(
        _press(app, "search_reveal")
    )
    assert "What was found." in _texts(app)
    monkeypatch.setattr(backdoor_proof, "retraining_results", lambda: [])
    assert any("this step is live" in element.value for element in page().info)
