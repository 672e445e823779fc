"""Bugs in splits, labels and batches."""

from __future__ import annotations

from companion.debugging.zoo.bug import Bug, Configuration, Edit

__all__ = ["BUGS"]

BUGS = (
    Bug(
        name="near-duplicates-leak",
        title="Copies with other capitals are on both sides",
        family="data",
        component="splits",
        edits=(Edit("recipe", '{" ".join(words_of(text)): (text', "{text: (text"),),
        kind="classification",
        symptom="Held-out scores are better than those on new texts.",
        why=("Copies were compared as they are written: the same review without capitals counts as another."),
        fix="Compare texts as the model sees them.",
        hint="Compare the splits in lower case.",
    ),
    Bug(
        name="duplicates-leak",
        title="Rows were split, not texts",
        family="data",
        component="splits",
        edits=(
            Edit(
                "recipe",
                """\
    unique = {" ".join(words_of(text)): (text, LABELS[name]) for text, name in reviews}
    return dict(zip(("train", "dev"), split(list(unique.values()), 0.25""",
                """\
    labelled = [(text, LABELS[name]) for text, name in reviews]
    return dict(zip(("train", "dev"), split(labelled, 0.25""",
            ),
            Edit(
                "recipe",
                """\
    texts = sorted({text for text, _ in examples})
    random.Random(seed).shuffle(texts)
    held_out = set(texts[: round(share * len(texts))])
    train = [example for example in examples if example[0] not in held_out]
    return train, [example for example in examples if example[0] in held_out]
""",
                """\
    mixed = list(examples)
    random.Random(seed).shuffle(mixed)
    size = round(share * len(mixed))
    return mixed[size:], mixed[:size]
""",
            ),
        ),
        kind="classification",
        symptom="Held-out scores are better than those on new texts.",
        why="A review that was sent twice has one copy on each side.",
        fix="Remove copies, then split.",
        hint="Which held-out texts are in train too?",
    ),
    Bug(
        name="held-out-texts-in-training",
        title="Held-out texts stay in training",
        family="data",
        component="splits",
        edits=(
            Edit(
                "recipe",
                """\
    train = [example for example in examples if example[0] not in held_out]
""",
                "    train = list(examples)\n",
            ),
        ),
        kind="classification",
        symptom="Held-out scores are as good as training scores, and much better than those on new texts.",
        why="Texts were copied to the other side, not moved.",
        fix="Train on what is not held out.",
        hint="Which held-out texts are in train too?",
    ),
    Bug(
        name="label-numbers-per-split",
        title="Each split numbers the labels for itself",
        family="data",
        component="labels",
        edits=(
            Edit(
                "recipe",
                """\
    unique = {" ".join(words_of(text)): (text, LABELS[name]) for text, name in reviews}
    return dict(zip(("train", "dev"), split(list(unique.values()), 0.25, settings.seed), strict=True))
""",
                """\
    unique = {" ".join(words_of(text)): (text, name) for text, name in reviews}
    splits = {}
    for side, rows in zip(("train", "dev"), split(list(unique.values()), 0.25, settings.seed), strict=True):
        names = list(dict.fromkeys(name for _, name in rows))
        splits[side] = [(text, names.index(name)) for text, name in rows]
    return splits
""",
            ),
        ),
        kind="classification",
        symptom="Training goes well; held-out scores are worse than a guess.",
        why="Labels are numbered as they turn up, and the other split begins with the other one.",
        fix="Number labels once, from one list.",
        hint="What does class 1 mean in each split?",
    ),
    Bug(
        name="labels-moved-by-one-row",
        title="Labels belong to the row above",
        family="data",
        component="labels",
        edits=(
            Edit(
                "recipe",
                "(text, LABELS[name]) for text, name in reviews}",
                ("(text, LABELS[name]) for (text, _), (_, name) in zip(reviews, reviews[1:], strict=False)}"),
            ),
        ),
        kind="classification",
        symptom="The loss stays at that of a guess; with many epochs the model learns texts by heart.",
        why="Two columns were joined by position, one of them without its first row.",
        fix="Join by a key, and read some rows.",
        hint="Read ten texts with their labels.",
    ),
    Bug(
        name="batch-sorted-without-labels",
        title="Texts of a batch are sorted by length, labels are not",
        family="data",
        component="batching",
        edits=(
            Edit(
                "recipe",
                "    for ids, _ in rows:\n",
                "    for ids, _ in sorted(rows, key=lambda row: len(row[0])):\n",
            ),
        ),
        kind="classification",
        symptom="The loss stays at that of a guess.",
        why="Sorting happens on the way to one column of the batch only.",
        fix="Sort rows, not columns.",
        hint="Follow one text and its label into a batch.",
    ),
    Bug(
        name="padding-marked-real",
        title="The attention mask is one everywhere",
        family="data",
        component="batching",
        edits=(
            Edit(
                "recipe",
                "real, pads = [1] * len(ids), [0] * padding",
                "real, pads = [1] * len(ids), [1] * padding",
            ),
        ),
        kind="classification",
        symptom="A text gets other scores beside a long one than alone.",
        why="The mask is made and says nothing.",
        fix="Write zeros for padding.",
        hint="How many ones does the mask have, and how many tokens the text?",
    ),
    Bug(
        name="mask-on-the-wrong-side",
        title="Padding is on the left, and zeros of the mask on the right",
        family="data",
        component="batching",
        edits=(
            Edit(
                "recipe",
                "attention_mask.append(pads + real if pad_left else real + pads)",
                "attention_mask.append(real + pads)",
            ),
        ),
        kind="causal language model",
        symptom="The loss stays high on short texts.",
        why="Padding is read as words, and words at the end are hidden.",
        fix="Pad ids and mask on the same side.",
        hint="Print a short row: ids and mask.",
        settings={"pad_left": True},
        equivalent_where=Configuration(
            kind="causal language model", because="padding on the right is where this mask expects it"
        ),
    ),
    Bug(
        name="end-is-padding",
        title="The end of a text has the id of padding",
        family="data",
        component="batching",
        edits=(
            Edit(
                "recipe",
                "PAD, UNKNOWN, START, END, MASK = range(5)",
                "PAD, UNKNOWN, START, _, MASK = range(5)\nEND = PAD",
            ),
            Edit(
                "recipe",
                "real, pads = [1] * len(ids), [0] * padding",
                "real, pads = [int(token != PAD) for token in ids], [0] * padding",
            ),
        ),
        kind="causal language model",
        symptom="The model never stops writing.",
        why=(
            "The mask is made by comparing ids with padding: every end is taken for padding and is "
            "never a target."
        ),
        fix="Give padding an id of its own, or make the mask from lengths.",
        hint="Is the end of a text among the targets?",
    ),
    Bug(
        name="same-words-hidden",
        title="The same places are hidden in each batch",
        family="data",
        component="batching",
        edits=(
            Edit(
                "recipe",
                """\
    generator = torch.Generator().manual_seed(1_000 * settings.seed + (epoch or 0))
""",
                "",
            ),
            Edit(
                "recipe",
                "        batch = collate(part, pad_left=settings.pad_left)\n",
                """\
        batch = collate(part, pad_left=settings.pad_left)
        generator = torch.Generator().manual_seed(settings.seed)
""",
            ),
        ),
        kind="masked language model",
        symptom="The curve looks normal; the model is worse at places that are never hidden.",
        why=(
            "The generator is made anew, with the same seed, for each batch, as happens to workers "
            "that share one."
        ),
        fix="Make it once, or seed it by epoch and batch.",
        hint="Which places are hidden in the first batch, and which in the second?",
    ),
)
