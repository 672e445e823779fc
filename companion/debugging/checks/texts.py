"""What becomes of the texts on their way to the model: empty, cut or unknown tokens, numbers out of range."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain, islice

from companion.data import Example
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.checks.samples import sampled
from companion.debugging.finding import Finding
from companion.debugging.near_duplicates import normalised
from companion.debugging.subject import Subject

__all__ = ["empty_texts", "token_ids", "truncation", "unknown_tokens", "vocabulary_collapse"]

ROWS = 1_000
_NONSENSE = ("zqxjv", "wvkrtpl", "qqxzjh", "jxqvzk")
_RARE = ("\U00012000", "\U00013000", "\U00010330")
"""Cuneiform, hieroglyphs, Gothic: for tokenizers that take a strange word apart into letters."""
_WORD = re.compile(r"\S+")

Encode = Callable[[str], list[int]]


def texts_of(rows: Iterable[Example]) -> list[str]:
    """Return all texts of some rows, both of a pair."""
    return [text for row in rows for text in (row.text, row.pair) if text is not None]


def sample(subject: Subject, split: str = "train") -> list[str]:
    """Return up to `ROWS` texts of a split, each once, empty ones left out."""
    texts = dict.fromkeys(text for text in texts_of(subject.splits.get(split, ())) if text.strip())
    return sampled(list(texts), ROWS)


def encoder(subject: Subject) -> Encode:
    """Return how a subject encodes, as a list of integers."""
    encode = subject.encode
    if encode is None:
        raise NotApplicable("it needs encode")
    return lambda text: [int(token) for token in encode(text)]


def all_texts(subject: Subject) -> list[str]:
    """Return up to `ROWS` texts of all splits."""
    texts = dict.fromkeys(chain.from_iterable(sample(subject, split) for split in subject.splits))
    if len(texts) < 8:
        raise NotApplicable(f"there are {len(texts)} texts, expected at least 8")
    return sampled(list(texts), ROWS)


@check(family="data", component="tokenization", needs=("splits",), likelihood=0.5)
def empty_texts(subject: Subject) -> Finding:
    """Has every row a text?"""
    rows = [(name, i, text) for name, part in subject.splits.items() for i, row in enumerate(part)
            for text in texts_of([row])]  # fmt: skip
    empty = [row for row in rows if not row[2].strip() or row[2].strip().lower() in {"nan", "none", "null"}]
    share = len(empty) / max(len(rows), 1)
    evidence = {"texts": float(len(rows)), "empty": float(len(empty))}
    if len(empty) >= 2 and share >= 0.002:
        return empty_texts.problem(
            f"{len(empty)} of {len(rows)} texts are empty, or are the word for a missing value",
            evidence,
            where=f"{empty[0][0]}, row {empty[0][1]}",
            why="The model learns the label from nothing, and a text without a token can give NaN.",
            fix="Look at how the file is read: another column, or missing values turned into 'nan'.",
        )
    return empty_texts.ok(f"{len(empty)} of {len(rows)} texts are empty", evidence)


@check(family="data", component="tokenization", needs=("splits", "encode"), likelihood=0.9)
def token_ids(subject: Subject) -> Finding:
    """Do all token ids have a row in the model's table, and come out the same each time?"""
    encode, texts = encoder(subject), all_texts(subject)
    encoded = [encode(text) for text in texts]
    ids = Counter(chain.from_iterable(encoded))
    if not ids:
        return token_ids.problem(
            f"{len(texts)} texts give no token at all",
            {"examples": float(len(texts))},
            why="The model sees nothing.",
            fix="Call the tokenizer by hand on one text.",
        )
    outside = sum(count for token, count in ids.items() if not 0 <= token < subject.vocab_size)
    changed = [text for text, once in zip(texts[:50], encoded, strict=False) if encode(text) != once]
    padded = [ids for ids in encoded if subject.pad_token_id in ids[1:-1]]
    evidence = {
        "smallest id": float(min(ids)),
        "largest id": float(max(ids)),
        "rows of the table": float(subject.vocab_size),
        "tokens outside": float(outside),
        "examples": float(len(texts)),
    }
    if outside:
        return token_ids.problem(
            f"{outside} tokens have ids from {min(ids)} to {max(ids)}, and the model's table has rows 0 to "
            f"{subject.vocab_size - 1}",
            evidence,
            where="encode",
            why="This is another tokenizer than the model's: an index error at best, foreign words at worst.",
            fix="Load tokenizer and model from one folder; after adding tokens call resize_token_embeddings.",
        )
    if len(padded) > 0.01 * len(texts):
        return token_ids.problem(
            f"{len(padded)} of {len(texts)} texts have the padding token {subject.pad_token_id} "
            "among their words",
            {**evidence, "with padding inside": float(len(padded))},
            where="encode",
            why="A word shares its number with padding: what leaves padding out leaves that word out.",
            fix="Keep the numbers of special tokens free: begin those of words behind them.",
            likelihood=0.8,
        )
    if changed:
        return token_ids.problem(
            f"{len(changed)} of {min(50, len(texts))} texts encode differently the second time",
            {**evidence, "changed": float(len(changed))},
            where=f"encode, for example {changed[0][:60]!r}",
            why="The same text gets another answer each time, and nothing can be cached or compared.",
            fix="Keep no state in the tokenizer: no growing vocabulary, no sampling outside training.",
            likelihood=0.7,
        )
    return token_ids.ok(f"ids from {min(ids)} to {max(ids)} for {subject.vocab_size} rows", evidence)


