"""The gradient of one parameter for each example of a batch, in the form that costs least."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

ALL = slice(None)


@dataclass(frozen=True)
class Outer:
    """The gradient of one weight as factors: for example b it is `scale * delta[b] (x) activation[b]`."""

    name: str
    delta: Tensor  # (B, fan_out)
    activation: Tensor  # (B, fan_in)
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the weight, (fan_out, fan_in)."""
        return self.delta.shape[1], self.activation.shape[1]

    def form(self, rows: slice = ALL) -> Tensor:
        """Return the gradient itself, (B, fan_out, fan_in), or some of its rows."""
        return self.scale * self.delta[:, rows, None] * self.activation[:, None, :]


@dataclass(frozen=True)
class Formed:
    """The gradient of one parameter, written out as a matrix an example."""

    name: str
    gradient: Tensor  # (B, rows, columns)
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the parameter seen as a matrix."""
        return self.gradient.shape[1], self.gradient.shape[2]

    def form(self, rows: slice = ALL) -> Tensor:
        """Return the gradient itself, (B, rows, columns), or some of its rows."""
        return self.scale * self.gradient[:, rows]


@dataclass(frozen=True)
class Summed:
    """The gradient of one weight as a sum of outer products over positions: of a convolution, or a layer on tokens."""

    name: str
    delta: Tensor  # (B, rows, L), by position of the output
    activation: Tensor  # (B, ...), the layer's input
    patches: Callable[[Tensor], Tensor]  # returns for inputs (b, ...) what each position sees of them, (b, columns, L)
    columns: int
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the weight seen as a matrix."""
        return self.delta.shape[1], self.columns

    def form(self, rows: slice = ALL) -> Tensor:
        """Return the gradient itself, (B, rows, columns), or some of its rows."""
        return self.scale * (self.delta[:, rows] @ self.patches(self.activation).transpose(1, 2))


@dataclass(frozen=True)
class Lookup:
    """The gradient of a table as that of the rows which each example looks up; a row may come several times."""

    name: str
    delta: Tensor  # (B, L, columns), by place that a row is used at
    indices: Tensor  # (B, L) int64, the row
    rows: int
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the table."""
        return self.rows, self.delta.shape[2]

    def form(self, rows: slice = ALL) -> Tensor:
        """Return the gradient itself, (B, rows, columns), or some of its rows."""
        first, stop, _ = rows.indices(self.rows)
        inside = (self.indices >= first) & (self.indices < stop)
        delta = self.delta * inside[..., None]
        places = (self.indices - first).where(inside, 0)[..., None].expand_as(delta)
        return self.scale * delta.new_zeros(len(delta), stop - first, delta.shape[2]).scatter_add_(1, places, delta)


Block = Outer | Formed | Summed | Lookup


def squared_norm(block: Block) -> float:
    """Return the sum of ||J||^2 over the examples of a block."""
    if isinstance(block, Outer):
        return float(block.scale**2 * (block.delta.square().sum(1) * block.activation.square().sum(1)).sum())
    if isinstance(block, Lookup):
        same = block.indices[:, :, None] == block.indices[:, None, :]
        return float(block.scale**2 * (block.delta @ block.delta.mT * same).sum())
    return float(block.form().square().sum())
