import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from torch.nn.functional import pad

from natscope.app.cli.commands import natscope
from natscope.core.bundle.manifest import Manifest
from natscope.core.bundle.request import Request
from natscope.core.bundle.schema import SchemaError
from natscope.core.encoders import settings_of
from natscope.core.errors import BuildError, BundleError
from natscope.core.methods import METHODS
from natscope.core.sketches import FOR_TRANSFORMERS, SketchSpec
from natscope.core.token_shares import token_shares
from natscope.precompute.bundles.build import build
from natscope.precompute.bundles.opening import open_attributor
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.data.text_sources import TextSpec
from natscope.precompute.data.texts import text_dataset
from natscope.precompute.training.models import ModelSpec, build_model, fitted
from natscope.precompute.training.pretrained import Start, built, found, outline
from natscope.precompute.training.retrain import retrain
from natscope.precompute.training.train import TrainingSpec
from tests.tiny import edited

transformers = pytest.importorskip("transformers", reason="networks of Hugging Face need their library, transformers")

_SMALL = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "electra": {"hidden_size": 32, "embedding_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "distilbert": {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64},
}
_TREES, _FISH = ["oak", "elm", "pine", "birch", "maple", "ash"], ["cod", "eel", "pike", "bream", "carp", "ling"]
TRAIN, TEST = 120, 16


def pairs(count, seed):
    """Rows of a table: whether both sentences are about the same kind of thing."""
    random = np.random.default_rng(seed)
    rows = ["sentence1\tsentence2\tlabel"]
    for number in range(count):
        first, same = _TREES if number % 4 < 2 else _FISH, number % 2 == 0
        second = first if same else (_FISH if first is _TREES else _TREES)
        words = [*random.choice(first, 3), *random.choice(second, random.integers(2, 5))]
        rows.append(f"the {words[0]} and {words[1]} {words[2]}\ta {' '.join(words[3:])}\t{'yes' if same else 'no'}")
    return "\n".join(rows) + "\n"