@check(family="data", component="tokenization", needs=("splits", "encode"), likelihood=0.4)
def truncation(subject: Subject) -> Finding:
    """Is much of the text cut off?"""
    encode, texts = encoder(subject), sample(subject)
    if len(texts) < 8:
        raise NotApplicable(f"train has {len(texts)} texts, expected at least 8")
    lost = [_share_lost(encode, text, subject.max_length) for text in texts]
    cut = [text for text, share in zip(texts, lost, strict=True) if share > 0]
    lengths = [len(encode(text)) for text in texts]
    over = [length for length in lengths if length > subject.max_length]
    rate, loss = len(cut) / len(texts), sum(lost) / len(texts)
    evidence = {
        "share of texts cut": rate,
        "share of words lost": loss,
        "longest, in tokens": float(max(lengths)),
        "share longer than the model takes": len(over) / len(texts),
        "examples": float(len(texts)),
    }
    if over and not _cut_later(subject, max(over)):
        return truncation.problem(
            f"{len(over)} of {len(texts)} texts are longer than the {subject.max_length} tokens the model "
            f"takes, up to {max(over)}",
            evidence,
            where="encode",
            why="There is no position for the tokens beyond: an error, or a position that was never trained.",
            fix=f"Cut at {subject.max_length} tokens, special ones included.",
            likelihood=0.6,
        )
    if rate >= 0.2 and loss >= 0.05:
        return truncation.problem(
            f"{rate:.0%} of the texts are cut, and {loss:.0%} of all words never reach the model",
            evidence,
            where=f"encode, for example {cut[0][:60]!r}",
            why="A review often says at its end what it thinks; what is cut cannot be learnt.",
            fix="Raise max_length, or keep head and tail of long texts.",
        )
    return truncation.ok(f"{rate:.0%} of the texts are cut, {loss:.1%} of the words are lost", evidence)


def _share_lost(encode: Encode, text: str, max_length: int) -> float:
    """Return which share of a text's words can be taken off its end without changing a token.

    Looked for by halving: the shortest head that encodes like the whole.
    """
    whole = encode(text)
    if len(whole) > max_length:
        return 1 - max_length / len(whole)
    ends = [match.end() for match in _WORD.finditer(text)]
    if len(ends) < 2 or encode(text[: ends[-2]]) != whole:
        return 0.0
    low, high = 0, len(ends) - 2
    while low < high:
        middle = (low + high) // 2
        if encode(text[: ends[middle]]) == whole:
            high = middle
        else:
            low = middle + 1
    return 1 - (high + 1) / len(ends)


