"""What a method needs of a bundle beyond the features of every bundle, and how that is computed and what it costs."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from natscope.core.device import device_of
from natscope.core.jacobians import convolves
from natscope.core.progress import Progress

MARGINS = "margin_features"  # (N, K), sketched Jacobians of the margin at the labels
LOSS_WEIGHTS = "loss_weights"  # (N,) 1 - p_y, which follows from the logits that every bundle holds
DERIVED = (LOSS_WEIGHTS,)
_LARGE = 2**22  # parameters of a network, above which an example needs much memory
FACTORS = "kronfluence"  # the folder of EK-FAC factors within a bundle
FACTOR_FILES = (
    f"{FACTORS}/activation_eigenvalues.safetensors",
    f"{FACTORS}/activation_eigenvectors.safetensors",
    f"{FACTORS}/gradient_eigenvalues.safetensors",
    f"{FACTORS}/gradient_eigenvectors.safetensors",
    f"{FACTORS}/lambda_matrix.safetensors",
    f"{FACTORS}/num_lambda_processed.safetensors",
    f"{FACTORS}/factor_arguments.json",
)


@dataclass(frozen=True)
class Size:
    """What the cost of artifacts depends on.

    Args:
        count: N, training examples.
        dim: K, numbers in a feature vector.
        vectors: whether features are vectors; the exact kernel has none.
        parameters: how many the network has; None if it is not known.
        penultimate: how many numbers enter its last `Linear` layer, 0 if it has none; None if it is not known.
    """

    count: int
    dim: int
    vectors: bool = True
    parameters: int | None = None
    penultimate: int | None = None


@dataclass(frozen=True)
class EkfacSpec:
    """How EK-FAC factors are fitted, to the Fisher's directions: pairs of a training example and a class.

    Args:
        covariance_directions: how many directions, at most, are drawn evenly for the Kronecker factors, which set the
            axes.
        lambda_directions: how many, at most, are drawn by their share of the Fisher's trace, for the variances along
            these axes, which cost most.
        seed: seed of the draws.
        batch_size: directions a step.
    """

    covariance_directions: int = 200_000
    lambda_directions: int = 4_000
    seed: int = 0
    batch_size: int = 500

    def to_dict(self) -> dict[str, int]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def usual(cls, model: nn.Module) -> "EkfacSpec":
        """Return the usual settings of a network: a convolution's directions cost a thousand times a small MLP's."""
        size = at_once(model, cls.batch_size)
        return cls(10_000, 2_000, batch_size=size) if convolves(model) else cls(batch_size=size)


def at_once(model: nn.Module, small: int) -> int:
    """Return how many examples kronfluence takes at a time: `small` for a network that needs little memory for each."""
    if convolves(model) or sum(p.numel() for p in model.parameters()) > _LARGE:
        return 50 if device_of(model).type == "cpu" else 500
    return small


class Source(Protocol):
    """A trained network and its training data, from which artifacts are computed: by a build, or for another sketch.

    `folder` is for a method's own files meanwhile; a build that was interrupted finds them there again.
    """

    @property
    def model(self) -> nn.Module:
        """The network, in eval mode."""

    @property
    def labels(self) -> np.ndarray:
        """The training examples' labels, (N,) int64."""

    @property
    def folder(self) -> Path:
        """Where a method may keep its own files."""

    @property
    def progress(self) -> Progress:
        """Called with a stage's name, steps done and in all."""

    @property
    def ekfac(self) -> EkfacSpec:
        """How EK-FAC factors are fitted."""

    @property
    def inputs(self) -> Callable[[slice | np.ndarray], Tensor]:
        """A function that returns the network's inputs for training examples."""

    @property
    def margins(self) -> Callable[[], np.ndarray]:
        """A function that returns the array `MARGINS`."""


Computed = Mapping[str, np.ndarray | bytes]


@dataclass(frozen=True)
class Artifacts:
    """Files of a bundle for one method alone.

    Args:
        features: names of arrays (N, K), computed in float32; a bundle keeps them as float16 where that holds them.
        numbers: names of float32 arrays (N,).
        files: names of other files, "folder/name".
        compute: returns the arrays and the contents of the files; raises ValueError if they cannot be computed.
        settings: returns what the manifest says of how they were computed.
        obstacle: returns a sentence on why a size rules them out, without computing anything; None if it does not.
        bytes: on disk, work in progress included, for a size.
        memory: bytes while they are computed.
        products: multiplications, where these take most of the time.
        usual: whether a bundle gets them by default.
        timed: whether `products` and the pass over the margins are all that takes time.
    """

    features: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    compute: Callable[[Source], Computed] = lambda source: {}
    settings: Callable[[Source], dict[str, Any]] = lambda source: {}
    obstacle: Callable[[Size], str | None] = lambda size: None
    bytes: Callable[[Size], int] = lambda size: 0
    memory: Callable[[Size], int] = lambda size: 0
    products: Callable[[Size], float] = lambda size: 0.0
    usual: bool = True
    timed: bool = True
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Gather the names of all files."""
        object.__setattr__(self, "names", (*self.features, *self.numbers, *self.files))


def emptied(folder: Path) -> Path:
    """Return a folder without what an interrupted run left in it."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder
