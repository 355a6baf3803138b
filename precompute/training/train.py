"""Training by gradient descent that can be killed at any time and still ends with the same bits."""

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from natscope.core.bundle.format import write_atomically
from natscope.core.device import device_of, full_precision, reseed
from natscope.core.encoders import KINDS
from natscope.core.errors import BuildError, FileError, out_of_memory
from natscope.core.examples import Inputs, batches
from natscope.core.files import opened
from natscope.core.jacobians import convolves
from natscope.precompute.training.order import augmented, batches_of, draw_moves, parts_of

PRECISIONS = ("float32", "bfloat16")
OPTIMIZERS = ("sgd", "adamw")
_AT_ONCE = 500  # images in a forward pass
_WEIGHT = "weight/"
# What a checkpoint calls an optimizer's state of each parameter; one has all of SGD's, all of AdamW's or none.
_STATE = {"momentum_buffer": "momentum/", "exp_avg": "exp_avg/", "exp_avg_sq": "exp_avg_sq/", "step": "step/"}
_STATES: tuple[set[str], ...] = (set(), {"momentum_buffer"}, {"exp_avg", "exp_avg_sq", "step"})
_SQUARES = 0.999  # factor of the running mean of AdamW's squared gradients
_FIRST_STEPS = 3  # whose losses tell the code of one network from another's
_SAME_LOSS = 1e-3  # difference, absolute or relative, that another machine's rounding may make


