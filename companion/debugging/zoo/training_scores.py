"""Bugs in what the loss asks of the scores, and in how often."""

from __future__ import annotations

from companion.debugging.zoo.bug import Bug, Edit

__all__ = ["BUGS"]

_SUM = 'ignore_index=IGNORED, reduction="sum"'

BUGS = (
    Bug(
        name="likelihood-of-raw-scores",
        title="The likelihood loss gets scores, not logarithms of probabilities",
        family="training",
        component="loss",
        edits=(Edit("recipe", "loss = functional.cross_entropy(", "loss = functional.nll_loss("),),
        kind="classification",
        symptom="The loss falls below zero and does not stop.",
        why="The label's score is pulled up and no other is pushed down: all scores grow.",
        fix="Give scores to cross_entropy, or log_softmax of them to nll_loss.",
        hint="What is the sum of the loss's gradient over the scores of one text?",
        silent=False,
    ),
    Bug(
        name="class-without-weight",
        title="One class has a weight of zero in the loss",
        family="training",
        component="loss",
        edits=(Edit("recipe", _SUM, f"{_SUM}, weight=torch.tensor([0.0, 1.0])"),),
        kind="classification",
        symptom="The loss falls quickly; the model says one class for all texts.",
        why="Texts of the other class have no gradient.",
        fix="Give each class a weight above zero, or none a weight.",
        hint="Is there a gradient for each text of a batch?",
    ),
    Bug(
        name="smoothing-the-wrong-way-round",
        title="Label smoothing leaves a tenth for the label, not for the others",
        family="training",
        component="loss",
        edits=(Edit("recipe", _SUM, f"{_SUM}, label_smoothing=0.9"),),
        kind="classification",
        symptom="The loss stays near that of guessing; accuracy need not be bad.",
        why="The loss is least where the model is unsure, and it learns to be.",
        fix="Smooth by 0.1: the number is the share that is taken from the label.",
        hint="At which probability of the label is the loss least?",
        silent=False,
    ),
    Bug(
        name="most-words-hidden",
        title="85% of the words are hidden, not 15%",
        family="training",
        component="batching",
        edits=(Edit("recipe", "generator=generator) < 0.15)", "generator=generator) < 0.85)"),),
        kind="masked language model",
        symptom="The loss falls to that of common words, and stays there.",
        why="Next to nothing is left to guess the hidden words from.",
        fix="Hide a word where the random number is below 0.15.",
        hint="Count the hidden words of a batch.",
    ),
    Bug(
        name="clip-before-dividing",
        title="Gradients are clipped as sums, and divided afterwards",
        family="training",
        component="training step",
        edits=(
            Edit(
                "recipe",
                "    # Divided by all that",
                """\
    nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
    # Divided by all that""",
            ),
        ),
        kind="causal language model",
        symptom="The curve looks normal, with Adam; with SGD nothing moves.",
        why="The limit cuts the sum over all words to 1, and the mean of that is next to nothing.",
        fix="Clip once, after the division and right before the step.",
        hint="How long is the gradient when the optimizer uses it?",
    ),
)
