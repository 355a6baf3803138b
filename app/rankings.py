"""A ranking as a table: the columns of every CSV file that holds one."""

from collections.abc import Iterator

from natscope.core.bundle.format import Bundle
from natscope.core.bundle.request import Attribution, QueryExample
from natscope.core.methods import METHODS

_ITEM = ("rank", "train_index", "source", "label", "label_name", "score", "nats_cumulative", "sign")
_ASKED = ("target_name", "method", "sigma2", "pool", "conditioning")
_QUERY = ("query", "query_source", "query_label_name", "query_predicted_name", "query_probability")
_COLUMNS = (*_ITEM, "bundle", *_QUERY, *_ASKED)


def columns(bundle: Bundle) -> tuple[str, ...]:
    """Return the titles of a bundle's tables; those of texts end with the query's text and the training text."""
    return _COLUMNS if bundle.modality.text is None else (*_COLUMNS, "query_text", "text")


def title(query: QueryExample) -> str:
    """Return the name of a query in tables and messages, such as "test:12"."""
    return "upload" if query.index is None else f"{query.origin}:{query.index}"


def rows(
    bundle: Bundle, query: QueryExample, result: Attribution, name: str | None = None
) -> Iterator[tuple[object, ...]]:
    """Yield a row of `columns` for each example of a ranking; each repeats what was asked, so that they can be joined.

    Args:
        bundle: the bundle that was asked.
        query: the example that was asked about.
        result: the answer.
        name: what the query is called; its `title` when None.
    """
    asked = result.to_dict(query, bundle.classes)
    asked["sigma2"] = asked["sigma2"] if METHODS[result.request.method].uses_sigma2 else ""
    told = asked["query"]
    own = (name or title(query), query.source, told["label_name"] or "", told["predicted_name"], told["probability"])
    settings = (bundle.manifest.name, *own, *(asked[name] for name in _ASKED))
    for i in result.items:
        nats = "" if i.nats is None else i.nats
        item = (i.rank, i.train_index, i.source, i.label, bundle.classes[i.label], i.score, nats, i.sign)
        yield (*item, *settings, *([] if bundle.modality.text is None else [told.get("text", ""), i.text]))
