"""Bugs in what a token may see."""

from __future__ import annotations

from companion.debugging.zoo.bug import Bug, Configuration, Edit

__all__ = ["BUGS"]

BUGS = (
    Bug(
        name="no-causal-mask",
        title="A decoder without a causal mask",
        family="architecture",
        component="attention",
        edits=(
            Edit(
                "transformer",
                """\
        if self.config.causal:
            visible = visible & torch.ones(seq, seq, dtype=torch.bool, device=visible.device).tril()[-new:]
""",
                "",
            ),
        ),
        kind="causal language model",
        symptom=(
            "The loss falls far below that of any honest language model, and the text it writes is nonsense."
        ),
        why="Each token sees the word that it is to predict, and copies it.",
        fix="Hide from each token what comes after it.",
        hint="Change the last word of a text. Which scores move?",
    ),
    Bug(
        name="causal-mask-off-by-one",
        title="The causal mask lets one word too many through",
        family="architecture",
        component="attention",
        edits=(Edit("transformer", ".tril()[-new:]", ".tril(1)[-new:]"),),
        kind="causal language model",
        symptom="The loss falls close to zero within an epoch.",
        why="The diagonal above the main one is visible too: the very word that is to be predicted.",
        fix="Keep the main diagonal and what lies under it: tril() without an offset.",
        hint="Which is the last word that a token may see?",
    ),
    Bug(
        name="causal-mask-too-strict",
        title="The causal mask hides a token from itself",
        family="architecture",
        component="attention",
        edits=(Edit("transformer", ".tril()[-new:]", ".tril(-1)[-new:]"),),
        kind="causal language model",
        symptom="The loss falls, and stays above that of the right model.",
        why=(
            "No token sees itself; the first one sees nothing, so that its weights spread over the "
            "whole text, the future included."
        ),
        fix="Keep the main diagonal: tril() without an offset.",
        hint="What does the first token see?",
    ),
    Bug(
        name="scores-multiplied-by-mask",
        title="The scores are multiplied by the mask",
        family="architecture",
        component="attention",
        edits=(
            Edit(
                "transformer",
                """\
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
""",
                "        scores = scores * visible\n",
            ),
        ),
        kind="causal language model",
        symptom="The loss looks good and is not reached when the model writes.",
        why="A hidden token gets the score 0, which softmax does not turn into weight 0.",
        fix="Fill hidden scores with the lowest finite number before softmax.",
        hint="What does softmax make of a score of 0?",
    ),
    Bug(
        name="mask-added",
        title="The mask is added to the scores as 0 and 1",
        family="architecture",
        component="attention",
        edits=(
            Edit(
                "transformer",
                """\
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
""",
                "        scores = scores + visible\n",
            ),
        ),
        kind="causal language model",
        symptom="The loss looks good and is not reached when the model writes.",
        why="Visible tokens get one more than hidden ones: a hint, not a wall.",
        fix="Add 0 where visible and the lowest finite number where hidden, or use masked_fill.",
        hint="How much weight is left on a hidden token?",
    ),
    Bug(
        name="mask-after-softmax",
        title="The mask comes after softmax",
        family="architecture",
        component="attention",
        edits=(
            Edit(
                "transformer",
                """\
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
        weights = self.dropout(self.softmax(scores))
""",
                """\
        weights = self.dropout(self.softmax(scores).masked_fill(~visible, 0.0))
""",
            ),
        ),
        kind="causal language model",
        symptom="The curve looks like that of the right model.",
        why=(
            "The sum under each fraction still counts hidden tokens: the weights do not sum to one, "
            "and how far they fall short tells of the future."
        ),
        fix="Mask the scores, then take softmax.",
        hint="Do the weights of a row sum to one?",
    ),
    Bug(
        name="mask-with-tiny-number",
        title="Hidden scores are filled with 1e-9 in place of -1e9",
        family="architecture",
        component="attention",
        edits=(
            Edit(
                "transformer",
                "masked_fill(~visible, torch.finfo(scores.dtype).min)",
                "masked_fill(~visible, 1e-9)",
            ),
        ),
        kind="causal language model",
        symptom="The loss looks good and is not reached when the model writes.",
        why="1e-9 is next to nothing, so that hidden tokens have the score 0 and an ordinary weight.",
        fix="Fill with the lowest finite number of the dtype.",
        hint="Read the number once more, sign and all.",
    ),
    Bug(
        name="mask-inverted",
        title="The mask hides what should be seen",
        family="architecture",
        component="attention",
        edits=(Edit("transformer", "masked_fill(~visible", "masked_fill(visible"),),
        kind="classification",
        symptom="The loss hardly falls; scores depend on what stands in the padding.",
        why=("True means hidden for masked_fill and visible for this mask: real tokens read padding alone."),
        fix="Invert the mask once: masked_fill(~visible, ...).",
        hint="What does True stand for here, and what there?",
    ),
    Bug(
        name="padding-seen",
        title="Padding is not masked",
        family="architecture",
        component="attention",
        edits=(
            Edit(
                "transformer",
                "visible = attention_mask.bool()[:, None, None, :]",
                "visible = torch.ones_like(attention_mask).bool()[:, None, None, :]",
            ),
        ),
        kind="classification",
        symptom="A text gets other scores beside a long one than beside a short one.",
        why="Real tokens take part of their mean from padding.",
        fix="Let the attention mask decide what is visible.",
        hint="Give a text twice: alone, and padded.",
        equivalent_where=Configuration(
            kind="causal language model",
            because="with padding on the right, a token of a decoder sees no padding anyway",
        ),
    ),
    Bug(
        name="first-mask-for-all",
        title="The first text's padding mask is used for the whole batch",
        family="architecture",
        component="attention",
        edits=(
            Edit(
                "transformer",
                "attention_mask.bool()[:, None, None, :].expand(-1, 1, new, seq)",
                "attention_mask.bool()[:1, None, None, :].expand(-1, 1, new, seq)",
            ),
        ),
        kind="classification",
        symptom="Scores change with the order of the texts in a batch.",
        why="A slice keeps one row, and broadcasting hides it.",
        fix="Index with [:, None, None, :].",
        hint="Swap two texts of a batch.",
    ),
    Bug(
        name="mask-only-in-training",
        title="The padding mask is dropped in evaluation",
        family="architecture",
        component="attention",
        edits=(
            Edit(
                "transformer",
                "        if attention_mask is None:\n",
                "        if attention_mask is None or not self.training:\n",
            ),
        ),
        kind="classification",
        symptom="Training looks right; the scores on held-out texts vary with the batch they are in.",
        why=("A fast path for inference, where texts came one at a time, forgets that batches are padded."),
        fix="Use the mask in either mode.",
        hint="Compare train and eval mode, without dropout.",
    ),
    Bug(
        name="minus-infinity",
        title="Hidden scores are minus infinity",
        family="architecture",
        component="attention",
        edits=(Edit("transformer", "torch.finfo(scores.dtype).min", 'float("-inf")'),),
        kind="causal language model",
        symptom="The loss is NaN from the first batch with padding on the left.",
        why=(
            "A row that sees nothing divides zero by zero, and NaN times zero is NaN: it spreads to all rows."
        ),
        fix="Fill with the lowest finite number of the dtype.",
        hint="What is softmax of a row of minus infinities?",
        silent=False,
        settings={"pad_left": True},
        equivalent_where=Configuration(
            kind="causal language model",
            because="with padding on the right, every row sees its own first token",
        ),
    ),
)
