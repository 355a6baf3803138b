"""Tokenizers: one of whole words, made of the training texts, or one that a user brings."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from natscope.core.errors import DataError, FileError
from natscope.core.files import read_regular
from natscope.core.tokens import LARGEST_TOKENIZER, SEPARATOR, loaded

SPECIAL = ("[PAD]", "[UNK]", "[SEP]")  # numbers 0, 1 and 2
_LEAST = 2  # times that a word is there; rarer ones stand for the words that are unknown later


def trained(texts: Iterable[str], *, vocabulary: int) -> bytes:
    """Return a tokenizer.json of the most frequent words in lower case, each sign of punctuation one of them.

    Whole words, since a share of a prediction is read word by word. The same texts give the same bytes.

    Args:
        texts: of the training set, `cleaned`, their parts joined by `SEPARATOR`.
        vocabulary: tokens at most, the special ones included.

    Raises:
        DataError: if there is no room for words.
    """
    if vocabulary <= len(SPECIAL):
        raise DataError(f"A vocabulary needs more than {len(SPECIAL)} tokens, not {vocabulary}.")
    lower = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=True)
    split = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        for part in text.split(SEPARATOR):
            counts.update(word for word, _ in split.pre_tokenize_str(lower.normalize_str(part)))
    frequent = sorted((word for word, count in counts.items() if count >= _LEAST), key=lambda w: (-counts[w], w))
    words = [*SPECIAL, *frequent[: vocabulary - len(SPECIAL)]]
    found = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=SPECIAL[1]))
    found.normalizer, found.pre_tokenizer = lower, split
    found.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A [SEP] $B", special_tokens=[(SPECIAL[2], 2)]
    )
    found.add_special_tokens(list(SPECIAL))
    return found.to_str().encode()


def brought(path: Path, longest: int) -> bytes:
    """Return a user's tokenizer.json, which belongs to weights that were trained elsewhere.

    Args:
        path: the file.
        longest: tokens that a text is cut to.

    Raises:
        DataError: if it is missing or cannot be used.
    """
    try:
        content = read_regular(path, LARGEST_TOKENIZER, links=True)
        loaded(content, longest)
    except FileError as error:
        raise DataError(str(error)) from error
    except ValueError as error:
        raise DataError(f"{path} {error}.") from error
    return content
