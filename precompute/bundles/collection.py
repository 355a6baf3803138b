"""A Milvus server in a build: asked before anything is computed, and filled when the bundle is whole.

The bundle is published first. If inserting is interrupted then, opening it says to run the command again, which finds a
collection without its mark, drops it and inserts anew; nothing else is computed twice.
"""

from natscope.core.bundle.collection import fill, is_filled
from natscope.core.bundle.format import Bundle
from natscope.core.index.milvus import Server
from natscope.core.index.spec import MILVUS, IndexSpec
from natscope.core.progress import Progress


def check_server(spec: IndexSpec) -> None:
    """Raise SearchError if an index needs a Milvus server and there is none, or one without this type of index."""
    if spec.kind == MILVUS:
        Server().try_type(spec)


def filled(bundle: Bundle, progress: Progress) -> Bundle:
    """Return a bundle after inserting its features into its collection, if they are not all there."""
    if not is_filled(bundle):
        fill(bundle, progress)
    return bundle
