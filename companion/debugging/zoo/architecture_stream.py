"""Bugs in what a block does to the stream of vectors that passes through it."""

from __future__ import annotations

from companion.debugging.zoo.bug import Bug, Edit

__all__ = ["BUGS"]

_LAST = "return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))"
_FIRST = "x = x + self.dropout(self.attention(self.attention_norm(x), visible, turns, cache))"

BUGS = (
    Bug(
        name="activation-on-the-stream",
        title="An activation works on the residual sum, not inside a part",
        family="architecture",
        component="layers",
        edits=(
            Edit(
                "transformer",
                _LAST,
                "return torch.relu(x + self.dropout(self.feed_forward(self.feed_forward_norm(x))))",
            ),
        ),
        kind="causal language model",
        symptom="The loss falls a little more slowly than that of the right model.",
        why="Each layer cuts off the negative numbers of all that the layers before it said.",
        fix="Bend inside the feed-forward part alone; add what it gives to the stream as it is.",
        hint="Set all matrices of a block to 0: what should come out?",
    ),
    Bug(
        name="dropout-on-the-stream",
        title="Dropout works on the residual sum, not on what is added",
        family="architecture",
        component="dropout",
        edits=(
            Edit(
                "transformer",
                _LAST,
                "return self.dropout(x + self.feed_forward(self.feed_forward_norm(x)))",
            ),
        ),
        kind="classification",
        symptom="Training is noisier; nothing differs in evaluation.",
        why="Each layer drops a tenth of the stream itself, and deep models have little of it left.",
        fix="Drop parts of what is added: x + dropout(part(norm(x))).",
        hint="Set all matrices of a block to 0, and look at it in training mode.",
    ),
    Bug(
        name="residual-from-normed",
        title="The residual sum starts from the normalised input",
        family="architecture",
        component="layers",
        edits=(
            Edit(
                "transformer",
                _FIRST,
                """\
x = self.attention_norm(x)
            x = x + self.dropout(self.attention(x, visible, turns, cache))""",
            ),
        ),
        kind="classification",
        symptom="A shallow model learns as ever; a deep one does not profit from pre-norm.",
        why="The stream is normalised anew in each layer: neither pre-norm nor post-norm.",
        fix="Normalise what attention reads, and add what it gives to the input itself.",
        hint="Which vector does attention's output get added to?",
    ),
)
