"""Each network of the registry is differentiated as torch.func does in float64, or refused in one sentence."""

import re

import pytest
import torch
from torch import nn

from natscope.core.errors import BuildError
from natscope.core.jacobians import jacobian_blocks
from natscope.core.measurements import MEASUREMENTS
from natscope.precompute.training.heads import attach
from natscope.precompute.training.kinds import fault_of
from natscope.precompute.training.models import ModelSpec
from natscope.precompute.training.validate import check_suitable
from tests import oracles
from tests.conftest import one_sentence
from tests.networks import NETWORKS, bent

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization", "ignore:torch.quantize"),
]
_RIGHT = [name for name, case in NETWORKS.items() if case.refused is None]
_REFUSED = [name for name, case in NETWORKS.items() if case.refused is not None]


def made(name):
    """Return a network of the registry in eval mode, with statistics and affine parameters that do something."""
    torch.manual_seed(0)
    case = NETWORKS[name]
    model = case.make().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
        elif type(module).__name__.endswith("Norm") and getattr(module, "weight", None) is not None:
            nn.init.normal_(module.weight)
    attach(model, case.output)
    return model, torch.randn(3, *case.shape)


@pytest.mark.parametrize("name", _RIGHT)
def test_a_network_is_differentiated_as_torch_func_does(name):
    case, (model, inputs) = NETWORKS[name], made(name)
    found = check_suitable(model, inputs, case.classes, ModelSpec("their:net", None, output=case.output))
    assert bool(found.by_torch_func) == case.by_torch_func
    assert len(found.remarks) == (case.remark is not None)
    assert re.search(case.remark or "", " ".join(found.remarks))
    model, inputs = model.double(), inputs.double()
    targets = torch.arange(3) % case.classes
    oracle = oracles.jacobians if case.in_torch_func else oracles.backpropagated
    wanted = oracle(model, inputs, targets, MEASUREMENTS["logit"])
    learns = [parameter for parameter, p in model.named_parameters() if p.requires_grad]
    whole = torch.stack([wanted[parameter].norm() for parameter in learns]).norm()
    blocks = jacobian_blocks(model, inputs, targets)
    assert [block.name for block in blocks] == learns
    assert whole > 0
    for block in blocks:
        truth = wanted[block.name]
        assert (block.form().reshape(truth.shape) - truth).norm() <= 1e-5 * truth.norm() + 1e-12 * whole


@pytest.mark.parametrize("name", _REFUSED)
def test_a_network_that_cannot_be_used_is_refused_in_a_sentence(name):
    case, (model, inputs) = NETWORKS[name], made(name)
    with pytest.raises(BuildError, match=case.refused) as caught:
        check_suitable(model, inputs, case.classes, ModelSpec("their:net", None))
    one_sentence(str(caught.value))


def test_one_logit_is_two_classes_whose_softmax_is_its_sigmoid():
    model, inputs = made("one logit")
    plain = made("one logit")[0]
    plain._forward_hooks.clear()
    chances = model(inputs).softmax(1)
    torch.testing.assert_close(chances[:, 1:], plain(inputs).sigmoid())
    assert all(block.form().norm() > 0 for block in jacobian_blocks(model, inputs, torch.zeros(3, dtype=torch.int64)))


def test_an_output_that_is_not_there_is_refused_with_those_that_are():
    for name, output, sentence in (
        ("dictionary", "scores", "no 'scores' in the dict that the network gives; it has features, logits"),
        ("tuple", "2", "no '2' in the tuple that the network gives; it has items 0 to 1"),
        (
            "plain",
            "logits",
            "so there is no 'logits' to take of it; leave out --output .output= in Python",
        ),
    ):
        case = NETWORKS[name]
        model = case.make()
        attach(model, output)
        with pytest.raises(BuildError, match=sentence):
            check_suitable(model, torch.randn(3, *case.shape), case.classes, ModelSpec("their:net", None))


def test_indices_are_not_changed_to_try_a_network():
    seen, generator = [], torch.Generator().manual_seed(0)

    class Watched(NETWORKS["words"].make):
        def forward(self, x):
            if not torch.is_grad_enabled():
                seen.append(x)
            return super().forward(x)

    inputs = torch.randint(0, 3, (3, 7), generator=generator).float()
    check_suitable(Watched(), inputs, 4, ModelSpec("their:net", None))
    given = {tuple(row.tolist()) for row in inputs}
    assert {tuple(row.tolist()) for batch in seen for row in batch} == given


def test_two_logits_in_a_dict_are_two_outputs():
    model = bent(lambda self, x: {"logits": self.head(self.body(x))}, 2)
    attach(model, None)
    with pytest.raises(BuildError, match=r"^The network has 2 outputs and the data set 3 classes\.$"):
        check_suitable(model, torch.randn(3, 3, 16, 16), 3, ModelSpec("their:net", None))


def test_a_module_of_ones_own_may_have_quantized_in_its_name():
    kind = type("Own", (NETWORKS["plain"].make,), {"__module__": "x.quantized_nets"})
    assert fault_of(kind()) is None