@dataclass(frozen=True)
class TrainingSpec:
    """The recipe: SGD or AdamW on the mean cross-entropy, with a rate that may rise first and fall at the end.

    The paper's recipe has a constant rate. Its last steps leave the test accuracy of the embedded data anywhere from
    84.7 to 86.3% by the seed; lowered to 0 over the last epoch it is 87.5 to 87.7%.

    Args:
        epochs: passes over the data.
        batch_size: examples per step; the last step of an epoch takes the rest.
        learning_rate: from the first `warmup_epochs` to the last `decay_epochs`; the lower of the two where both are.
        decay_epochs: over how many epochs at the end the rate falls to 0 in a straight line; 0 keeps it constant.
        momentum: factor of the gradient's running sum; for AdamW of its running mean.
        weight_decay: added to the gradient as a multiple of the weights; for AdamW apart from the gradient.
        seed: seed of the order of examples, of crops and flips, and of the initial weights where `build` makes them.
        warmup_epochs: over how many epochs at the start the rate rises from 0 in a straight line.
        augment: whether each image is moved by up to 4 pixels (zeros, the mean colour, come in) and mirrored at random.
        precision: "bfloat16" runs the network under autocast; weights, their updates and the loss stay float32.
        optimizer: one of `OPTIMIZERS`.
    """

    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 0.03
    decay_epochs: int = 1
    momentum: float = 0.9
    weight_decay: float = 1e-3
    seed: int = 0
    warmup_epochs: int = 0
    augment: bool = False
    precision: str = "float32"
    optimizer: str = "sgd"

    def lasting(self, epochs: int) -> "TrainingSpec":
        """Return the recipe with other epochs: a rate that falls over all of them still does."""
        whole = self.decay_epochs == self.epochs
        return replace(self, epochs=epochs, decay_epochs=epochs if whole else self.decay_epochs)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values; later ones only where they are not at their default."""
        usual = {"warmup_epochs": 0, "augment": False, "precision": "float32", "optimizer": "sgd"}
        return {key: value for key, value in asdict(self).items() if key not in usual or value != usual[key]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainingSpec":
        """Undo `to_dict`; raises TypeError if a key is unknown."""
        return cls(**values)


RECIPES = {
    "mlp": TrainingSpec(),
    "resnet9": TrainingSpec(  # the paper's, but for bfloat16: a triangle up to epoch 5 and down to 0 at epoch 24
        epochs=24,
        batch_size=512,
        learning_rate=0.5,
        decay_epochs=19,
        weight_decay=5e-4,
        warmup_epochs=5,
        augment=True,
        precision="bfloat16",
    ),
    "attention": TrainingSpec(
        epochs=3,
        batch_size=64,
        learning_rate=4e-3,
        decay_epochs=2,
        weight_decay=0.3,
        warmup_epochs=1,
        optimizer="adamw",
    ),
} | dict.fromkeys(  # the paper's for BERT, but for the rate, which rises and then falls, as is usual for fine-tuning
    KINDS,
    TrainingSpec(
        epochs=3,
        batch_size=32,
        learning_rate=2e-5,
        decay_epochs=3,
        weight_decay=1e-2,
        warmup_epochs=1,
        optimizer="adamw",
    ),
)


@full_precision()
def train(
    model: nn.Module,
    inputs: Tensor | Inputs,
    labels: Tensor,
    spec: TrainingSpec,
    *,
    leave_out: np.ndarray | None = None,
    refill: bool = False,
    checkpoint: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Train in place and leave the model in eval mode.

    The order of examples in epoch e, and how they are augmented, depends on (seed, e) alone, so training resumed
    from a checkpoint takes the same steps; random layers such as dropout depend on (seed, e, step). What is left out is
    missing from its batch, and other batches stay as they are. On a CPU one thread works for a network of small
    layers, and the bits do not depend on how many threads there are; convolutions take all threads, in channels-last
    order.

    Args:
        model: the network with its initial weights, on the device to train on.
        inputs: (N, ...), what the network takes, or what gives it batch by batch.
        labels: (N,) int64.
        spec: the recipe.
        leave_out: rows of inputs to train without; the others keep the order that they have with them.
        refill: whether the others fill whole batches, in fewer steps, as where little is left of the data.
        checkpoint: file written after every epoch; if it is there, training resumes from it.
        progress: called with epochs done and in all, at the start and after each epoch's checkpoint.

    Raises:
        BuildError: if the recipe makes no sense, the loss is not finite, or the checkpoint is damaged or of another
            training.
    """
    _check(spec, inputs, labels)
    optimizer = optimizer_of(model.parameters(), spec)
    kept = np.ones(len(inputs), dtype=bool)
    if leave_out is not None:
        kept[leave_out] = False
    if not kept.any():
        raise BuildError("Nothing is left to train on.")
    identity = _identity(model, inputs, labels, spec, kept, refill) if checkpoint else ""
    start = _restore(checkpoint, model, optimizer, identity) if checkpoint and checkpoint.exists() else 0
    large = convolves(model)
    if large:
        model.to(memory_format=torch.channels_last)
        for state in optimizer.state.values():  # as in an uninterrupted training
            for key, value in state.items():
                if value.dim() == 4:
                    state[key] = value.to(memory_format=torch.channels_last)
    progress(start, spec.epochs)
    model.train()
    for epoch in range(start, spec.epochs):
        for _ in _epoch(model, optimizer, inputs, labels, spec, epoch, kept, refill=refill):
            pass
        if checkpoint:
            _save(checkpoint, model, optimizer, identity, epoch + 1)
        progress(epoch + 1, spec.epochs)
    if large:
        model.to(memory_format=torch.contiguous_format)  # as loaded weights are, so that results have the same bits
    model.eval()


@full_precision()
def first_losses(
    make: Callable[[], nn.Module], inputs: Tensor | Inputs, labels: Tensor, spec: TrainingSpec
) -> list[float]:
    """Return the losses of the first steps of a training: other code, or data that it reads, gives others.

    Convolutions are not put into channels-last order for that, so the last bits may be others than in `train`.

    Args:
        make: returns the network with its initial weights.
        inputs: (N, ...), what the network takes, or what gives it batch by batch.
        labels: (N,) int64.
        spec: the recipe.

    Raises:
        BuildError: if the recipe makes no sense, or a loss is not finite.
    """
    _check(spec, inputs, labels)
    model = make()
    kept = np.ones(len(inputs), dtype=bool)
    steps = _epoch(model.train(), optimizer_of(model.parameters(), spec), inputs, labels, spec, 0, kept)
    with closing(steps):
        return list(itertools.islice(steps, _FIRST_STEPS))


def beginning(
    make: Callable[[], nn.Module], inputs: Tensor | Inputs, labels: Tensor, spec: TrainingSpec
) -> dict[str, list[float]]:
    """Return `first_losses` under that name, as a bundle's results hold them; nothing where they are not repeatable."""
    once, again = (first_losses(make, inputs, labels, spec) for _ in range(2))
    return {"first_losses": once} if agree(once, again, spec) else {}


