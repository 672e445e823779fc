"""Does the model see in production, and in a batch, what it saw in training?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import islice

from torch import Tensor

from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.checks.texts import all_texts, encoder
from companion.debugging.finding import Finding
from companion.debugging.subject import Subject

__all__ = ["collation", "padding_mask", "tokenizer_limit", "train_and_serve"]


def _probes(texts: list[str]) -> list[str]:
    """Return what users write and training texts lack: capitals, spaces, line breaks, signs."""
    changes: tuple[Callable[[str], str], ...] = (
        str.upper,
        str.title,
        lambda text: f"  {text}",
        lambda text: f"{text} ",
        lambda text: text.replace(" ", "\n", 1),
        lambda text: text.replace(" ", "  "),
        lambda text: text.replace("e", "é", 1),
        lambda text: f"{text}!!!",
        lambda text: f'"{text}"',
        lambda text: f"<b>{text}</b>",
        lambda text: f"{text} ☕ 12.5%",
        lambda text: " ".join([text] * 40),
    )
    return [change(text) for text in texts[:4] for change in changes]


@check(family="data", component="tokenization", needs=("splits", "encode", "encode_served"), likelihood=0.8)
def train_and_serve(subject: Subject) -> Finding:
    """Does the server turn a text into the same tokens as training did?"""
    encode, texts, served = encoder(subject), all_texts(subject), subject.encode_served
    if served is None:
        raise NotApplicable("it needs encode_served")
    if served is subject.encode:
        return train_and_serve.ok("training and server share one function", {"differing texts": 0.0})

    def differ(text: str) -> bool:
        return encode(text) != [int(token) for token in served(text)]

    own = [text for text in texts if differ(text)]
    probes = _probes(texts)
    odd = [text for text in probes if differ(text)]
    evidence = {
        "share of texts that differ": len(own) / len(texts),
        "share of probes that differ": len(odd) / len(probes),
        "examples": float(len(texts)),
    }
    if own or odd:
        text = (own or odd)[0]
        here, there = encode(text), [int(token) for token in served(text)]
        place = next((i for i, (a, b) in enumerate(zip(here, there, strict=False)) if a != b), None)
        at = f"from token {place} on" if place is not None else f"{len(here)} tokens against {len(there)}"
        said = f"{len(own)} of {len(texts)} texts, and {len(odd)} of {len(probes)} with capitals, spaces and "
        return train_and_serve.problem(
            f"{said}signs added, become other tokens on the server",
            evidence,
            where=f"{text[:60]!r}: {at}",
            why="The model is asked in another language than it was taught: only production notices.",
            fix="Save the tokenizer with the model, and let training and server call it by one function.",
            likelihood=None if own else 0.6,
        )
    return train_and_serve.ok(f"{len(texts)} texts and {len(probes)} probes become the same tokens", evidence)


@check(family="data", component="batching", needs=("batches",), likelihood=0.8)
def padding_mask(subject: Subject) -> Finding:
    """Does the attention mask of the batches say what is padding?"""
    rows = shown = holes = 0
    hidden: Counter[int] = Counter()
    first = ""
    for number, batch in enumerate(islice(iter(subject.batches), 64)):
        ids, mask = batch.get("input_ids"), batch.get("attention_mask")
        if ids is None or mask is None or ids.shape != mask.shape or ids.dim() != 2:
            continue
        rows += len(ids)
        here = _shown(ids, mask, subject.pad_token_id), _holes(mask), Counter(ids[mask == 0].tolist())
        first = first or (f"batch {number}" if here[0] or here[1] or len(here[2]) > 1 else "")
        shown, holes, hidden = shown + here[0], holes + here[1], hidden + here[2]
    if not rows:
        raise NotApplicable("no batch has input_ids and an attention_mask of one shape (batch, seq)")
    # One token alone under the mask is what pads, whatever its number.
    padding = max(hidden[subject.pad_token_id], hidden.most_common(1)[0][1] if len(hidden) == 1 else 0)
    words = hidden.total() - padding
    evidence = {"rows": float(rows), "rows with padding shown": float(shown)}
    evidence |= {"words hidden": float(words), "rows with holes": float(holes)}
    problems = [
        (shown > 0.05 * rows, f"in {shown} of {rows} rows it shows padding (token {subject.pad_token_id})"),
        (words > 0, f"it hides {words} tokens that are no padding (token {subject.pad_token_id})"),
        (holes > 0, f"in {holes} of {rows} rows it has holes in the middle"),
    ]
    said = [sentence for found, sentence in problems if found]
    if said:
        return padding_mask.problem(
            f"the attention mask of the batches does not fit the padding: {'; '.join(said)}",
            evidence,
            where=first,
            why="Each token attends to padding, or to less than there is: the answer depends on the "
            "neighbours in the batch.",
            fix="Make the mask where the padding is made, from lengths; 1 is for real tokens.",
        )
    return padding_mask.ok(f"in {rows} rows the mask fits the padding", evidence)


def _shown(ids: Tensor, mask: Tensor, pad: int) -> int:
    """Count the rows with more than one padding token at an end that the mask shows.

    One may be an end of text that also pads; elsewhere the token may stand for a word.
    """
    pads = (ids == pad).long()
    outer = pads.cumprod(dim=1).bool() | pads.flip(1).cumprod(dim=1).flip(1).bool()
    return int(((outer & mask.bool()).sum(dim=1) > 1).sum())


def _holes(mask: Tensor) -> int:
    """Count the rows whose real tokens are not in one piece."""
    starts = (mask.bool()[:, 1:] & ~mask.bool()[:, :-1]).sum(dim=1) + mask.bool()[:, 0]
    return int((starts > 1).sum())


@check(family="data", component="batching", needs=("splits", "encode", "collate"), likelihood=0.9)
def collation(subject: Subject) -> Finding:
    """Are a row's tokens and label still together, and all there, when it comes out of `collate`?"""
    encode, texts, collate = encoder(subject), all_texts(subject), subject.collate
    if collate is None:
        raise NotApplicable("it needs collate")
    encoded = sorted((ids for ids in map(encode, texts) if ids), key=len)
    chosen = [encoded[i * (len(encoded) - 1) // 7][: subject.max_length] for i in range(8)]
    with_pad = [ids[: subject.max_length] for ids in encoded if subject.pad_token_id in ids[:-1]]
    rows = [*chosen[::-1], *with_pad[:2]]
    labels = [place % max(subject.classes, 1) for place in range(len(rows))]
    batch = collate(list(zip(rows, labels, strict=True)))
    ids, mask, out = batch["input_ids"], batch.get("attention_mask"), batch.get("labels")
    if mask is None or mask.shape != ids.shape or len(ids) != len(rows):
        raise NotApplicable("collate gives no attention_mask (batch, seq) with one row for each row")
    with_label = out is not None and out.dim() == 1 and subject.classes > 1
    found = [
        (tuple(row[real.bool()].tolist()), int(out[i]) if with_label and out is not None else 0)
        for i, (row, real) in enumerate(zip(ids, mask, strict=True))
    ]
    expected = [(tuple(row), label if with_label else 0) for row, label in zip(rows, labels, strict=True)]
    broken = Counter(expected) - Counter(found)
    lost = sum((Counter(row for row, _ in expected) - Counter(row for row, _ in found)).values())
    evidence = {"rows": float(len(rows)), "rows changed": float(lost), "examples": float(len(rows))}
    evidence["rows with another label"] = float(broken.total() - lost)
    if lost:
        return collation.problem(
            f"{lost} of {len(rows)} rows come out of collate with other tokens under the mask than went in",
            evidence,
            where="collate",
            why="Words are hidden, or padding is shown, in every batch.",
            fix="Pad ids and mask in one place, from the row's length; never make the mask by comparing ids.",
        )
    if broken:
        return collation.problem(
            f"{broken.total()} of {len(rows)} rows come out of collate with the label of another row",
            evidence,
            where="collate",
            why="The model is trained on labels that nobody gave.",
            fix="Sort and pad texts and labels together.",
            component="labels",
        )
    return collation.ok(
        f"{len(rows)} rows of {len(rows[-1])} to {len(rows[0])} tokens come out whole", evidence
    )


@check(family="data", component="tokenization", needs=("encode", "make_model"), likelihood=0.2)
def tokenizer_limit(subject: Subject) -> Finding:
    """Does the tokenizer stop where the model's positions do?"""
    encode = subject.encode
    owner = getattr(encode, "func", encode)  # of a partial
    owner = getattr(owner, "__self__", owner)
    limit = getattr(owner, "model_max_length", None)
    config = getattr(subject.make_model(), "config", None)
    names = ("max_position_embeddings", "n_positions")
    rooms = [room for name in names if isinstance(room := getattr(config, name, None), int)]
    if not isinstance(limit, int) or limit > 1_000_000 or not rooms:
        raise NotApplicable(
            "it needs a tokenizer with a model_max_length, and a model whose config has positions"
        )
    evidence = {"model_max_length": float(limit), "positions": float(rooms[0])}
    if limit > rooms[0]:
        return tokenizer_limit.problem(
            f"the tokenizer lets {limit} tokens pass, and the model has {rooms[0]} positions",
            evidence,
            where="tokenizer.model_max_length",
            why="Whoever relies on truncation=True alone gives the model positions that it does not have.",
            fix=f"Save the tokenizer with model_max_length={rooms[0]}.",
        )
    return tokenizer_limit.ok(f"the tokenizer stops at {limit} tokens of {rooms[0]}", evidence)
