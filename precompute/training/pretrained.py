"""Networks of Hugging Face's `transformers`, whose weights somebody trained before: read as settings and tensors alone.

No code comes with a network: its kind is one of a few, its settings are checked one by one, its weights are tensors.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from natscope.core.encoders import KINDS, known_of, settings_of
from natscope.core.errors import BuildError, FileError, out_of_memory
from natscope.core.files import from_json, read_regular, sha256_of
from natscope.core.text import few, short
from natscope.core.tokens import LARGEST_TOKENIZER, MOST_TOKENS, loaded

HUB = "hf:"  # prefix of a folder, or of a name on Hugging Face's hub, as a network
CONFIG, TENSORS, TOKENIZER = FILES = ("config.json", "model.safetensors", "tokenizer.json")
_CLASSES = {"bert": "Bert", "distilbert": "DistilBert", "electra": "Electra"}  # as the library begins their names
# What the library would do another way, which the weights do not show.
_USUAL: tuple[tuple[str, Any], ...] = (
    ("position_embedding_type", "absolute"),
    ("is_decoder", False),
    ("pruned_heads", {}),
    ("pad_token_id", 0),
)
_HEAD = ("classifier.", "pre_classifier.", "bert.pooler.")  # what a network of a folder may lack
_SPREAD = 0.02  # standard deviation of the head's initial weights
_LARGEST_CONFIG = 1_000_000  # bytes
_LISTED = 3
_PATIENCE = 10  # seconds for the hub's first answer
_MISSING = "A network of transformers needs that library, which is missing; install it with pip install transformers."


@dataclass(frozen=True)
class Start:
    """The weights that training begins with.

    Args:
        folder: where they are.
        digest: the checksum of their file.
    """

    folder: str
    digest: str

    @property
    def file(self) -> Path:
        """The file of weights."""
        return Path(self.folder) / TENSORS


@dataclass(frozen=True)
class Found:
    """A network as its folder describes it.

    Args:
        folder: where it is.
        kind: a key of `natscope.core.encoders.KINDS`.
        config: its settings.
    """

    folder: Path
    kind: str
    config: dict[str, Any]

    @property
    def tokenizer(self) -> Path:
        """The file of its tokenizer."""
        return self.folder / TOKENIZER

    @property
    def start(self) -> Start:
        """Its weights; raises BuildError if there are none of tensors alone."""
        if not (self.folder / TENSORS).is_file():
            raise BuildError(
                f"{self.folder} has no {TENSORS}; save the network there by save_pretrained, whole and in that format."
            )
        return Start(str(self.folder), sha256_of(self.folder / TENSORS))


def found(name: str) -> Found:
    """Return the network of a folder, or of Hugging Face's hub, from where it is fetched once.

    Args:
        name: the folder's path, or the name on the hub.

    Raises:
        BuildError: if the library is missing, there is no such network, or natscope cannot use it.
    """
    _library()
    folder = Path(name).absolute() if Path(name).is_dir() else _fetched(name)
    try:
        raw = from_json(read_regular(folder / CONFIG, _LARGEST_CONFIG, links=True))
        tokenizer, _ = loaded(read_regular(folder / TOKENIZER, LARGEST_TOKENIZER, links=True), MOST_TOKENS)
    except FileError as error:
        raise BuildError(f"The network {name} cannot be used: {error}") from error
    except ValueError as error:
        raise BuildError(f"The network {name} cannot be used: its {CONFIG} or {TOKENIZER} is damaged.") from error
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if kind not in KINDS:
        raise BuildError(
            f"The network {name} is of the kind {short(str(kind))}; natscope can take {', '.join(KINDS)}, and others "
            "by a function of yours, as module.path:function."
        )
    for setting, usual in _USUAL:
        if (value := raw.get(setting, usual)) != usual:
            said, taken = (short(json.dumps(each)) for each in (value, usual))
            raise BuildError(f"The network {name} has {setting} {said}; natscope can take it with {taken}.")
    values = known_of(kind, raw) | {"num_labels": 2}
    if raw.get("type_vocab_size", 2) > 1 and kind != "distilbert":
        values["separator"] = tokenizer.token_to_id("[SEP]")
    try:
        return Found(folder, kind, settings_of(kind, values))
    except msgspec.ValidationError as error:
        raise BuildError(f"The {CONFIG} of {name} holds a setting that natscope cannot take: {error}.") from error


def outline(kind: str, config: dict[str, Any]) -> nn.Module:
    """Return a network without memory for its weights."""
    with torch.device("meta"):
        return _made(kind, config)


def built(kind: str, config: dict[str, Any], start: Start | None, *, seed: int) -> nn.Module:
    """Return a network with the weights that training begins with, and a head drawn anew where they have none.

    Args:
        kind: a key of `natscope.core.encoders.KINDS`.
        config: its settings.
        start: those weights; any numbers will do when None, since others are loaded.
        seed: of the head.

    Raises:
        BuildError: if the library is missing or refuses the settings, or the weights are damaged, others than they
            were, or those of another network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _made(kind, config)
    if start is None:
        return model
    stored, own = _stored(start), model.state_dict()
    taken = {name: value for name, value in _matched(own, stored, f"{kind}.") if value.shape == own[name].shape}
    lacking = sorted(own.keys() - taken.keys())
    if wrong := [name for name in lacking if not name.startswith(_HEAD)]:
        raise BuildError(f"{start.file} is not of the network that its {CONFIG} names: it lacks {few(wrong, _LISTED)}.")
    generator = torch.Generator().manual_seed(seed)
    for name in lacking:
        drawn = torch.zeros(own[name].shape)
        taken[name] = drawn.normal_(std=_SPREAD, generator=generator) if drawn.dim() > 1 else drawn
    model.load_state_dict(taken)
    return model


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise BuildError(_MISSING) from error
    return transformers


