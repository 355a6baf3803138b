"""Sketches: seeded random linear maps from a Jacobian (P numbers) to K numbers that keep inner products on average.

Every sketch takes the blocks of `natscope.core.jacobians` and adds each layer's contribution to the same K coordinates.
Its random numbers come from (seed, parameter name) alone, so a query seen a year later lands in the same coordinates.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from natscope.core.blocks import Block, Formed, Lookup, Outer, Summed

DEFAULT_DIM = 4096
FOR_TRANSFORMERS = "countsketch_rows"  # the usual kind there, since their activations have outliers
_EXAMPLES_AT_ONCE = 256  # the accumulator of this many examples stays in the processor's cache
_FORMED_AT_ONCE = 2**21  # numbers of a convolution's gradient that are written out at a time, to be folded in the cache
_FORMED_ON_ACCELERATOR = 2**28  # likewise, in a gigabyte: few large operations are what suits it
_ROWS_A_GROUP = 8  # rows of a large weight that share one shift: see CountSketch
_SMALL_WEIGHT = 2**17  # weights up to this size get a shift for every row
_DENSE_CHUNK = 2048  # parameters whose K signs are in memory at a time


@dataclass(frozen=True)
class SketchSpec:
    """What fixes a sketch: features of different specifications must never be compared.

    Args:
        kind: "countsketch", "countsketch_rows", "tensorsketch", "dense" or "exact".
        dim: K, numbers an example; unused by "exact".
        seed: seed of the random projections.

    Examples:
        >>> natscope.SketchSpec("dense", dim=1024).to_dict()
        {'kind': 'dense', 'dim': 1024, 'seed': 0}
    """

    kind: str = "countsketch"
    dim: int = DEFAULT_DIM
    seed: int = 0

    def to_dict(self) -> dict[str, str | int]:
        """Return the JSON form."""
        return asdict(self)


class Sketch:
    """A linear map of Jacobian blocks; call it on the blocks of a batch to get features (B, width)."""

    def __init__(self, spec: SketchSpec) -> None:
        """Keep the specification; tables are drawn when a parameter is first met."""
        if spec.dim < 1:
            raise ValueError(f"A sketch needs at least one dimension, not {spec.dim}.")
        self.spec = spec
        self._tables: dict[tuple, tuple[Tensor, ...]] = {}

    def __call__(self, blocks: Sequence[Block]) -> Tensor:
        """Sketch one batch.

        Args:
            blocks: the Jacobian of B examples, as `jacobian_blocks` returns it.

        Returns:
            (B, K) float32 features on the blocks' device, E[<f(x), f(y)>] = <J(x), J(y)>.
        """
        raise NotImplementedError

    def _random(self, name: str) -> np.random.Generator:
        digest = hashlib.sha256(f"{self.spec.seed}/{name}".encode()).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))

    def _table(self, block: Block) -> tuple[Tensor, ...]:
        device = _tensor(block).device
        key = (block.name, block.shape, device)
        if key not in self._tables:
            signs, shifts = self._draw(block.name, block.shape)
            self._tables[key] = signs.to(device), shifts
        return self._tables[key]

    def _draw(self, name: str, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class CountSketch(Sketch):
    """CountSketch (Charikar et al. 2002): every weight goes to one of K buckets with a random sign of its own.

    The hash is blocked so that it runs at the speed of matrix products. A weight (i, j) goes to bucket
    (j + shift[i // h]) mod K, with h = 8 for matrices of more than 2^17 weights and 1 for others. The signs are
    independent, so the estimate is unbiased whatever the hash. Rows that share a shift collide in the same column, and
    always there, which a larger K does not change: on the embedded MLP the variance of k(x, x) is 4% above that of a
    dense projection for the median of 48 examples and 8% for the worst (`python -m benchmarks sketches`). Where few
    columns hold most of a gradient, as with the outliers among a transformer's activations, see `RowCountSketch`. For a
    factored gradient delta (x) a the sum over the rows of a group is a product of delta with the signs, so the gradient
    is never formed.
    """

    def __call__(self, blocks: Sequence[Block]) -> Tensor:  # noqa: D102
        batch = len(_tensor(blocks[0]))
        out = torch.empty(batch, self.spec.dim, device=_tensor(blocks[0]).device)
        for start in range(0, batch, _EXAMPLES_AT_ONCE):
            part = slice(start, start + _EXAMPLES_AT_ONCE)
            out[part] = self._sketch([_rows(block, part) for block in blocks])
        return out

    def _sketch(self, blocks: Sequence[Block]) -> Tensor:
        dim, first = self.spec.dim, _tensor(blocks[0])
        # Shifted rows run past the end of the K buckets; the second half is folded back once, at the end.
        buckets = torch.zeros(len(first), 2 * dim, device=first.device)
        for block in blocks:
            self.add(block, buckets)
        return buckets[:, :dim] + buckets[:, dim:]

    def add(self, block: Block, buckets: Tensor) -> None:
        """Add one block's sketch to buckets (B, 2 K), where bucket k stands for k mod K."""
        if isinstance(block, Lookup):
            self._add_rows(block, buckets)
            return
        if isinstance(block, Summed) and block.delta.shape[2] == 1:  # of one position, so that there is nothing to sum
            seen = block.patches(block.activation)
            self.add(Outer(block.name, block.delta[:, :, 0], seen[:, :, 0], block.scale), buckets)
            return
        if isinstance(block, Summed):
            at_once = _FORMED_AT_ONCE if block.delta.device.type == "cpu" else _FORMED_ON_ACCELERATOR
            step = max(1, at_once // math.prod(block.shape))
            for start in range(0, len(buckets), step):
                some = slice(start, start + step)
                self.add(Formed(block.name, _rows(block, some).form()), buckets[some])
            return
        signs, shifts = self._table(block)
        rows, columns = block.shape
        height = self.group_height(block.shape)
        for chunk, left in enumerate(range(0, columns, self.spec.dim)):
            right = min(left + self.spec.dim, columns)
            if height == 1 and isinstance(block, Formed):  # the same sums, in fewer operations
                signed = block.gradient[:, :, left:right].float() * signs[:, left:right]
                for shift, row in zip(shifts[chunk].tolist(), signed.unbind(1), strict=True):
                    buckets[:, shift : shift + right - left].add_(row, alpha=block.scale)
                continue
            for group, top in enumerate(range(0, rows, height)):
                shift = int(shifts[chunk, group])
                target = buckets[:, shift : shift + right - left]
                sign = signs[top : top + height, left:right]
                if isinstance(block, Outer):
                    summed = (block.scale * block.delta[:, top : top + height]).float() @ sign
                    target.addcmul_(block.activation[:, left:right].float(), summed)
                else:
                    part = block.gradient[:, top : top + height, left:right].float()
                    target.add_((part * sign).sum(1), alpha=block.scale)

    def _add_rows(self, block: Lookup, buckets: Tensor) -> None:
        signs, shifts = self._table(block)
        groups = block.indices // self.group_height(block.shape)
        for chunk, left in enumerate(range(0, block.shape[1], self.spec.dim)):
            part = block.delta[:, :, left : left + self.spec.dim]
            first = shifts[chunk].to(groups.device)[groups]
            places = first[..., None] + torch.arange(part.shape[2], device=groups.device)
            values = (block.scale * part).float() * signs[:, left : left + self.spec.dim][block.indices]
            buckets.scatter_add_(1, places.flatten(1), values.flatten(1))

    def group_height(self, shape: tuple[int, int]) -> int:
        """Return how many rows of a matrix of weights share a shift."""
        return 1 if math.prod(shape) <= _SMALL_WEIGHT else _ROWS_A_GROUP

    def _draw(self, name: str, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        random = self._random(name)
        groups, chunks = math.ceil(shape[0] / self.group_height(shape)), math.ceil(shape[1] / self.spec.dim)
        shifts = torch.from_numpy(random.integers(0, self.spec.dim, (chunks, groups)))
        return _signs(random, shape), shifts


class RowCountSketch(CountSketch):
    """CountSketch with a shift for every row, so that any two weights share a bucket with probability 1 / K at most.

    It is the usual one for a network of transformers. Weights of one group and column always collide, which matters
    where few columns hold most of a gradient. In a MiniLM that was trained on RTE for 5 epochs the Gram errs at
    K = 20,480 by 0.6% of a typical entry, with shared shifts by 0.9% (`python -m benchmarks sketches --bundle BUNDLE`).
    """

    def group_height(self, shape: tuple[int, int]) -> int:  # noqa: D102
        return 1


class TensorSketch(CountSketch):
    """TensorSketch (Pham & Pagh 2013) of delta (x) a, left in the Fourier domain: the outer product is never formed.

    By Parseval the K real numbers sqrt(2/K) [Re, Im] of rfft(CS delta) * rfft(CS' a) (sqrt(1/K) at frequency 0 and
    Nyquist) have the same inner products as the sketch itself. Parameters that are not factored weights are
    count-sketched.
    """

    def __init__(self, spec: SketchSpec) -> None:
        """Check that K is even."""
        super().__init__(spec)
        if spec.dim % 2:
            raise ValueError(f"TensorSketch needs an even number of dimensions, not {spec.dim}.")

    def _sketch(self, blocks: Sequence[Block]) -> Tensor:
        dim, first = self.spec.dim, _tensor(blocks[0])
        spectrum = torch.zeros(len(first), dim // 2 + 1, dtype=torch.complex64, device=first.device)
        formed = [block for block in blocks if not isinstance(block, Outer)]
        for block in blocks:
            if isinstance(block, Outer):
                sign_rows, hash_rows, sign_columns, hash_columns = self._factor_table(block)
                left = _count(block.scale * block.delta, sign_rows, hash_rows, dim)
                spectrum += torch.fft.rfft(left) * torch.fft.rfft(
                    _count(block.activation, sign_columns, hash_columns, dim)
                )
        spectrum *= math.sqrt(2 / dim)
        spectrum[:, [0, -1]] *= math.sqrt(0.5)
        features = torch.cat([spectrum.real, spectrum.imag[:, 1:-1]], dim=1)
        return features + super()._sketch(formed) if formed else features

    def _factor_table(self, block: Outer) -> tuple[Tensor, ...]:
        key = ("factors", block.name, block.shape, block.delta.device)
        if key not in self._tables:
            random = self._random(block.name)
            tables = []
            for size in block.shape:
                tables += [_signs(random, (size,)), torch.from_numpy(random.integers(0, self.spec.dim, size))]
            self._tables[key] = tuple(t.to(block.delta.device) for t in tables)
        return self._tables[key]


class DenseRademacher(Sketch):
    """Dense Rademacher projection, the paper's: signs / sqrt(K), drawn chunk by chunk, never stored. Slow."""

    def __call__(self, blocks: Sequence[Block]) -> Tensor:  # noqa: D102
        first, dim = _tensor(blocks[0]), self.spec.dim
        out = torch.zeros(len(first), dim, device=first.device)
        for block in blocks:
            random = self._random(block.name)
            rows_at_once = max(1, _DENSE_CHUNK // block.shape[1])
            for top in range(0, block.shape[0], rows_at_once):
                part = replace(block, scale=1.0).form(slice(top, top + rows_at_once))
                flat = part.flatten(1).float()
                for left in range(0, flat.shape[1], _DENSE_CHUNK):
                    piece = flat[:, left : left + _DENSE_CHUNK]
                    signs = _signs(random, (piece.shape[1], dim)).to(first.device)
                    out.addmm_(piece, signs, alpha=block.scale / math.sqrt(dim))
        return out


class ExactFactors(Sketch):
    """No sketch: the factors (scale * delta, a) of every layer side by side, for networks of `Linear` weights alone.

    Kernels are then exact, `natscope.core.kernels.FactorKernel`; there is no feature vector, so no index and no K x K
    Gram.
    """

    def __call__(self, blocks: Sequence[Block]) -> Tensor:
        """Return (B, sum over layers of fan_out + fan_in) float32.

        Raises:
            ValueError: if a parameter is not a factored weight.
        """
        for block in blocks:
            if not isinstance(block, Outer):
                raise ValueError(
                    f"The exact kernel needs a network of Linear weights alone; '{block.name}' is not one."
                )
        return torch.cat([part for b in blocks for part in (b.scale * b.delta, b.activation)], dim=1).float()  # type: ignore[union-attr]


SKETCHES: dict[str, type[Sketch]] = {
    "countsketch": CountSketch,
    FOR_TRANSFORMERS: RowCountSketch,
    "tensorsketch": TensorSketch,
    "dense": DenseRademacher,
    "exact": ExactFactors,
}


def make_sketch(spec: SketchSpec) -> Sketch:
    """Build the sketch that a specification names.

    Raises:
        ValueError: if the kind is unknown or the dimension does not fit it.
    """
    if spec.kind not in SKETCHES:
        raise ValueError(f"There is no sketch '{spec.kind}'; choose one of {', '.join(SKETCHES)}.")
    return SKETCHES[spec.kind](spec)


def _tensor(block: Block) -> Tensor:
    return block.gradient if isinstance(block, Formed) else block.delta


def _rows(block: Block, part: slice) -> Block:
    tensors: dict[str, Any] = {name: value[part] for name, value in vars(block).items() if isinstance(value, Tensor)}
    return replace(block, **tensors)


def _signs(random: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    """Draw +1 and -1 as float32, one random bit each."""
    count = math.prod(shape)
    bits = np.unpackbits(np.frombuffer(random.bytes((count + 7) // 8), dtype=np.uint8), count=count)
    return torch.from_numpy(bits.reshape(shape)).float().mul_(2).sub_(1)


def _count(values: Tensor, signs: Tensor, buckets: Tensor, dim: int) -> Tensor:
    return torch.zeros(len(values), dim, device=values.device).index_add_(1, buckets, (values * signs).float())
