"""Bugs in attention, and in the dropout of its weights."""

from __future__ import annotations

from companion.debugging.zoo.bug import Bug, Configuration, Edit

__all__ = ["BUGS"]

BUGS = (
    Bug(
        name="softmax-over-queries",
        title="Softmax runs over the wrong axis",
        family="architecture",
        component="attention",
        edits=(Edit("transformer", "nn.Softmax(dim=-1)", "nn.Softmax(dim=-2)"),),
        kind="causal language model",
        symptom="The curve looks like that of the right model, or better.",
        why=(
            "The weights that each token gives sum to whatever they like, and depend on the tokens after it."
        ),
        fix="Softmax over the keys, the last axis.",
        hint="Which sums are one: over rows, or over columns?",
    ),
    Bug(
        name="heads-merged-wrongly",
        title="Heads are merged without a transpose",
        family="architecture",
        component="attention",
        edits=(
            Edit(
                "transformer",
                "return x.transpose(1, 2).flatten(2)",
                "return x.reshape(x.size(0), x.size(2), -1)",
            ),
        ),
        kind="causal language model",
        symptom="The loss falls below that of the right model.",
        why="Numbers of one token land at another, later ones at earlier ones.",
        fix="Bring heads beside their width first: transpose(1, 2), then flatten.",
        hint="Change one token behind attention. Which tokens change?",
    ),
    Bug(
        name="heads-split-wrongly",
        title="Heads are split without a transpose",
        family="architecture",
        component="attention",
        edits=(
            Edit(
                "transformer",
                "return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)",
                "return x.reshape(x.size(0), self.heads, x.size(1), -1)",
            ),
        ),
        kind="causal language model",
        symptom="The curve looks like that of the right model.",
        why="A head gets whole tokens of a part of the text in place of a part of each token.",
        fix="Split the width: unflatten(-1, (heads, -1)), then transpose(1, 2).",
        hint="What does a head hold: some numbers of all tokens, or all numbers of some?",
    ),
    Bug(
        name="scores-not-scaled",
        title="The scores are not divided by the root of the head's width",
        family="architecture",
        component="attention",
        edits=(Edit("transformer", " / math.sqrt(query.size(-1))", ""),),
        kind="causal language model",
        symptom="The curve looks like that of the right model; wide heads train worse.",
        why="Scores grow with the width, softmax becomes hard, and its gradient vanishes.",
        fix="Divide by the square root of the head's width.",
        hint="How large are the scores of a wide head?",
    ),
    Bug(
        name="scaled-by-model-width",
        title="The scores are divided by the root of the model's width",
        family="architecture",
        component="attention",
        edits=(Edit("transformer", "/ math.sqrt(query.size(-1))", "/ math.sqrt(x.size(-1))"),),
        kind="causal language model",
        symptom="The curve looks like that of the right model.",
        why="Each head sees a part of the width, and is flattened as if it saw all of it.",
        fix="Divide by the square root of the head's width.",
        hint="Which width does a single dot product run over?",
    ),
    Bug(
        name="scale-without-root",
        title="The scores are divided by the head's width itself",
        family="architecture",
        component="attention",
        edits=(Edit("transformer", "/ math.sqrt(query.size(-1))", "/ query.size(-1)"),),
        kind="causal language model",
        symptom="The curve looks like that of the right model.",
        why="Scores are too small, so that attention is close to a plain mean.",
        fix="Divide by the square root.",
        hint="Read the formula of attention once more.",
    ),
    Bug(
        name="value-from-key-projection",
        title="Values come from the key projection",
        family="architecture",
        component="attention",
        edits=(
            Edit(
                "transformer",
                "value = self.split_heads(self.value(x))",
                "value = self.split_heads(self.key(x))",
            ),
        ),
        kind="causal language model",
        symptom="The loss falls a little slower.",
        why="A line was copied: one projection serves twice, the other never.",
        fix="Project values with their own layer.",
        hint="Does every parameter get a gradient?",
    ),
    Bug(
        name="key-from-query-projection",
        title="Keys come from the query projection",
        family="architecture",
        component="attention",
        edits=(
            Edit(
                "transformer", "key = self.split_heads(self.key(x))", "key = self.split_heads(self.query(x))"
            ),
        ),
        kind="causal language model",
        symptom="The loss falls a little slower.",
        why="Scores become symmetric, and the key projection is never trained.",
        fix="Project keys with their own layer.",
        hint="Does every parameter get a gradient?",
    ),
    Bug(
        name="output-projection-skipped",
        title="The output projection of attention is left out",
        family="architecture",
        component="attention",
        edits=(
            Edit(
                "transformer",
                "return self.output(self.merge_heads(weights @ value))",
                "return self.merge_heads(weights @ value)",
            ),
        ),
        kind="causal language model",
        symptom="The loss falls a little slower.",
        why="Heads are never mixed, and a layer that exists is never called.",
        fix="Send the merged heads through the output projection.",
        hint="Does every parameter get a gradient?",
    ),
    Bug(
        name="attention-without-dropout",
        title="Attention weights have no dropout",
        family="architecture",
        component="dropout",
        edits=(
            Edit(
                "transformer",
                "weights = self.dropout(self.softmax(scores))",
                "weights = self.softmax(scores)",
            ),
        ),
        kind="classification",
        symptom="Training loss falls faster, held-out loss rises earlier.",
        why="The layer is made and never called.",
        fix="Apply dropout to the weights, behind softmax.",
        hint="Which dropout layers are called in training?",
        equivalent_where=Configuration(
            kind="classification",
            shape={"dropout": 0.0},
            because="with a rate of zero there is nothing to leave out",
        ),
    ),
    Bug(
        name="dropout-before-softmax",
        title="Dropout is applied to scores in place of weights",
        family="architecture",
        component="dropout",
        edits=(
            Edit(
                "transformer",
                "weights = self.dropout(self.softmax(scores))",
                "weights = self.softmax(self.dropout(scores))",
            ),
        ),
        kind="causal language model",
        symptom="Training is noisier; the curve looks normal.",
        why="A dropped score is 0, not minus infinity: a hidden token that is dropped becomes visible.",
        fix="Apply dropout behind softmax.",
        hint="What does a score of 0 mean to softmax?",
        equivalent_where=Configuration(
            kind="causal language model",
            shape={"dropout": 0.0},
            because="with a rate of zero there is nothing to leave out",
        ),
    ),
    Bug(
        name="dropout-in-evaluation",
        title="Dropout stays on in evaluation",
        family="architecture",
        component="dropout",
        edits=(
            Edit(
                "transformer",
                "weights = self.dropout(self.softmax(scores))",
                "weights = nn.functional.dropout(self.softmax(scores), self.dropout.p)",
            ),
        ),
        kind="classification",
        symptom="The same text gets other scores at each call.",
        why="The function, unlike the layer, does not know the mode: it drops unless it is told not to.",
        fix="Use the layer, or pass training=self.training.",
        hint="Ask twice.",
        equivalent_where=Configuration(
            kind="classification",
            shape={"dropout": 0.0},
            because="with a rate of zero there is nothing to leave out",
        ),
    ),
    Bug(
        name="dropout-keeps-its-rate",
        title="Dropout is given the share to keep",
        family="architecture",
        component="dropout",
        edits=(
            Edit(
                "transformer",
                """\
self.softmax = nn.Softmax(dim=-1)
        self.dropout = nn.Dropout(config.dropout)""",
                """\
self.softmax = nn.Softmax(dim=-1)
        self.dropout = nn.Dropout(1 - config.dropout)""",
            ),
        ),
        kind="causal language model",
        symptom="Training is slow, and far worse in train mode than in eval mode.",
        why="Older libraries took the share to keep; torch takes the share to drop.",
        fix="Pass the share to drop.",
        hint="How many weights are zero in training?",
    ),
)
