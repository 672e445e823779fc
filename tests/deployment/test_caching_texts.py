"""Texts that are turned, and texts that are only said otherwise."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.data import load
from companion.deployment.caching import OPPOSITE_KINDS, VARIANT_KINDS, opposites, variants


def turned(text: str, kind: str, seeds: int = 40) -> set[str]:
    """Return all that the seeds find."""
    return {found.text for seed in range(seeds) for found in opposites(text, seed=seed, kinds=[kind])}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is good.", {"It is not good."}),
        ("It is not good.", {"It is good."}),
        ("It isn't good.", {"It is good."}),
        ("I CAN'T say.", {"I CAN say."}),
        ("They won't come.", {"They will come."}),
        ("He cannot sing.", {"He can sing."}),
        ("We never left.", {"We left."}),
        ("I loved the songs.", {"I never loved the songs."}),
        (
            "She was, and would be.",
            {"She was not, and would be.", "She was, and would not be.", "She was, and would be not."},
        ),
        ("An isolated island.", set()),
        ("The pint didn’t last.", {"The pint did last."}),
    ],
)
def test_a_negation_comes_or_goes(text, expected):
    assert turned(text, "negation") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A good film", {"A bad film"}),
        ("GOOD value", {"BAD value"}),
        ("An awful, long evening", {"An excellent, long evening", "An awful, short evening"}),
        ("a terrible mess", {"a great mess"}),
        ("an excellent idea", {"an awful idea"}),
        ("a happy end", {"a sad end", "a happy start"}),
        ("Shares rose before noon", {"Shares fell before noon", "Shares rose after noon"}),
        ("goodness knows", set()),
    ],
)
def test_a_word_becomes_its_antonym(text, expected):
    assert turned(text, "antonym") == expected


def test_articles_follow_the_new_word():
    assert turned("a legal claim", "antonym") == {"an illegal claim"}
    assert turned("An impossible task", "antonym") == {"A possible task"}


def test_a_number_becomes_another_one():
    found = turned("It cost 250 dollars", "number", 200)
    assert "It cost 251 dollars" in found
    assert all(text.startswith("It cost ") and len(text) == len("It cost 250 dollars") for text in found)
    assert not any(text.startswith("It cost 0") for text in found)
    assert "Two of ten" in {text.replace("Nine", "Two") for text in turned("One of ten", "number", 200)}
    assert turned("twice a day", "number") <= {"once a day", "half a day"}
    assert turned("no number here", "number") == set()


def test_two_names_change_places():
    assert turned("In May, John Smith sued Mary.", "names") == {
        "In May, Mary sued John Smith.",
        "In Mary, John Smith sued May.",
        "In John Smith, May sued Mary.",
    }
    assert turned("Yesterday Rome beat Oslo, and Rome drank.", "names") == {
        "Yesterday Oslo beat Rome, and Oslo drank."
    }
    assert turned("Only Rome is named. The rest begins.", "names") == set()


@given(st.text(st.characters(exclude_categories=())), st.integers(0, 5))
@settings(deadline=None)
def test_any_text_is_turned_the_same_way_twice_or_left_alone(text, seed):
    found = opposites(text, seed=seed)
    assert found == opposites(text, seed=seed)
    assert all(each.text != text and each.kind in OPPOSITE_KINDS for each in found)
    assert len({each.kind for each in found}) == len(found)
    assert all(each.text != text for each in variants(text, seed=seed))
    assert variants(text, seed=seed) == variants(text, seed=seed)


def test_most_reviews_can_be_turned():
    texts = [example.text for example in load("sentiment").dev[:300]]
    kinds = [{found.kind for found in opposites(text)} for text in texts]
    assert sum("negation" in found for found in kinds) > 0.9 * len(texts)
    assert sum("antonym" in found for found in kinds) > 0.6 * len(texts)


def test_an_edit_tells_what_it_did():
    [found] = opposites("It is good.", kinds=["negation"])
    assert (found.kind, found.edit) == ("negation", "is -> is not")
    [found] = opposites("So Rome beat Oslo.", kinds=["names"])
    assert found.edit == "Oslo <-> Rome"


def test_variants_keep_the_words():
    found = {each.kind: each.text for each in variants("The actors were not dreadful.")}
    assert set(found) == set(VARIANT_KINDS)
    assert found["case"] == "the actors were not dreadful."
    assert found["punctuation"] == "The actors were not dreadful"
    assert found["filler"].endswith(", the actors were not dreadful.")
    assert found["contraction"] == "The actors weren't dreadful."
    assert sorted(found["typo"]) == sorted("The actors were not dreadful.")
    assert found["space"] == "The  actors were not dreadful."


def test_variants_of_other_shapes():
    def of(text: str, kind: str) -> list[str]:
        return [found.text for found in variants(text, kinds=[kind])]

    assert of("it's fine", "contraction") == ["it is fine"]
    assert of("cannot be", "contraction") == ["can't be"]
    assert of("plain words", "contraction") == []
    assert of("short", "typo") == []
    assert of("all small", "case") == ["All small"]
    assert of("no stop", "punctuation")[0] in ("no stop!", "no stop...")
    assert of("I like it", "filler")[0].endswith(", I like it")
    assert of("NASA flew", "filler")[0].endswith(", NASA flew")
    assert of("word", "space") == ["word "]


@pytest.mark.parametrize("make", [opposites, variants])
def test_an_unknown_kind_is_refused(make):
    with pytest.raises(ValueError, match="unknown kind 'irony', expected some of"):
        make("text", kinds=["irony"])