def agree(losses: Sequence[float], others: Sequence[float], spec: TrainingSpec) -> bool:
    """Return whether `first_losses` are the same but for what another machine rounds differently."""
    rounding = _SAME_LOSS if spec.precision == "float32" else 10 * _SAME_LOSS
    return len(losses) == len(others) and bool(np.allclose(losses, others, rtol=rounding, atol=rounding))


def optimizer_of(parameters: Iterable[Tensor], spec: TrainingSpec) -> torch.optim.Optimizer:
    """Return what takes a recipe's steps, all of them at its full learning rate unless that is set."""
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters,
            lr=spec.learning_rate,
            betas=(spec.momentum, _SQUARES),
            weight_decay=spec.weight_decay,
            fused=True,
        )
    return torch.optim.SGD(
        parameters, lr=spec.learning_rate, momentum=spec.momentum, weight_decay=spec.weight_decay, fused=True
    )


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor | Inputs,
    labels: Tensor,
    spec: TrainingSpec,
    epoch: int,
    kept: np.ndarray,
    *,
    refill: bool = False,
) -> Generator[float, None, None]:
    """Take the steps of one epoch over the inputs that are kept, (N,) bool, and yield the loss of each."""
    device = device_of(model)
    random = np.random.default_rng([spec.seed, epoch])
    alone = not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules())  # which needs two
    lengths = getattr(inputs, "lengths", None) if alone and device.type == "cpu" else None  # a GPU pads faster
    batches = batches_of(random.permutation(len(inputs)), kept, spec.batch_size, refill=refill, alone=alone)
    seeds = random.bit_generator.seed_seq.generate_state(len(batches)).tolist()
    moves = draw_moves(len(inputs), random)  # for each example, whether it is trained on or not
    with nullcontext() if convolves(model) else _one_thread(), torch.random.fork_rng(devices=[]):
        for step, batch in enumerate(batches):
            reseed(seeds[step], device)
            optimizer.param_groups[0]["lr"] = rate(spec, epoch + step / len(batches))
            parts = parts_of(batch, lengths)
            some = [augmented(inputs[part], moves[part]) if spec.augment else inputs[part] for part in parts]
            pairs = [(each.to(device), labels[part].to(device)) for each, part in zip(some, parts, strict=True)]
            yield _step(model, optimizer, pairs, epoch, _autocast(spec.precision, device))


def rate(spec: TrainingSpec, epochs_done: float) -> float:
    """Return the learning rate after a number of epochs, a fraction for steps within one."""
    left = spec.epochs - epochs_done
    falling = left / spec.decay_epochs if spec.decay_epochs else 1.0
    rising = epochs_done / spec.warmup_epochs if spec.warmup_epochs else 1.0
    return spec.learning_rate * min(1.0, falling, rising)


def apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights as safetensors takes them: contiguous, and without shared memory, as tied weights have."""
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}


@full_precision()
def logits_of(model: nn.Module, inputs: Tensor | Inputs, *, precision: str = "float32") -> np.ndarray:
    """Return a network's logits (N, C) float32 for inputs (N, ...), some at a time."""
    device, found = device_of(model), None
    with torch.no_grad(), _autocast(precision, device):
        for part in batches(inputs, _AT_ONCE):
            logits = model(inputs[part].to(device)).float().cpu().numpy()
            found = np.empty((len(inputs), logits.shape[1]), logits.dtype) if found is None else found
            found[part] = logits
    if found is None:
        raise ValueError("There are no inputs, so there are no logits.")
    return found


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of rows of logits (N, C) whose largest entry is at the label (N,)."""
    return float(np.mean(logits.argmax(axis=1) == labels))


def check_recipe(spec: TrainingSpec) -> None:
    """Raise BuildError if a recipe makes no sense."""
    if min(spec.epochs, spec.decay_epochs, spec.warmup_epochs, spec.seed) < 0 or spec.batch_size < 1:
        raise BuildError("Epochs, decay and warm-up epochs and seed must be 0 or more and the batch size 1 or more.")
    if spec.precision not in PRECISIONS:
        raise BuildError(f"There is no precision '{spec.precision}'; choose one of {', '.join(PRECISIONS)}.")
    if spec.optimizer not in OPTIMIZERS:
        raise BuildError(f"There is no optimizer '{spec.optimizer}'; choose one of {', '.join(OPTIMIZERS)}.")
    if not (0 < spec.learning_rate < math.inf and 0 <= spec.momentum < 1 and 0 <= spec.weight_decay < math.inf):
        raise BuildError("The learning rate must be positive, the momentum in [0, 1) and the weight decay 0 or more.")


def _check(spec: TrainingSpec, inputs: Tensor | Inputs, labels: Tensor) -> None:
    check_recipe(spec)
    if len(inputs) != len(labels) or not len(inputs):
        raise BuildError(f"Training needs one label an example, not {len(labels)} labels for {len(inputs)} examples.")
    if spec.augment and len(inputs.shape) != 4:
        raise BuildError("Only images can be moved and mirrored; train without augmentation.")


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _autocast(precision: str, device: torch.device) -> AbstractContextManager:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[tuple[Tensor, Tensor]],
    epoch: int,
    precision: AbstractContextManager,
) -> float:
    """Take a step on a batch, of which each part, inputs and labels, goes through the network by itself."""
    optimizer.zero_grad()
    value, count, one = 0.0, sum(len(labels) for _, labels in parts), next(model.parameters())
    for some, labels in parts:
        if count:
            with precision:
                logits = model(some)
            loss = cross_entropy(logits.to(labels.device, one.dtype), labels) * (len(labels) / count)
        else:  # a step without a gradient: momentum and weight decay go on
            loss = sum((0 * parameter.sum() for parameter in model.parameters()), torch.zeros(()))
        value += loss.item()
        loss.backward()
    if not math.isfinite(value):
        raise BuildError(f"The loss became infinite or NaN in epoch {epoch + 1}; train with a smaller learning rate.")
    optimizer.step()
    return value


def _identity(
    model: nn.Module, inputs: Tensor | Inputs, labels: Tensor, spec: TrainingSpec, kept: np.ndarray, refill: bool
) -> str:
    """Hash what a checkpoint must agree on: the recipe, the shapes of the weights, the data and the rows kept."""
    shapes = [(name, list(tensor.shape)) for name, tensor in model.state_dict().items()]
    digest = hashlib.sha256(json.dumps([spec.to_dict(), shapes, list(inputs.shape)]).encode())
    if not kept.all():
        digest.update(kept.data)
        digest.update(b"refilled" if refill else b"left")
    digest.update(labels.cpu().numpy().data)
    for start in range(0, len(inputs), _AT_ONCE):
        digest.update(np.ascontiguousarray(inputs[start : start + _AT_ONCE].cpu().numpy()).data)
    return digest.hexdigest()


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, identity: str, epoch: int) -> None:
    tensors = {_WEIGHT + name: tensor for name, tensor in apart(model.state_dict()).items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            if value is not None:
                tensors[_STATE[key] + name] = value.contiguous()
    write_atomically(path, safetensors.torch.save(tensors, {"epoch": str(epoch), "identity": identity}))


def _restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, identity: str) -> int:
    """Load weights and the optimizer's state, and return the number of finished epochs."""
    try:
        with opened(path), safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, FileError) as error:
        if out_of_memory(error):
            raise
        raise _damaged(path) from error
    if metadata.get("identity") != identity:
        raise BuildError(
            f"The checkpoint {path} is of another training (recipe, data or network); delete it to start again."
        )
    weights = {name.removeprefix(_WEIGHT): t for name, t in tensors.items() if name.startswith(_WEIGHT)}
    for name, parameter in model.named_parameters():
        state = {key: tensors[prefix + name] for key, prefix in _STATE.items() if prefix + name in tensors}
        shapes = {key: () if key == "step" else parameter.shape for key in state}
        if set(state) not in _STATES or any(
            value.shape != shapes[key] or not value.is_floating_point() for key, value in state.items()
        ):
            raise _damaged(path)
        if state:
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}
    try:
        model.load_state_dict(weights)
        return int(metadata["epoch"])
    except (RuntimeError, KeyError, ValueError) as error:
        if out_of_memory(error):
            raise
        raise _damaged(path) from error


def _damaged(path: Path) -> BuildError:
    return BuildError(f"The checkpoint {path} is damaged; delete it to train from the start.")
