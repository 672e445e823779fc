"""Bugs in how a model is judged."""

from __future__ import annotations

from companion.debugging.zoo.bug import Bug, Configuration, Edit

__all__ = ["BUGS"]

BUGS = (
    Bug(
        name="evaluated-in-training-mode",
        title="Evaluation leaves dropout on",
        family="data",
        component="evaluation",
        edits=(
            Edit(
                "recipe",
                """\
    model.eval()
    right, count = 0, 0
""",
                "    right, count = 0, 0\n",
            ),
            Edit(
                "recipe",
                """\
    model.eval()
    total, count = 0.0, 0
""",
                "    total, count = 0.0, 0\n",
            ),
        ),
        kind="classification",
        symptom="Held-out scores are noisy, and a little worse than they should be.",
        why="Nobody switches to evaluation mode.",
        fix="Call model.eval() first.",
        hint="Evaluate twice.",
        shape={"dropout": 0.5},
        equivalent_where=Configuration(
            kind="classification", shape={"dropout": 0.0}, because="without dropout the two modes are one"
        ),
    ),
    Bug(
        name="mean-of-batch-means",
        title="The score is a mean over batches",
        family="data",
        component="evaluation",
        edits=(
            Edit(
                "recipe",
                "right += int((guesses == targets).sum())",
                ("right += float((guesses == targets).sum() / (targets != IGNORED).sum())"),
            ),
            Edit("recipe", "count += int((targets != IGNORED).sum())", "count += 1"),
        ),
        kind="causal language model",
        symptom="The score changes with the batch size.",
        why="A small batch, or one of short texts, weighs as much as a large one.",
        fix="Add up what is right and what was asked, then divide.",
        hint="Evaluate with two batch sizes.",
    ),
    Bug(
        name="padding-counts-as-wrong",
        title="The score counts padding",
        family="data",
        component="evaluation",
        edits=(Edit("recipe", "count += int((targets != IGNORED).sum())", "count += targets.numel()"),),
        kind="causal language model",
        symptom="The score is lower the more padding there is.",
        why="What is ignored can never be right, and is counted as asked.",
        fix="Count targets that are not ignored.",
        hint="Evaluate with two batch sizes.",
        equivalent_where=Configuration(kind="classification", because="labels of texts have no padding"),
    ),
    Bug(
        name="padding-counts-as-right",
        title="What is ignored counts as right",
        family="data",
        component="evaluation",
        edits=(
            Edit(
                "recipe",
                "right += int((guesses == targets).sum())",
                "right += int(((guesses == targets) | (targets == IGNORED)).sum())",
            ),
            Edit("recipe", "count += int((targets != IGNORED).sum())", "count += targets.numel()"),
        ),
        kind="causal language model",
        symptom="The score is far better than the loss allows.",
        why="Padding is compared with nothing, and is taken for right.",
        fix="Count targets that are not ignored, above and below the line.",
        hint="What does a model score that always says the same?",
        equivalent_where=Configuration(kind="classification", because="labels of texts have no padding"),
    ),
)