def _fetched(name: str) -> Path:
    if ":" in name:  # a URL can hold a password, so it is not repeated
        raise BuildError(
            f"There is no folder of that name; {HUB} takes one, or a name on Hugging Face's hub, such as "
            "google-bert/bert-base-uncased."
        )
    from huggingface_hub import HfApi, logging
    from transformers.utils import cached_file

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        try:
            files = [cached_file(name, file, local_files_only=True) for file in FILES]
        except OSError:
            HfApi().model_info(name, timeout=_PATIENCE)  # fails at once where a download would try again and again
            files = [cached_file(name, file) for file in FILES]
    except Exception as error:  # whatever a network, a disk or the library does
        if out_of_memory(error):
            raise
        raise BuildError(
            f"There is no folder {name}, and no network with {', '.join(FILES)} could be fetched under that name from "
            "Hugging Face's hub; check the name and the network, or give the folder that holds it."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    return Path(str(files[0])).parent


def _made(kind: str, config: dict[str, Any]) -> nn.Module:
    """Return a network that takes natscope's tokens; its initial weights are the library's."""
    library, values = _library(), {name: value for name, value in config.items() if name != "separator"}
    segments = config["separator"] if values.get("type_vocab_size", 1) > 1 else None

    class OfTokens(getattr(library, f"{_CLASSES[kind]}ForSequenceClassification")):  # type: ignore[misc]
        """Has the library's names of parameters, so that its files of weights fit."""

        def forward(self, ids: Tensor) -> Tensor:
            """Return the logits (B, classes) of tokens (B, L), of which 0 is padding."""
            words = ids > 0
            places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)  # a row for each text
            parts = {} if segments is None else {"token_type_ids": _segments(ids, words, segments)}
            return super().forward(ids, attention_mask=words.long(), position_ids=places, **parts).logits

    try:
        settings = getattr(library, f"{_CLASSES[kind]}Config")(**values, attn_implementation="eager")
        return OfTokens(settings).float().eval()
    except ValueError as error:  # such as a width that no number of heads divides
        raise BuildError(f"The library transformers cannot make this {kind}: {str(error).rstrip('.')}.") from error


def _segments(ids: Tensor, words: Tensor, separator: int) -> Tensor:
    """Return 1 for the tokens behind the first separator, 0 for those up to it and for padding."""
    ends = (ids == separator).long()
    return ((ends.cumsum(1) - ends > 0) & words).long()


def _stored(start: Start) -> dict[str, Tensor]:
    again = "so training would begin elsewhere; put back the file that the bundle was built with, or build it again"
    if not start.file.is_file():
        raise BuildError(f"The weights that training begins with are not at {start.file} any more, {again}.")
    try:
        if sha256_of(start.file) != start.digest:
            raise BuildError(f"The weights in {start.file} were changed since the bundle was built, {again}.")
        return {name: value.float() for name, value in safetensors.torch.load_file(start.file).items()}
    except FileError as error:
        raise BuildError(str(error)) from error
    except (OSError, safetensors.SafetensorError) as error:
        if out_of_memory(error):
            raise
        raise BuildError(f"{start.file} is damaged, or no safetensors file of weights.") from error


def _matched(own: dict[str, Tensor], stored: dict[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Yield what a file has of a network's tensors: perhaps without the encoder's prefix, or under older names."""
    for name in own:
        for known in (name, name.removeprefix(prefix)):
            older = known.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            if (value := stored.get(known, stored.get(older))) is not None:
                yield name, value
                break
