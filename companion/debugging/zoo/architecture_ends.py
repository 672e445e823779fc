"""Bugs in the feed-forward part, the word table and the head."""

from __future__ import annotations

from companion.debugging.zoo.bug import Bug, Configuration, Edit

__all__ = ["BUGS"]

BUGS = (
    Bug(
        name="activation-missing",
        title="The feed-forward part has no activation",
        family="architecture",
        component="feed-forward",
        edits=(
            Edit(
                "transformer",
                "self.contract(self.activation(self.expand(x)))",
                "self.contract(self.expand(x))",
            ),
        ),
        kind="causal language model",
        symptom="The curve looks normal, slightly worse.",
        why="Two linear maps in a row are one linear map.",
        fix="Apply the activation between them.",
        hint="Double the input of the feed-forward part, biases aside.",
    ),
    Bug(
        name="activation-at-the-end",
        title="The activation comes behind both linear maps",
        family="architecture",
        component="feed-forward",
        edits=(
            Edit(
                "transformer",
                "self.contract(self.activation(self.expand(x)))",
                "self.activation(self.contract(self.expand(x)))",
            ),
        ),
        kind="causal language model",
        symptom="The loss falls slower.",
        why="The wide part is linear, and what is added to the residual sum can hardly be negative.",
        fix="Apply the activation between the two maps.",
        hint="Which sign has what the feed-forward part adds?",
    ),
    Bug(
        name="wrong-gelu",
        title="The other GELU",
        family="architecture",
        component="feed-forward",
        edits=(Edit("transformer", '"gelu": nn.GELU(),', '"gelu": nn.GELU(approximate="tanh"),'),),
        kind="causal language model",
        symptom="Nothing in training; weights from elsewhere give slightly other scores.",
        why=(
            "There is an exact GELU and an approximation; a model must use the one that it was trained with."
        ),
        fix="Use the one that the name stands for.",
        hint="Compare with the model that the weights are from.",
    ),
    Bug(
        name="tying-lost",
        title="The head has a copy of the word table",
        family="architecture",
        component="embeddings and head",
        edits=(
            Edit(
                "transformer",
                "self.head.weight = self.tokens.weight",
                "self.head.weight = nn.Parameter(self.tokens.weight.detach().clone())",
            ),
        ),
        kind="causal language model",
        symptom="The curve looks normal; the model has more parameters than it should.",
        why="Cloned weights begin equal and part ways at the first step.",
        fix="Assign the parameter itself.",
        hint="Is it one object, or two that are equal?",
    ),
    Bug(
        name="double-softmax",
        title="The model returns probabilities",
        family="architecture",
        component="embeddings and head",
        edits=(Edit("transformer", "return self.head(hidden)", "return self.head(hidden).softmax(dim=-1)"),),
        kind="causal language model",
        symptom="The loss falls a little and stops far too high.",
        why="Cross-entropy takes softmax itself; of numbers between 0 and 1 it is almost uniform.",
        fix="Return scores, and take softmax where probabilities are needed.",
        hint="What do the scores of a token sum to?",
    ),
    Bug(
        name="word-table-cut-off",
        title="The word table gets no gradient",
        family="architecture",
        component="embeddings and head",
        edits=(Edit("transformer", "x = self.tokens(input_ids)", "x = self.tokens(input_ids).detach()"),),
        kind="classification",
        symptom="The loss falls slower.",
        why="detach() cuts the graph: words keep their random vectors.",
        fix="Do not detach.",
        hint="Does every parameter get a gradient?",
    ),
    Bug(
        name="reads-padding",
        title="A decoder's class is read from the last column",
        family="architecture",
        component="embeddings and head",
        edits=(
            Edit(
                "transformer",
                "return (attention_mask.bool() * steps).argmax(dim=1)",
                "return steps[-1:].expand(len(attention_mask))",
            ),
        ),
        kind="classification",
        symptom="A text gets other scores beside a long one than alone.",
        why="The last column is padding for all texts but the longest.",
        fix="Read the last real token.",
        hint="Give a text twice: alone, and padded.",
        shape={"causal": True},
        equivalent_where=Configuration(
            kind="classification",
            shape={"causal": True},
            settings={"pad_left": True},
            because="with padding on the left, the last column is each text's last token",
        ),
    ),
    Bug(
        name="mean-over-padding",
        title="The class is read from a mean that counts padding",
        family="architecture",
        component="embeddings and head",
        edits=(
            Edit(
                "transformer",
                (
                    "hidden = hidden[torch.arange(len(hidden)), self.summary_position(attention_mask[:, "
                    "past:])]"
                ),
                "hidden = hidden.mean(dim=1)",
            ),
        ),
        kind="classification",
        symptom="A text gets other scores beside a long one than alone.",
        why="Padding has hidden states too, and the mean takes them in.",
        fix="Take the mean over real tokens, or read one of them.",
        hint="Give a text twice: alone, and padded.",
    ),
)
