"""Shares of tokens against their definition: each position gets weights of its own, which autograd differentiates."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot

from natscope.core.blocks import Formed
from natscope.core.features import FeatureMap
from natscope.core.measurements import MEASUREMENTS
from natscope.core.sketches import SketchSpec
from natscope.core.token_shares import pair_shares, token_features, token_shares
from tests import oracles
from tests.attention import READERS, reader

LONG, SHORT = torch.tensor([[3, 7, 3, 19, 1]]), torch.tensor([[11, 3, 4]])
SPEC = SketchSpec(dim=512)
_EACH = {
    nn.Linear: lambda layer, x, w, b: (w @ x[..., None])[..., 0] + b,
    nn.LayerNorm: lambda layer, x, w, b: nn.functional.layer_norm(x, layer.normalized_shape, eps=layer.eps) * w + b,
    nn.RMSNorm: lambda layer, x, w: nn.functional.rms_norm(x, layer.normalized_shape, eps=layer.eps) * w,
    nn.Embedding: lambda layer, x, w: torch.stack([table[i] for table, i in zip(w, x[0])])[None],
}


def by_definition(model, ids, target):
    """The part of each position in the gradient of each parameter, {name: (L, *shape)}, one position at a time."""
    length, copies = ids.shape[1], {}

    def replace(name, layer):
        def hook(_, args, output):
            (given,) = args
            heads = given.dim() == 4  # (1, heads, L, width)
            if given.dim() != 4 and given.shape[:2] != ids.shape:
                return output
            own = [
                copies.setdefault(f"{name}.{own}", p.detach().repeat(length, *[1] * p.dim()).requires_grad_())
                for own, p in layer.named_parameters()
            ]
            return _EACH[type(layer)](layer, given, *(p[None] if heads else p for p in own))

        return hook

    hooks = [m.register_forward_hook(replace(n, m)) for n, m in model.named_modules() if type(m) in _EACH]
    value = model(ids)[0, target]
    for hook in hooks:
        hook.remove()
    found = dict(zip(copies, torch.autograd.grad(value, list(copies.values()))))
    found["words.weight"][:, 0] = 0  # the row of padding does not learn
    return found


def sketched(sketch, gradients):
    """The sketch of gradients {name: (B, *shape)}."""
    matrices = {name: g.reshape(len(g), g.shape[1] if g.dim() > 2 else 1, -1) for name, g in gradients.items()}
    return sketch([Formed(name, matrix) for name, matrix in matrices.items()]).numpy()


def close(found, wanted, whole):
    return np.abs(found - wanted).max() <= 1e-5 * np.linalg.norm(whole)


@pytest.mark.parametrize("ids", [LONG, SHORT], ids=["long", "short"])
@pytest.mark.parametrize("name", READERS)
def test_each_position_has_the_sketch_of_its_own_part_of_the_gradient(name, ids):
    model = reader(name).double()
    tangent = FeatureMap(model, SPEC, ntk=False)
    found = token_features(tangent, ids, 2)
    parts = by_definition(model, ids, 2)
    assert {"words.weight", "block.key.bias", "block.after.weight"} <= set(parts)
    whole = oracles.jacobians(model, ids, torch.tensor([2]), MEASUREMENTS["logit"])
    rest = {n: g - parts[n].sum(0) if n in parts else g for n, g in whole.items()}
    features = sketched(tangent.sketch, whole)
    assert close(found[:-1], sketched(tangent.sketch, parts), features)
    assert close(found[-1:], sketched(tangent.sketch, rest), features)
    assert all(np.linalg.norm(row) > 1e-2 * np.linalg.norm(features) for row in found[:-1])


@pytest.mark.parametrize("ntk", [False, True])
@pytest.mark.parametrize("kind", ["countsketch", "countsketch_rows", "tensorsketch", "dense"])
def test_shares_add_up_to_the_link(kind, ntk, generator):
    tangent = FeatureMap(reader("first"), SketchSpec(kind, 64), ntk=ntk)
    features = tangent.features(LONG, [1], measurement="margin")[0]
    residual = torch.randn(64, generator=generator).numpy()
    shares = token_shares(tangent, LONG, 1, residual, measurement="margin")
    assert shares.tokens.shape == (5,)
    scale = np.linalg.norm(features) * np.linalg.norm(residual)
    assert abs(shares.total - features @ residual) < 1e-5 * scale
    assert abs(shares.unassigned) > 1e-2 * scale  # of what comes after the first token was taken


def test_pairs_of_tokens_add_up_to_the_kernel():
    tangent = FeatureMap(reader(), SPEC, ntk=False)
    left, right = tangent.features(LONG, [1])[0], tangent.features(SHORT, [2])[0]
    shares = pair_shares(tangent, LONG, 1, SHORT, 2)
    assert shares.pairs.shape == (5, 3)
    assert abs(shares.total - left @ right) < 1e-5 * np.linalg.norm(left) * np.linalg.norm(right)
    by_token = token_shares(tangent, LONG, 1, token_features(tangent, SHORT, 2)[:-1].sum(0))
    np.testing.assert_allclose(shares.pairs.sum(1), by_token.tokens, rtol=1e-4, atol=1e-6)


def test_with_mean_pooling_only_the_head_and_the_places_belong_to_no_token():
    model = reader()
    within = FeatureMap(model, SPEC, ntk=False, layers=("words.*", "block.*"))
    assert not token_features(within, LONG, 0)[-1].any()
    beyond = FeatureMap(model, SPEC, ntk=False, layers=("head.*", "places"))
    found = token_features(beyond, LONG, 0)
    assert not found[:-1].any()
    np.testing.assert_allclose(found[-1], beyond.features(LONG, [0])[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", READERS)
def test_padding_has_no_share_and_changes_none(name):
    tangent = FeatureMap(reader(name), SPEC, ntk=False)
    alone = token_features(tangent, SHORT, 1)
    padded = token_features(tangent, nn.functional.pad(SHORT, (0, 4)), 1)
    assert not padded[3:7].any()
    assert close(padded[[0, 1, 2, 7]], alone, alone.sum(0))


def test_what_padding_adds_where_it_is_not_masked_belongs_to_no_token():
    tangent = FeatureMap(reader(masks=False), SPEC, ntk=False, layers=("block.*",))
    ids = nn.functional.pad(SHORT, (0, 4))
    found = token_features(tangent, ids, 1)
    assert not found[3:7].any()
    assert found[-1].any()
    assert close(found.sum(0), tangent.features(ids, [1])[0], found)


class Counts(nn.Module):
    """An MLP on how often each token occurs, whose layers are as wide as the text is long."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(20, 5), nn.Linear(5, 3)

    def forward(self, ids):
        return self.head(torch.tanh(self.first(one_hot(ids, 20).sum(1).float())))