def wordpieces(text, size=200):
    """A WordPiece tokenizer.json, as BERT has it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(
        text.lower().splitlines(),
        trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False),
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return made.to_str()


def library_network(kind="bert", **changes):
    """A network of the library, with weights of its own."""
    names = {"bert": "Bert", "electra": "Electra", "distilbert": "DistilBert"}
    config = getattr(transformers, f"{names[kind]}Config")(
        vocab_size=200, max_position_embeddings=40, **_SMALL[kind] | changes
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = getattr(transformers, f"{names[kind]}ForSequenceClassification")(config)
        for parameter in model.parameters():  # larger than the library's, so that words matter
            parameter.data += 0.3 * torch.randn(parameter.shape)
    return model.eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A table of pairs, and a folder with a BERT as the library saves it, without a head."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "train.tsv").write_text(pairs(TRAIN, 0))
    (folder / "dev.tsv").write_text(pairs(TEST, 1))
    library_network().bert.save_pretrained(folder / "bert")
    (folder / "bert" / "tokenizer.json").write_text(wordpieces(pairs(TRAIN, 0)))
    return folder


def texts_in(place):
    text = TextSpec(tokenizer=place / "bert" / "tokenizer.json", longest=32)
    return text_dataset(f"text:{place / 'train.tsv'}", text)[0]


def spec_of(place, **changes):
    hub = found(str(place / "bert"))
    return replace(
        BuildSpec(
            name="Pairs",
            dataset=f"text:{place / 'train.tsv'}",
            text=TextSpec(tokenizer=hub.tokenizer, longest=32),
            model=ModelSpec.of(hub),
            training=TrainingSpec(8, 8, 2e-3, optimizer="adamw"),
            sketch=SketchSpec(dim=16),
            methods=tuple(METHODS),
        ),
        **changes,
    )


@pytest.fixture(scope="module")
def bundle_path(place):
    build(spec_of(place), place / "bundle")
    return place / "bundle"


@pytest.mark.parametrize("kind", _SMALL)
def test_logits_are_the_librarys_and_more_padding_changes_none(kind, tmp_path):
    own = library_network(kind)
    own.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(wordpieces(pairs(TRAIN, 0)))
    hub = found(str(tmp_path))
    model = built(hub.kind, hub.config, hub.start, seed=0)
    assert hub.config == settings_of(kind, hub.config)
    assert {name: tuple(v.shape) for name, v in outline(hub.kind, hub.config).state_dict().items()} == {
        name: tuple(v.shape) for name, v in own.state_dict().items()
    }
    first, second = [2, 17, 9, 3, 30, 8, 3], [2, 12, 3, 11, 3]
    for ids, behind in ((first, [4, 5, 6]), (second, [3, 4])):
        given = torch.tensor([ids])
        segments = {"token_type_ids": torch.tensor([[int(p in behind) for p in range(len(ids))]])}
        with torch.no_grad():
            wanted = own(input_ids=given, **({} if kind == "distilbert" else segments)).logits
            assert torch.allclose(model(given), wanted, atol=1e-5)
            assert torch.allclose(model(pad(given, (0, 9))), wanted, atol=1e-5)
    together = torch.tensor([first, [*second, 0, 0]])
    with torch.no_grad():
        assert torch.allclose(model(together)[1], model(together[1:, :5])[0], atol=1e-5)


def test_weights_are_those_of_the_folder_and_a_head_is_drawn_by_the_seed(place):
    hub = found(str(place / "bert"))
    models = [built(hub.kind, hub.config, hub.start, seed=seed).state_dict() for seed in (0, 0, 1)]
    stored = safetensors.torch.load_file(place / "bert" / "model.safetensors")
    assert all(torch.equal(models[2][f"bert.{name}"], value) for name, value in stored.items())
    assert torch.equal(models[0]["classifier.weight"], models[1]["classifier.weight"])
    assert not torch.equal(models[0]["classifier.weight"], models[2]["classifier.weight"])
    assert not models[0]["classifier.bias"].any()


def test_weights_of_older_names_are_found(place, tmp_path):
    shutil.copytree(place / "bert", tmp_path / "bert")
    file = tmp_path / "bert" / "model.safetensors"
    older = {
        "bert." + n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for n, v in safetensors.torch.load_file(file).items()
    }
    safetensors.torch.save_file(older | {"cls.predictions.bias": torch.zeros(200)}, file)
    hub, known = found(str(tmp_path / "bert")), found(str(place / "bert"))
    own, wanted = (built(one.kind, one.config, one.start, seed=0).state_dict() for one in (hub, known))
    assert all(torch.equal(own[name], value) for name, value in wanted.items())


def test_a_head_for_another_number_of_classes_is_drawn_anew(place, tmp_path):
    shutil.copytree(place / "bert", tmp_path / "three")
    library_network(num_labels=3).save_pretrained(tmp_path / "three")
    hub = found(str(tmp_path / "three"))
    data = texts_in(place)
    model = build_model(fitted(ModelSpec.of(hub), data.train, 2), seed=0)
    assert model.state_dict()["classifier.weight"].shape == (2, 32)


def test_a_bundle_opens_without_its_folder_and_answers(bundle_path, place, tmp_path):
    shutil.move(place / "bert", tmp_path / "away")
    try:
        attributor = open_attributor(bundle_path)
        assert attributor.bundle.manifest.model["architecture"] == "bert"
        query = attributor.query("test", 0)
        for name in METHODS:
            assert len(attributor.attribute(query, Request(name, sigma2=1.0, budget=5)).items) == 5
        assert attributor.features.layers == ("linear",)
        with pytest.raises(BuildError, match="weights that training begins with are not at"):
            retrain(attributor.bundle, np.array([1]))
    finally:
        shutil.move(tmp_path / "away", place / "bert")


def test_a_link_is_shared_by_its_tokens(bundle_path):
    attributor = open_attributor(bundle_path)
    ids = attributor.bundle.inputs("train")[:1]
    residual = np.random.default_rng(0).normal(size=16)
    whole = attributor.features.features(ids, np.array([1]))[0] @ residual
    shares = token_shares(attributor.features, ids, 1, residual)
    assert shares.total == pytest.approx(whole, rel=1e-4, abs=1e-4)
    assert np.count_nonzero(shares.tokens) == ids.shape[1]


def test_without_leaving_anything_out_retraining_gives_the_bundles_weights(bundle_path):
    attributor = open_attributor(bundle_path)
    again = retrain(attributor.bundle, np.array([], dtype=np.int64)).state_dict()
    kept = attributor.features.model.state_dict()
    assert all(torch.equal(again[name], value) for name, value in kept.items())
    other = retrain(attributor.bundle, np.arange(10)).state_dict()
    assert not torch.equal(other["classifier.weight"], kept["classifier.weight"])


def test_brittleness_is_measured(bundle_path, tmp_path):
    options = [
        "--queries",
        "2",
        "--budget",
        "6",
        "--methods",
        "info_loss,repsim,random",
        "--out",
        str(tmp_path / "b.json"),
    ]
    done = CliRunner().invoke(natscope, ["evaluate", "brittleness", "--bundle", str(bundle_path), *options])
    assert done.exit_code == 0, done.output
    assert {run["method"] for run in json.loads((tmp_path / "b.json").read_text())["rows"]} >= {"info_loss", "random"}


def test_from_the_command_line_the_folder_gives_tokenizer_and_weights(place, tmp_path):
    words = ["precompute", "--dataset", f"text:{place / 'train.tsv'}", "--model", f"hf:{place / 'bert'}", "--dim", "16"]
    words += ["--epochs", "2", "--longest", "24", "--methods", "info_loss"]
    done = CliRunner().invoke(natscope, [*words, "--out", str(tmp_path / "own")])
    assert done.exit_code == 0, done.output
    manifest = Manifest.from_json((tmp_path / "own" / "manifest.json").read_bytes())
    assert manifest.sketch["kind"] == FOR_TRANSFORMERS
    assert manifest.training["learning_rate"] == 2e-5
    assert [manifest.training[f"{name}epochs"] for name in ("", "warmup_", "decay_")] == [2, 1, 2]
    assert manifest.results["settings"]["model"]["start"]["folder"] == str(place / "bert")
    assert (tmp_path / "own" / "tokenizer.json").read_text() == (place / "bert" / "tokenizer.json").read_text()
    again = ["precompute", "--config", str(tmp_path / "own"), "--out", str(tmp_path / "again")]
    refused = CliRunner().invoke(natscope, again)
    assert f"is a folder, which is read only if you name it: --model hf:{place / 'bert'}"[:60] in str(refused.exception)
    done = CliRunner().invoke(natscope, [*again, "--model", f"hf:{place / 'bert'}"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "own" / "model.safetensors"
    ).read_bytes()


def test_weights_that_are_trained_already_are_loaded(place, tmp_path, bundle_path):
    weights = bundle_path / "model.safetensors"
    hub = found(str(place / "bert"))
    bundle = build(
        spec_of(place, model=ModelSpec.of(hub, trained=True), weights=weights, methods=("info_loss",)), tmp_path / "own"
    )
    assert "start" not in bundle.manifest.results["settings"]["model"]
    assert np.array_equal(bundle.array("test_logits"), open_attributor(bundle_path).bundle.array("test_logits"))
    with pytest.raises(BuildError, match="were loaded, not trained here"):
        retrain(bundle, np.array([1]))


def test_a_changed_file_of_weights_is_refused(place, bundle_path, tmp_path):
    file = place / "bert" / "model.safetensors"
    shutil.copy(file, tmp_path / "kept")
    changed = {name: value + 1 for name, value in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(changed, file)
    try:
        with pytest.raises(BuildError, match="were changed since the bundle was built"):
            retrain(open_attributor(bundle_path).bundle, np.array([1]))
        with pytest.raises(BundleError, match="the weights that training begins with have changed"):
            build(spec_of(place), bundle_path)
    finally:
        shutil.copy(tmp_path / "kept", file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "roberta"}, "of the kind roberta; natscope can take bert, distilbert, electra"),
        ({"pad_token_id": 1}, "has pad_token_id 1; natscope can take it with 0"),
        (
            {"position_embedding_type": "relative_key"},
            'has position_embedding_type "relative_key"; natscope can take it with "absolute"',
        ),
        ({"is_decoder": True}, "has is_decoder true; natscope can take it with false"),
        ({"hidden_size": -1}, "holds a setting that natscope cannot take"),
        ({"hidden_act": "swiglu"}, "holds a setting that natscope cannot take"),
        ({"num_attention_heads": 5}, "cannot make this bert"),
        ({"hidden_size": 64}, "is not of the network that its config.json names"),
        ({"vocab_size": 20}, "knows 20 tokens"),
        ({"max_position_embeddings": 16}, "takes 16 tokens of a text at most, and texts are cut to 32"),
    ],
)
def test_a_network_that_cannot_be_used_is_one_sentence(place, tmp_path, change, said):
    shutil.copytree(place / "bert", tmp_path / "bert")
    config = tmp_path / "bert" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    data = texts_in(place)
    with pytest.raises(BuildError) as error:
        build_model(fitted(ModelSpec.of(found(str(tmp_path / "bert"))), data.train, 2), seed=0)
    assert said in str(error.value)
    assert str(error.value).count("\n") == 0


def test_code_and_pickles_in_a_folder_are_never_read(place, tmp_path):
    shutil.copytree(place / "bert", tmp_path / "bert")
    config = tmp_path / "bert" / "config.json"
    code = {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}}
    config.write_text(json.dumps(json.loads(config.read_text()) | code))
    (tmp_path / "bert" / "evil.py").write_text("raise SystemExit")
    hub = found(str(tmp_path / "bert"))
    assert built(hub.kind, hub.config, hub.start, seed=0) is not None
    assert "evil" not in sys.modules
    (tmp_path / "bert" / "model.safetensors").rename(tmp_path / "bert" / "pytorch_model.bin")
    with pytest.raises(BuildError, match=r"has no model\.safetensors"):
        ModelSpec.of(found(str(tmp_path / "bert")))
    (tmp_path / "bert" / "model.safetensors").write_bytes(b"\x80\x04.")
    with pytest.raises(BuildError, match="no safetensors file of weights"):
        build_model(ModelSpec.of(found(str(tmp_path / "bert"))), seed=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: model["config"].update(auto_map={}), "holds a wrong value at model.config"),
        (lambda model: model["config"].update(num_hidden_layers=10**6), "model.config.num_hidden_layers"),
        (lambda model: model["config"].update(vocab_size=20), "names a network that knows 20 tokens"),
        (lambda model: model["config"].update(num_labels=3), "names a network that has 3 classes"),
        (lambda model: model["config"].pop("hidden_size"), "leaves out a value at model.config"),
        (lambda model: model.update(architecture="mlp"), "holds a wrong value at model.architecture"),
        (lambda model: model.update(start={"folder": "/", "digest": ""}), "holds a wrong value at model"),
    ],
)
def test_a_forged_manifest_is_refused(bundle_path, change, said):
    raw = json.loads((bundle_path / "manifest.json").read_text())
    change(raw["model"])
    with pytest.raises(SchemaError) as error:
        Manifest.from_json(json.dumps(raw))
    assert said in str(error.value)


def test_a_bundle_that_names_another_size_takes_no_memory(bundle_path, tmp_path):
    shutil.copytree(bundle_path, tmp_path / "forged")
    edited(
        tmp_path / "forged", lambda raw: raw["model"]["config"].update(intermediate_size=2**20, num_hidden_layers=200)
    )
    with pytest.raises(Exception, match="do not fit the network that its manifest names"):
        open_attributor(tmp_path / "forged")


@pytest.mark.parametrize("start", [None, 5, {"folder": 3, "digest": ""}, {}])
def test_a_bundle_that_does_not_say_where_training_began_is_not_retrained(bundle_path, tmp_path, start):
    shutil.copytree(bundle_path, tmp_path / "forged")
    edited(tmp_path / "forged", lambda raw: raw["results"]["settings"]["model"].update(start=start))
    with pytest.raises(BuildError, match="does not say which weights its training began with"):
        retrain(open_attributor(tmp_path / "forged").bundle, np.array([1]))


def test_what_is_missing_is_said_in_plain_words(place, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformers", None)
        with pytest.raises(BuildError, match="pip install transformers"):
            found(str(place / "bert"))
    import transformers.utils as hub

    monkeypatch.setattr(hub, "cached_file", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: None)
    with pytest.raises(BuildError, match="There is no folder bert-base-uncased, and no network with"):
        found("bert-base-uncased")
    with pytest.raises(BuildError, match="a name on Hugging Face's hub") as said:
        found("https:/someone:secret@example.com/bert")
    assert "secret" not in str(said.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BuildError, match="cannot be used"):
        found(str(tmp_path / "empty"))


def test_a_network_on_the_hub_is_read_from_where_it_is_fetched(place, monkeypatch):
    import transformers.utils as hub

    monkeypatch.setattr(hub, "cached_file", lambda name, file, **_: str(place / "bert" / file))
    fetched = found("someone/bert")
    assert fetched.start == Start(str(place / "bert"), found(str(place / "bert")).start.digest)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dataset", "fashion-mnist"], "is for texts"),
        (["--widths", "3,2"], "--widths is for networks of another kind"),
        (["--tokenizer", "dev.tsv"], "comes with its own tokenizer"),
    ],
)
def test_options_that_do_not_suit_are_refused(place, words, said, monkeypatch):
    monkeypatch.chdir(place)
    usual = ["--dataset", "text:train.tsv"] if "--dataset" not in words else []
    done = CliRunner().invoke(natscope, ["precompute", *usual, "--model", "hf:bert", *words, "--out", "unbuilt"])
    assert said in str(done.exception)
