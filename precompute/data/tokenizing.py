"""Tokenizers: one of whole words, made of the training texts, one that a user brings, or one of plain numbers."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from natscope.core.bundle.request import quoted
from natscope.core.errors import DataError, FileError
from natscope.core.files import read_regular
from natscope.core.tokens import FEWEST_TOKENS, LARGEST_TOKENIZER, MOST_TOKENS, SEPARATOR, loaded

SPECIAL = ("[PAD]", "[UNK]", "[SEP]")  # numbers 0, 1 and 2
Given = Tokenizer | str | Path  # a tokenizer, or the path of its tokenizer.json
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


def content_of(tokenizer: Any, longest: int) -> bytes:
    """Return the tokenizer.json of what a user gives from Python, once it is known to be usable.

    Args:
        tokenizer: one of `tokenizers` or `transformers`, or the path of a tokenizer.json.
        longest: tokens that a text is cut to.

    Raises:
        DataError: if it is none of these, or either cannot be used.
    """
    if isinstance(longest, bool) or not isinstance(longest, int) or not FEWEST_TOKENS <= longest <= MOST_TOKENS:
        raise DataError(
            f"longest= takes a whole number from {FEWEST_TOKENS} to {MOST_TOKENS:,}, not {quoted(longest)}."
        )
    if isinstance(tokenizer, str | Path):
        return brought(Path(tokenizer), longest)
    tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)  # of `transformers`
    if not isinstance(tokenizer, Tokenizer):
        raise DataError(
            f"tokenizer= takes the path of a tokenizer.json or a tokenizers.Tokenizer, not {quoted(tokenizer)}."
        )
    content = tokenizer.to_str().encode()
    try:
        loaded(content, longest)
    except ValueError as error:
        raise DataError(f"The tokenizer {error}.") from error
    return content


def numbered(texts: Iterable[str]) -> Tokenizer:
    """Return a tokenizer of texts whose words are the numbers of tokens, for those that there are.

    Args:
        texts: numbers above 0, with a space between them.
    """
    known = {word: int(word) for text in texts for word in text.split()}
    found = Tokenizer(models.WordLevel({SPECIAL[0]: 0} | known))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return found
