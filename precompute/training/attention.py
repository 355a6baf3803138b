"""A small network for texts, trained from scratch: blocks of self-attention over words, and their mean."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

HEADS = 2
WIDTH = 32  # of a token's vector, where nothing else is asked for


class Attention(nn.Module):
    """Classifies texts, int64 tokens (B, L) of which 0 is padding, by the mean of what attention makes of their words.

    What is padded does not change the logits. Weights are those of plain layers that see every token, and the head
    follows the mean directly, so that nearly all of the kernel belongs to words. Training draws nothing, as dropout
    would: without one text, what a network says of others then changes by what that text taught alone.
    """

    def __init__(self, vocabulary: int, longest: int, width: int, classes: int, *, device: str = "cpu") -> None:
        """Make the layers, their weights not drawn yet.

        Args:
            vocabulary: how many tokens there are, padding included.
            longest: tokens of a text at most.
            width: of each token's vector, a multiple of `HEADS`.
            classes: how many there are.
            device: where the weights are.
        """
        super().__init__()
        self.tokens = skip_init(nn.Embedding, vocabulary, width, device=device)
        self.places = skip_init(nn.Embedding, longest, width, device=device)
        self.block = Block(width, device)
        self.norm = nn.LayerNorm(width, device=device)
        self.head = skip_init(nn.Linear, width, classes, device=device)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits (B, classes)."""
        words = ids > 0
        last = self.places.num_embeddings - 1  # beyond it there is padding alone
        places = torch.arange(ids.shape[1], device=ids.device).clamp(max=last).expand_as(ids)
        found = self.norm(self.block(self.tokens(ids) + self.places(places), words))
        weights = words.to(found.dtype) / words.sum(dim=1, keepdim=True).clamp(min=1)
        return self.head((found * weights[..., None]).sum(dim=1))


class Block(nn.Module):
    """Self-attention and a layer for each token by itself, each added to its input, which is normalised first."""

    def __init__(self, width: int, device: str) -> None:
        """Make the layers; queries, keys and values have no biases, since attention ignores that of keys."""
        super().__init__()
        self.first, self.second = nn.LayerNorm(width, device=device), nn.LayerNorm(width, device=device)
        self.queries = skip_init(nn.Linear, width, width, bias=False, device=device)
        self.keys = skip_init(nn.Linear, width, width, bias=False, device=device)
        self.values = skip_init(nn.Linear, width, width, bias=False, device=device)
        self.mixed = skip_init(nn.Linear, width, width, device=device)
        self.up = skip_init(nn.Linear, width, 2 * width, device=device)
        self.down = skip_init(nn.Linear, 2 * width, width, device=device)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        """Return what becomes of vectors (B, L, width); only `words` (B, L) are attended to."""
        seen = self.first(x)
        q, k, v = (_by_head(layer(seen)) for layer in (self.queries, self.keys, self.values))
        scores = q / math.sqrt(q.shape[-1]) @ k.transpose(-1, -2)
        unseen = torch.zeros_like(words, dtype=scores.dtype).masked_fill(~words, torch.finfo(scores.dtype).min)
        x = x + self.mixed(((scores + unseen[:, None, None, :]).softmax(dim=-1) @ v).transpose(1, 2).flatten(-2))
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))


def _by_head(x: Tensor) -> Tensor:
    """Reshape (B, L, width) to (B, HEADS, L, width / HEADS)."""
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)
