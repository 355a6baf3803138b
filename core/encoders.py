"""Networks of Hugging Face's `transformers` that a bundle may name: their settings, which a stranger may have written.

Each kind has settings of its own. What they leave out is as in the library, and nothing in them names code.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from natscope.core.bundle.bounds import Share
from natscope.core.tokens import LARGEST_VOCABULARY

_Width = Annotated[int, Meta(ge=1, le=2**20)]
_Number = Annotated[int, Meta(ge=1, le=200)]
_Activation = Literal["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu"]


class _Encoder(Struct, forbid_unknown_fields=True, kw_only=True):
    """What all kinds have in common.

    Args:
        num_labels: classes.
        vocab_size: tokens that it knows.
        max_position_embeddings: tokens of a text at most.
        separator: the token between two texts, by which their segments are told apart; None where there are none.
    """

    num_labels: Annotated[int, Meta(ge=2, le=10_000)]
    vocab_size: Annotated[int, Meta(ge=2, le=LARGEST_VOCABULARY)] = 30_522
    max_position_embeddings: _Width = 512
    separator: Annotated[int, Meta(ge=1, le=LARGEST_VOCABULARY)] | None = None


class _Bert(_Encoder):
    hidden_size: _Width = 768
    num_hidden_layers: _Number = 12
    num_attention_heads: _Number = 12
    intermediate_size: _Width = 3072
    hidden_act: _Activation = "gelu"
    hidden_dropout_prob: Share = 0.1
    attention_probs_dropout_prob: Share = 0.1
    type_vocab_size: _Width = 2
    layer_norm_eps: Annotated[float, Meta(gt=0, le=1)] = 1e-12
    classifier_dropout: Share | None = None


class _Electra(_Bert):
    embedding_size: _Width = 128
    hidden_size: _Width = 256
    num_attention_heads: _Number = 4
    intermediate_size: _Width = 1024


class _DistilBert(_Encoder):
    dim: _Width = 768
    n_layers: _Number = 6
    n_heads: _Number = 12
    hidden_dim: _Width = 3072
    activation: _Activation = "gelu"
    dropout: Share = 0.1
    attention_dropout: Share = 0.1
    seq_classif_dropout: Share = 0.2


KINDS: dict[str, type[_Encoder]] = {"bert": _Bert, "distilbert": _DistilBert, "electra": _Electra}


def settings_of(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a network, what is left out filled in.

    Args:
        kind: a key of `KINDS`.
        values: settings that `kind` has, and no others.

    Raises:
        msgspec.ValidationError: if one is unknown or out of bounds.
    """
    return msgspec.to_builtins(msgspec.convert(dict(values), KINDS[kind], strict=True))


def known_of(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of some settings that a kind of network has."""
    names = {field.name for field in msgspec.structs.fields(KINDS[kind])}
    return {name: value for name, value in values.items() if name in names}


def misfit(config: Mapping[str, Any], modality: str, form: tuple[int, ...], classes: int) -> str | None:
    """Return why a network cannot take some examples, in words that follow "the network"; None if it can.

    Args:
        config: its settings.
        modality: the name of the examples' modality.
        form: what they have in common.
        classes: how many there are.
    """
    if modality != "text":
        return f"takes texts and no {modality}s"
    vocabulary, longest = form
    most = config["max_position_embeddings"]
    if vocabulary > config["vocab_size"]:
        return f"knows {config['vocab_size']:,} tokens, and the tokenizer {vocabulary:,}"
    if longest > most:
        return f"takes {most} tokens of a text at most, and texts are cut to {longest} (--longest)"
    return None if config["num_labels"] == classes else f"has {config['num_labels']} classes, and the data {classes}"
