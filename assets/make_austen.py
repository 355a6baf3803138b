"""Make `assets/austen`, passages of Jane Austen's six novels: `python -m natscope.assets.make_austen FOLDER`.

FOLDER holds the novels as plain text (emma.txt and so on), each chapter under a line "Chapter" and its number. Chapters
are counted through all volumes and cut into passages of about 60 words that end where a sentence does, if one ends near
enough. Every fifth chapter of each novel is for testing, so that no test passage has a neighbour in training.
"""

import argparse
import gzip
import itertools
import json
import re
from pathlib import Path

from natscope import assets

NOVELS = {
    "emma": "Emma",
    "mansfieldpark": "Mansfield Park",
    "northangerabbey": "Northanger Abbey",
    "persuasion": "Persuasion",
    "prideprejudice": "Pride and Prejudice",
    "sensesensibility": "Sense and Sensibility",
}
_WORDS = 60  # of a passage
_NEAR = 20  # words by which a passage may be longer or shorter to end with a sentence
_HELD_OUT = 5  # one chapter in so many is for testing
_CHAPTER = re.compile(r"^ *chapter +(?:\d+|[ivxl]+)\.?$", re.IGNORECASE | re.MULTILINE)
_END = re.compile(r"^ *(?:finis|the end|\*vide .*|a note on the text)$", re.IGNORECASE | re.MULTILINE)
# Words of later printers, and the titles of volumes.
_NOT_HERS = re.compile(r"\[(?:End volume|At this point)[^]]*\]|^ *volume [ivx]+ *$", re.IGNORECASE | re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?:--)?\Z")
_ABBREVIATIONS = {"Mr.", "Mrs.", "Dr.", "St.", "Col.", "No.", "Vol."}


def make(source: Path, out: Path) -> None:
    """Write train.jsonl.gz and test.jsonl.gz.

    Args:
        source: the folder of the novels.
        out: the folder to write to; made if missing.
    """
    splits: dict[str, list[str]] = {"train": [], "test": []}
    for file, novel in NOVELS.items():
        for number, chapter in enumerate(chapters((source / f"{file}.txt").read_text(encoding="utf-8")), 1):
            lines = splits["train" if number % _HELD_OUT else "test"]
            for text in passages(chapter):
                lines.append(json.dumps({"text": text, "novel": novel, "chapter": number}, ensure_ascii=False) + "\n")
    out.mkdir(parents=True, exist_ok=True)
    for name, lines in splits.items():
        with (out / f"{name}.jsonl.gz").open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as compressed:
            compressed.write("".join(lines).encode())


def chapters(novel: str) -> list[str]:
    """Return the text of each chapter, without what stands before the first and after the last."""
    _, *found = _CHAPTER.split(_NOT_HERS.sub("", novel))
    return [_END.split(chapter)[0] for chapter in found]


def passages(chapter: str) -> list[str]:
    """Return a chapter as passages of about the same length, marks of emphasis and of notes left out."""
    words = re.sub(r"[_*]", "", chapter).split()
    ends = [n for n, word in enumerate(words, 1) if _SENTENCE_END.search(word) and word not in _ABBREVIATIONS]
    count = max(1, round(len(words) / _WORDS))
    cuts = [0]
    for wanted in (round(len(words) * number / count) for number in range(1, count)):
        nearest = min(ends, key=lambda end: abs(end - wanted), default=wanted)
        cuts.append(nearest if abs(nearest - wanted) <= _NEAR else wanted)
    return [" ".join(words[a:b]) for a, b in itertools.pairwise([*cuts, len(words)])]


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description="Make the passages of Jane Austen's novels that natscope ships.")
    parser.add_argument("source", type=Path, help="folder of the novels as plain text")
    parser.add_argument("--out", type=Path, default=assets.path("austen"), help="folder to write to")
    arguments = parser.parse_args()
    make(arguments.source, arguments.out)


if __name__ == "__main__":
    main()