def _cut_later(subject: Subject, length: int) -> bool:
    """Whether what is too long is cut where batches are made."""
    if subject.collate is not None:
        token = 1 if subject.pad_token_id != 1 else 2
        return bool(subject.collate([([token] * length, 0)])["input_ids"].size(1) <= subject.max_length)
    widths = [batch["input_ids"].size(1) for batch in islice(iter(subject.batches), 64)]
    return bool(widths) and max(widths) <= subject.max_length


def unknown_id(subject: Subject) -> int | None:
    """Return the id of what is not in the vocabulary, or None where all comes apart in known pieces."""
    encode = encoder(subject)
    try:
        special = set(encode(""))
    except Exception:  # some tokenizers refuse an empty text
        special = set()
    special.add(subject.pad_token_id)
    for probes in (_NONSENSE, _RARE):
        found = [{token for token in encode(probe)} - special for probe in probes]
        if all(len(ids) == 1 for ids in found) and len(set.union(*found)) == 1:
            return found[0].pop()
    return None


@check(family="data", component="tokenization", needs=("splits", "encode"), likelihood=0.6)
def unknown_tokens(subject: Subject) -> Finding:
    """Does the vocabulary know the words of the texts?"""
    encode, unknown = encoder(subject), unknown_id(subject)
    if unknown is None:
        raise NotApplicable("strange words and signs get ids of their own: nothing is unknown")
    rates = {}
    for split in subject.splits:
        tokens = [t for text in sample(subject, split) for t in encode(text) if t != subject.pad_token_id]
        if len(tokens) >= 50:
            rates[split] = tokens.count(unknown) / len(tokens)
    if "train" not in rates:
        raise NotApplicable("train has fewer than 50 tokens")
    evidence = {f"unknown share of {name}": rate for name, rate in rates.items()}
    worst = max(rates, key=lambda name: rates[name])
    said = f"{rates['train']:.1%} of the tokens of train and {rates[worst]:.1%} of {worst} are unknown"
    if rates["train"] >= 0.2 or (worst != "test" and rates[worst] - rates["train"] >= 0.15):
        return unknown_tokens.problem(
            said,
            evidence,
            where=f"encode, id {unknown}",
            why="All unknown words are one to the model: it cannot learn from them.",
            fix="Use the tokenizer that was trained on such text, prepare texts as it expects (case!), or "
            "enlarge the vocabulary.",
        )
    return unknown_tokens.ok(said, evidence)


@check(family="data", component="tokenization", needs=("splits", "encode"), likelihood=0.7)
def vocabulary_collapse(subject: Subject) -> Finding:
    """Do different texts stay different?"""
    encode, texts = encoder(subject), all_texts(subject)
    short: dict[str, str] = {}
    for text in texts:
        head = " ".join(normalised(text).split()[:12])
        short.setdefault(head, text)
    heads = [head for head in short if len(head.split()) >= 3]
    if len(heads) < 8:
        raise NotApplicable(f"there are {len(heads)} different texts of three words or more, expected 8")
    counts = Counter(tuple(encode(head)) for head in heads)
    same = sum(count for count in counts.values() if count > 1)
    evidence = {"share that another text encodes like": same / len(heads), "examples": float(len(heads))}
    said = f"{same} of {len(heads)} texts that differ in their first 12 words get the tokens of another"
    if same >= 0.05 * len(heads) and same >= 4:
        return vocabulary_collapse.problem(
            said,
            evidence,
            where="encode",
            why="What is the same to the model has the same answer.",
            fix="Look at the tokens of two such texts: unknown words, a max_length of a few tokens, or a "
            "cache with the wrong key.",
        )
    return vocabulary_collapse.ok(said, evidence)
