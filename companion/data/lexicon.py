"""Opinion words of the generated `sentiment` task.

Two lexicons with no word in common, not even a word of the same family: `SEEN` writes the train and
dev splits, `HELD_OUT` writes the test split. A model that counts words has never met the test split's
opinions; a pre-trained encoder has.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["HELD_OUT", "SEEN", "Lexicon", "Opinions"]


@dataclass(frozen=True)
class Opinions:
    """Words of one polarity, by the place they take in a sentence.

    Attributes
    ----------
    adjectives : tuple of str
        Strong or plain judgements that fit any noun ("excellent").
    mild : tuple of str
        Adjectives that take a diminisher ("fairly pleasant").
    nouns : tuple of str
        Countable nouns that name the whole ("a triumph").
    verbs : tuple of (str, str)
        What the thing does to the writer: base form and past ("impress", "impressed").
    attitudes : tuple of (str, str)
        What the writer feels: base form and past ("admire", "admired").
    """

    adjectives: tuple[str, ...]
    mild: tuple[str, ...]
    nouns: tuple[str, ...]
    verbs: tuple[tuple[str, str], ...]
    attitudes: tuple[tuple[str, str], ...]

    def words(self) -> frozenset[str]:
        """Return every form of every word, in lower case."""
        forms: set[str] = set()
        for field in fields(self):
            for entry in getattr(self, field.name):
                forms.update([entry] if isinstance(entry, str) else entry)
        return frozenset(forms)


@dataclass(frozen=True)
class Lexicon:
    """The opinion words of both polarities, indexed by label: 0 negative, 1 positive."""

    negative: Opinions
    positive: Opinions

    def __getitem__(self, label: int) -> Opinions:
        """Return the words of one polarity."""
        return self.positive if label else self.negative

    def words(self) -> frozenset[str]:
        """Return every form of every word of both polarities, in lower case."""
        return self.negative.words() | self.positive.words()


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Split "impress/impressed ..." into base forms and past forms."""
    return tuple((base, past) for base, past in (entry.split("/") for entry in text.split()))


SEEN = Lexicon(
    negative=Opinions(
        adjectives=_words(
            "bad awful terrible horrible poor disappointing dreadful mediocre annoying unpleasant "
            "frustrating lousy disgraceful second-rate weak miserable hopeless dull disastrous "
            "forgettable shoddy substandard inadequate unsatisfactory"
        ),
        mild=_words("bad poor disappointing annoying unpleasant frustrating dull weak"),
        nouns=_words("disappointment mess letdown failure disaster nuisance waste joke pain"),
        verbs=_pairs(
            "disappoint/disappointed annoy/annoyed frustrate/frustrated irritate/irritated upset/upset "
            "bother/bothered depress/depressed"
        ),
        attitudes=_pairs("hate/hated dislike/disliked resent/resented"),
    ),
    positive=Opinions(
        adjectives=_words(
            "good great excellent wonderful lovely fantastic brilliant delightful impressive "
            "superb enjoyable pleasing outstanding terrific perfect amazing remarkable satisfying "
            "first-rate top-notch admirable splendid charming fine"
        ),
        mild=_words("good enjoyable pleasing impressive satisfying charming likeable welcome"),
        nouns=_words("delight triumph treat gem pleasure joy success highlight hit"),
        verbs=_pairs(
            "impress/impressed delight/delighted please/pleased charm/charmed satisfy/satisfied "
            "fascinate/fascinated"
        ),
        attitudes=_pairs("love/loved like/liked enjoy/enjoyed admire/admired"),
    ),
)
"""Opinion words of train and dev."""

HELD_OUT = Lexicon(
    negative=Opinions(
        adjectives=_words(
            "atrocious abysmal appalling pathetic lacklustre ghastly abominable dismal "
            "underwhelming third-rate woeful lamentable deplorable subpar rotten unbearable "
            "hideous dire inexcusable wretched unacceptable pitiful tiresome nasty"
        ),
        mild=_words("underwhelming tiresome subpar tedious dreary"),
        nouns=_words("fiasco catastrophe flop nightmare dud ordeal shambles embarrassment"),
        verbs=_pairs(
            "infuriate/infuriated exasperate/exasperated dismay/dismayed disgust/disgusted offend/offended"
        ),
        attitudes=_pairs("loathe/loathed detest/detested despise/despised"),
    ),
    positive=Opinions(
        adjectives=_words(
            "magnificent exceptional stunning fabulous phenomenal flawless stellar exquisite "
            "sublime awesome world-class glorious marvellous tremendous beautiful inspiring "
            "sensational incredible heavenly divine extraordinary spectacular enchanting nice"
        ),
        mild=_words("nice agreeable appealing decent respectable engaging"),
        nouns=_words("masterpiece marvel blessing revelation winner knockout treasure godsend"),
        verbs=_pairs("thrill/thrilled enchant/enchanted captivate/captivated inspire/inspired"),
        attitudes=_pairs("adore/adored appreciate/appreciated relish/relished"),
    ),
)
"""Opinion words of the test split."""
