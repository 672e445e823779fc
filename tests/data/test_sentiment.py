"""The generated task: balance, uniqueness, lengths, held-out words, planted defects, and that it is hard."""

from __future__ import annotations

import re
import statistics
from collections import Counter

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from companion.data import Example, TaskData, load, sentiment
from companion.data.grammar import word_count
from companion.data.lexicon import HELD_OUT, SEEN
from companion.data.scenes import SCENES


@pytest.fixture(scope="module")
def data() -> TaskData:
    return load("sentiment")


def words(examples: tuple[Example, ...]) -> Counter[str]:
    return Counter(word for e in examples for word in re.findall(r"[a-zé]+(?:-[a-z]+)*", e.text.lower()))


def test_sizes_and_balance(data: TaskData) -> None:
    for split, size in ((data.train, 8_000), (data.dev, 1_000), (data.test, 1_000)):
        assert Counter(example.label for example in split) == {0: size // 2, 1: size // 2}
        assert all(example.pair is None for example in split)


def test_no_text_twice_in_or_across_splits(data: TaskData) -> None:
    texts = [example.text.lower() for example in (*data.train, *data.dev, *data.test)]
    assert len(set(texts)) == len(texts)


def test_lengths_are_4_to_120_words_and_skewed_to_the_right(data: TaskData) -> None:
    lengths = [word_count(example.text) for example in (*data.train, *data.dev, *data.test)]
    assert min(lengths) == 4
    assert 100 < max(lengths) <= 120
    assert 18 <= statistics.median(lengths) <= 25
    assert statistics.mean(lengths) > statistics.median(lengths)


def test_length_says_nothing_about_the_label(data: TaskData) -> None:
    means = [statistics.mean(word_count(e.text) for e in data.train if e.label == label) for label in (0, 1)]
    assert abs(means[0] - means[1]) < 1.0


def test_lexicons_share_no_word_family() -> None:
    """No word of one lexicon starts like a word of the other."""
    seen = {word[:5] for word in SEEN.words()}
    held_out = {word[:5] for word in HELD_OUT.words()}
    assert not seen & held_out


def test_no_word_has_both_polarities() -> None:
    for lexicon in (SEEN, HELD_OUT):
        assert not lexicon.negative.words() & lexicon.positive.words()


def test_test_split_uses_held_out_words_only(data: TaskData) -> None:
    test, train = words(data.test), words(data.train + data.dev)
    assert not [word for word in SEEN.words() if word in test]
    assert not [word for word in HELD_OUT.words() if word in train]
    assert all(word in test for word in HELD_OUT.words())
    assert all(word in train for word in SEEN.words())


def test_some_nouns_are_held_out(data: TaskData) -> None:
    test, train = words(data.test), words(data.train + data.dev)
    held_out = [noun for scene in SCENES for noun in scene.things_unseen if " " not in noun]
    assert all(noun in test and noun not in train for noun in held_out)


def test_the_named_task_is_always_the_same_data(data: TaskData) -> None:
    part = load("sentiment", seed=3, max_examples=100)
    assert set(part.train) < set(data.train)
    assert (part.dev, part.test) == (data.dev, data.test)


def test_same_seed_same_data_and_other_seed_other_data() -> None:
    sizes = {"train_size": 60, "dev_size": 20, "test_size": 20}
    assert sentiment.generate(3, **sizes) == sentiment.generate(3, **sizes)
    assert sentiment.generate(3, **sizes).train != sentiment.generate(4, **sizes).train


def test_dev_and_test_do_not_depend_on_the_size_of_train() -> None:
    small = sentiment.generate(1, train_size=10, dev_size=50, test_size=50)
    large = sentiment.generate(1, train_size=500, dev_size=50, test_size=50)
    assert (small.dev, small.test) == (large.dev, large.test)


def test_text_reads_as_english(data: TaskData) -> None:
    """Surface checks: no slot left, capitals, full stops, articles, spaces, agreement."""
    plurals = {
        aspect[:-1]
        for scene in SCENES
        for aspect in scene.aspects + scene.aspects_unseen
        if aspect[-1] == "+"
    }
    for example in (*data.train, *data.dev, *data.test):
        text = example.text
        assert not re.search(r"[{}+%]|  | [.,;:!?]|[.,]{2}", text), text
        assert text[0].isupper() and text[-1] in ".!?", text
        assert not re.search(r"[.!?] [a-z]", text), text
        assert not re.search(r"\b[Aa] [aeio]|\b[Aa]n [^aeiouAEIOU]", text), text
        assert not re.search(rf"\bthe ({'|'.join(plurals)}) (is|was)\b", text), text


def test_label_noise_flips_the_stated_share() -> None:
    sizes = {"train_size": 400, "dev_size": 20, "test_size": 20}
    clean, noisy = sentiment.generate(0, **sizes), sentiment.generate(0, **sizes, label_noise=0.1)
    changed = [i for i, (a, b) in enumerate(zip(clean.train, noisy.train, strict=True)) if a.label != b.label]
    assert len(changed) == 40
    assert [e.text for e in clean.train] == [e.text for e in noisy.train]
    assert (clean.dev, clean.test) == (noisy.dev, noisy.test)
    assert sentiment.damage(clean, label_noise=0.1).flipped == tuple(changed)


def test_duplicates_and_leakage_are_where_the_key_says() -> None:
    clean = sentiment.generate(0, train_size=400, dev_size=20, test_size=50)
    found = sentiment.damage(clean, 7, label_noise=0.05, duplicates=0.2, leakage=0.5)
    counts = Counter(example.text for example in found.data.train)
    assert sum(counts.values()) - len(counts) == 80 == len(found.duplicated)
    assert all(counts[found.data.train[i].text] > 1 for i in found.duplicated)
    test = set(clean.test)
    assert [i for i, e in enumerate(found.data.train) if e in test] == list(found.leaked)
    assert len(found.leaked) == 25
    touched = {*found.flipped, *found.duplicated, *found.leaked}
    assert len(touched) == 20 + 80 + 25
    assert all(found.data.train[i] == clean.train[i] for i in range(400) if i not in touched)
    assert not sentiment.damage(clean).flipped


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("name", ["label_noise", "duplicates", "leakage"])
def test_shares_out_of_range_are_refused(name: str, share: float) -> None:
    data = sentiment.generate(train_size=4, dev_size=0, test_size=2)
    with pytest.raises(ValueError, match=f"{name}.*from 0 to 1"):
        sentiment.damage(data, **{name: share})


def test_more_damage_than_train_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="ask for smaller shares"):
        sentiment.generate(train_size=10, dev_size=0, test_size=20, leakage=1.0)
    with pytest.raises(ValueError, match="train_size is -1"):
        sentiment.generate(train_size=-1)


@pytest.mark.parametrize("ngrams", [(1, 1), (1, 2)])
def test_word_counts_do_not_solve_it(data: TaskData, ngrams: tuple[int, int]) -> None:
    """The best a bag of words can do stays 15 points below the least that an encoder should reach (0.85)."""
    model = make_pipeline(
        TfidfVectorizer(ngram_range=ngrams, min_df=2), LogisticRegression(C=3.0, max_iter=500)
    )
    model.fit([e.text for e in data.train], [e.label for e in data.train])
    assert model.score([e.text for e in data.test], [e.label for e in data.test]) < 0.70
