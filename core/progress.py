"""What long work reports while it runs."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # called with a stage's name, steps done and steps in all


def silent(stage: str, done: int, total: int) -> None:
    """Report to nobody."""