class Heads(nn.Module):
    """A layer on (B, heads, L, width): with two heads and two tokens, either axis could be that of the positions."""

    def __init__(self):
        super().__init__()
        self.words, self.inner, self.head = nn.Embedding(20, 8), nn.Linear(4, 4), nn.Linear(8, 3)

    def forward(self, ids):
        heads = self.words(ids).unflatten(2, (2, 4)).transpose(1, 2)
        return self.head(torch.tanh(self.inner(heads)).transpose(1, 2).flatten(2).mean(1))


@pytest.mark.parametrize(
    ("model", "ids", "layers"), [(Counts(), LONG, ()), (Heads(), SHORT[:, :2], ("inner.*", "head.*"))]
)
def test_layers_without_an_axis_of_positions_belong_to_no_token(model, ids, layers):
    tangent = FeatureMap(model, SPEC, ntk=False, layers=layers)
    found = token_features(tangent, ids, 1)
    assert not found[:-1].any()
    np.testing.assert_allclose(found[-1], tangent.features(ids, [1])[0], rtol=1e-5, atol=1e-6)


def test_shares_that_cannot_be_are_refused():
    model = reader()
    with pytest.raises(ValueError, match=r"of the tokens of one text, \(1, length\), not of \(2, 5\)\."):
        token_features(FeatureMap(model, SPEC, ntk=False), LONG.expand(2, -1), 0)
    with pytest.raises(ValueError, match=r"no feature vectors that tokens could share"):
        token_features(FeatureMap(model, SketchSpec("exact"), ntk=False), LONG, 0)
