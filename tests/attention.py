"""A small network on tokens, such as people train from scratch: embedding, attention written out, pooling, a head."""

import torch
from torch import nn


class Block(nn.Module):
    """One layer of a transformer, with key biases, whose gradient is zero but for rounding."""

    def __init__(self, width=8, heads=2, *, norm_heads=False):
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm = nn.RMSNorm(width // heads) if norm_heads else nn.Identity()

    def forward(self, tokens, mask):
        seen = self.before(tokens)
        query, key, value = (
            layer(seen).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        scores = self.norm(query) @ self.norm(key).mT
        weights = scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)
        tokens = tokens + self.out((weights @ value).transpose(1, 2).flatten(2))
        return tokens + self.down(torch.tanh(self.up(self.after(tokens))))


class Reader(nn.Module):
    """Maps ids (B, L), 0 for padding, to logits of three classes.

    Args:
        pool: "mean" over tokens, or "first" token, after which comes one more layer.
        places: "parameter", "table" (looked up once for all texts) or "each" (looked up for every text).
        calls: how often its one block runs.
        masks: whether padding is kept out.
        norm_heads: whether the block normalises queries and keys of each head.
    """

    def __init__(self, pool="mean", *, places="parameter", calls=1, masks=True, norm_heads=False, width=8):
        super().__init__()
        self.pool, self.calls, self.masks, self.kind = pool, calls, masks, places
        self.words = nn.Embedding(20, width, padding_idx=0)
        self.places = nn.Parameter(torch.randn(1, 9, width)) if places == "parameter" else nn.Embedding(9, width)
        self.block = Block(width, norm_heads=norm_heads)
        self.pooler = nn.Linear(width, width) if pool == "first" else nn.Identity()
        self.head = nn.Linear(width, 3)

    def forward(self, ids):
        length = ids.shape[1]
        mask = (ids != 0) | (not self.masks)
        if self.kind == "parameter":
            places = self.places[:, :length]
        else:
            numbers = torch.arange(length, device=ids.device)
            places = self.places(numbers.expand_as(ids) if self.kind == "each" else numbers)
        tokens = self.words(ids) + places
        for _ in range(self.calls):
            tokens = self.block(tokens, mask)
        if self.pool == "first":
            return self.head(torch.tanh(self.pooler(tokens[:, 0])))
        kept = mask[..., None].to(tokens.dtype)
        return self.head((tokens * kept).sum(1) / kept.sum(1))


READERS = {
    "mean": {},
    "first": {"pool": "first"},
    "table of places": {"places": "table"},
    "places of each text": {"places": "each"},
    "two calls": {"calls": 2},
    "norms of heads": {"norm_heads": True},
}


def reader(name="mean", **changed):
    """Return one of them with weights that do something, in eval mode."""
    torch.manual_seed(0)
    model = Reader(**READERS[name], **changed).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)
    return model
