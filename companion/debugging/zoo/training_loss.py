"""Bugs in targets and loss."""

from __future__ import annotations

from companion.debugging.zoo.bug import Bug, Configuration, Edit

__all__ = ["BUGS"]

BUGS = (
    Bug(
        name="labels-not-shifted",
        title="The targets are the inputs",
        family="training",
        component="loss",
        edits=(
            Edit(
                "recipe",
                'targets[:, :-1] = batch["input_ids"][:, 1:]',
                'targets[:, :-1] = batch["input_ids"][:, :-1]',
            ),
        ),
        kind="causal language model",
        symptom="The loss falls close to zero; the text it writes repeats one word.",
        why="Each token is asked for itself, which it sees.",
        fix="The target of a token is the next one.",
        hint="Print a text and its targets, side by side.",
    ),
    Bug(
        name="labels-shifted-twice",
        title="The targets are two words ahead",
        family="training",
        component="loss",
        edits=(
            Edit(
                "recipe",
                'targets[:, :-1] = batch["input_ids"][:, 1:]',
                'targets[:, :-2] = batch["input_ids"][:, 2:]',
            ),
        ),
        kind="causal language model",
        symptom="The loss stays higher than it should; the text it writes leaves out words.",
        why="The loop shifts, and so does the loss of many libraries.",
        fix="Shift once, in one place.",
        hint="Print a text and its targets, side by side.",
    ),
    Bug(
        name="padding-in-the-loss",
        title="Padding counts as something to predict",
        family="training",
        component="loss",
        edits=(
            Edit(
                "recipe",
                """\
    targets[:, :-1].masked_fill_(~(real[:, :-1] & real[:, 1:]), IGNORED)
""",
                "",
            ),
        ),
        kind="causal language model",
        symptom="The loss looks better the more padding a batch has.",
        why="Padding is followed by padding: easy words that nobody needs flatter the mean.",
        fix="Leave padding out of targets and count.",
        hint="Add padding to a batch. Does its loss change?",
    ),
    Bug(
        name="loss-over-texts",
        title="The loss is divided by the texts, not the words",
        family="training",
        component="loss",
        edits=(
            Edit(
                "recipe",
                "return total / max(count, 1)  # by chance",
                'return total / len(batch["input_ids"])  # by chance',
            ),
        ),
        kind="causal language model",
        symptom="The loss of the first batch is many times that of a guess.",
        why="A sum over words is divided by the number of texts.",
        fix="Divide by what is predicted.",
        hint="What is the loss of a guess? What is that of a fresh model?",
        equivalent_where=Configuration(
            kind="classification", because="a classifier predicts one thing for each text"
        ),
    ),
    Bug(
        name="softmax-before-the-loss",
        title="The loss gets probabilities",
        family="training",
        component="loss",
        edits=(
            Edit(
                "recipe", "        logits.flatten(0, -2),", "        logits.softmax(dim=-1).flatten(0, -2),"
            ),
        ),
        kind="classification",
        symptom="The loss falls a little and stops far too high.",
        why="Cross-entropy takes softmax itself; of numbers between 0 and 1 it is almost uniform.",
        fix="Hand scores to cross-entropy.",
        hint="Can the loss reach zero?",
    ),
    Bug(
        name="padding-hidden-and-guessed",
        title="Padding is hidden and guessed",
        family="training",
        component="loss",
        edits=(
            Edit(
                "recipe",
                'words = batch["attention_mask"].bool() & (ids != START) & (ids != END)',
                "words = (ids != START) & (ids != END)",
            ),
        ),
        kind="masked language model",
        symptom="The loss looks better the more padding a batch has.",
        why="Padding is chosen like a word, and is the easiest of all.",
        fix="Choose among real words.",
        hint="Which targets are padding?",
    ),
    Bug(
        name="all-words-are-targets",
        title="Words that were not hidden are targets too",
        family="training",
        component="loss",
        edits=(Edit("recipe", '"labels": ids.masked_fill(~chosen, IGNORED)', '"labels": ids'),),
        kind="masked language model",
        symptom="The loss falls quickly; what the model knows of hidden words is little.",
        why="Six of seven targets can be copied from the input.",
        fix="Mark all that was not chosen as ignored.",
        hint="Which share of the tokens is a target?",
    ),
    Bug(
        name="the-mask-is-the-target",
        title="The target of a hidden word is the mask",
        family="training",
        component="loss",
        edits=(
            Edit(
                "recipe",
                '"labels": ids.masked_fill(~chosen, IGNORED)',
                '"labels": hidden.masked_fill(~chosen, IGNORED)',
            ),
        ),
        kind="masked language model",
        symptom="The loss falls close to zero at once.",
        why="Labels were taken after the words had been replaced.",
        fix="Take the labels before.",
        hint="Which words are the targets?",
    ),
)
