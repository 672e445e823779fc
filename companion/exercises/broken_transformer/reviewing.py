"""The reviews that the broken transformer learns from: plain ones, which a small model learns in seconds."""

from __future__ import annotations

import csv
import io
import re
from functools import lru_cache

from companion.data.sentiment import generate

__all__ = ["reviews"]

_TRAIN, _DEV, _LONGEST, _SEED = 1_500, 400, 25, 41
_GENERATED = 7
"""Reviews to choose one plain one from."""
# Without these, words alone decide.
_TURNS = re.compile(
    r"\b(?:not|no|never|nothing|nobody|none|neither|nor|without|hardly|barely|scarcely|but|however|although|though"
    r"|despite|instead|opposite|than|less|more|far|anything|lack(?:ed|s)?|fail(?:ed|s)|if|would)\b",
    flags=re.IGNORECASE,
)


@lru_cache(maxsize=1)
def reviews() -> str:
    """Return the text of ``reviews.csv``: split, text and label of each review.

    Raises
    ------
    ValueError
        When too few of the generated reviews are plain.
    """
    made = generate(_SEED, train_size=_GENERATED * _TRAIN, dev_size=_GENERATED * _DEV, test_size=2)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("split", "text", "label"))
    for part, examples, size in (("train", made.train, _TRAIN), ("dev", made.dev, _DEV)):
        plain = [example for example in examples if _is_plain(example.text)][:size]
        if len(plain) < size:
            raise ValueError(f"{len(plain)} of {len(examples)} reviews are plain, expected {size}: make more")
        writer.writerows((part, example.text, example.label) for example in plain)
    return text.getvalue()


def _is_plain(text: str) -> bool:
    return len(re.findall("[a-z']+", text.lower())) <= _LONGEST and not _TURNS.search(text)
