"""What several checks ask of one subject is worked out once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from companion.debugging.subject import Subject, once
from companion.debugging.zoo.subjects import reference_subject


def test_once_for_each_subject_and_each_question():
    asked = []

    @once
    def width(subject: Subject, factor: int = 1) -> int:
        asked.append(factor)
        return factor * subject.vocab_size

    one, other = reference_subject("classification"), reference_subject("classification")
    assert width(one) == width(one) == one.vocab_size
    assert width(one, 2) == width(one, 2) == 2 * one.vocab_size
    assert width(one, factor=2) == 2 * one.vocab_size
    assert asked == [1, 2, 2]
    assert width(other) == other.vocab_size
    assert width(replace(one, vocab_size=7)) == 7, "a changed copy has nothing of the first's memory"
    assert asked == [1, 2, 2, 1, 1]


def test_an_error_is_not_remembered():
    asked = []

    @once
    def fails_first(subject: Subject) -> str:
        asked.append(subject)
        if len(asked) == 1:
            raise ValueError("not yet")
        return "now"

    subject = reference_subject("classification")
    with pytest.raises(ValueError, match="not yet"):
        fails_first(subject)
    assert fails_first(subject) == fails_first(subject) == "now"
    assert len(asked) == 2
