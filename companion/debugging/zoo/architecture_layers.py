"""Bugs in normalisation, residual sums and the making of layers."""

from __future__ import annotations

from companion.debugging.zoo.bug import Bug, Edit

__all__ = ["BUGS"]

BUGS = (
    Bug(
        name="norm-over-time",
        title="Normalisation runs over the text",
        family="architecture",
        component="normalisation",
        edits=(
            Edit(
                "transformer",
                "class Block(nn.Module):",
                '''\
class Norm(nn.Module):
    """Layer normalisation, written out."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(batch, seq, width) to the same shape."""
        centred = x - x.mean(dim=1, keepdim=True)
        variance = centred.square().mean(dim=1, keepdim=True)
        return centred / (variance + self.eps).sqrt() * self.weight + self.bias


class Block(nn.Module):''',
            ),
            Edit(
                "transformer",
                "self.attention_norm = nn.LayerNorm(config.width, eps=config.eps)",
                "self.attention_norm = Norm(config.width, config.eps)",
            ),
        ),
        kind="causal language model",
        symptom="The loss falls below that of the right model.",
        why="Mean and variance are taken over tokens, later ones included, and padding too.",
        fix="Normalise each token by itself, over the width.",
        hint="Change the last word. Which scores move?",
    ),
    Bug(
        name="norm-over-batch",
        title="Normalisation runs over the batch",
        family="architecture",
        component="normalisation",
        edits=(
            Edit(
                "transformer",
                "class Block(nn.Module):",
                '''\
class Norm(nn.Module):
    """Layer normalisation, written out."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(batch, seq, width) to the same shape."""
        centred = x - x.mean(dim=0, keepdim=True)
        variance = centred.square().mean(dim=0, keepdim=True)
        return centred / (variance + self.eps).sqrt() * self.weight + self.bias


class Block(nn.Module):''',
            ),
            Edit(
                "transformer",
                "self.attention_norm = nn.LayerNorm(config.width, eps=config.eps)",
                "self.attention_norm = Norm(config.width, config.eps)",
            ),
        ),
        kind="classification",
        symptom="A text's scores depend on the texts beside it.",
        why="Mean and variance are taken over the rows of the batch.",
        fix="Normalise each token by itself, over the width.",
        hint="Give a text alone, then with others.",
    ),
    Bug(
        name="norm-used-twice",
        title="One normalisation serves both parts of a block",
        family="architecture",
        component="normalisation",
        edits=(
            Edit(
                "transformer",
                "self.feed_forward(self.feed_forward_norm(x))",
                "self.feed_forward(self.attention_norm(x))",
            ),
        ),
        kind="causal language model",
        symptom="The curve looks normal.",
        why="A name was copied: the second normalisation is never called nor trained.",
        fix="Give each part its own.",
        hint="Does every parameter get a gradient?",
    ),
    Bug(
        name="final-norm-missing",
        title="The last normalisation is not applied",
        family="architecture",
        component="normalisation",
        edits=(
            Edit("transformer", "return x if self.final_norm is None else self.final_norm(x)", "return x"),
        ),
        kind="causal language model",
        symptom="The loss begins low and falls slower.",
        why="The sums of a pre-norm model grow from layer to layer, and the head reads them raw.",
        fix="Normalise before the head.",
        hint="Does every parameter get a gradient?",
    ),
    Bug(
        name="norm-in-bfloat16",
        title="The last normalisation reads rounded numbers",
        family="architecture",
        component="normalisation",
        edits=(
            Edit(
                "transformer",
                "return x if self.final_norm is None else self.final_norm(x)",
                ("return x if self.final_norm is None else self.final_norm(x.bfloat16().float())"),
            ),
        ),
        kind="causal language model",
        symptom="The curve looks normal; scores agree with the right ones to two digits.",
        why="The residual sum is rounded to eight bits before its mean is taken off.",
        fix="Keep normalisation in float32.",
        hint="Where does precision get lost?",
    ),
    Bug(
        name="attention-residual-dropped",
        title="The residual sum around attention is missing",
        family="architecture",
        component="layers",
        edits=(
            Edit(
                "transformer",
                ("x = x + self.dropout(self.attention(self.attention_norm(x), visible, turns, cache))"),
                ("x = self.dropout(self.attention(self.attention_norm(x), visible, turns, cache))"),
            ),
        ),
        kind="causal language model",
        symptom="The loss falls slowly, the more so the deeper the model.",
        why="A token's own vector is gone behind the first layer, and gradients have no short way.",
        fix="Add what came in.",
        hint="What is left of x when attention gives zero?",
    ),
    Bug(
        name="feed-forward-residual-dropped",
        title="The residual sum around the feed-forward part is missing",
        family="architecture",
        component="layers",
        edits=(
            Edit(
                "transformer",
                "return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))",
                "return self.dropout(self.feed_forward(self.feed_forward_norm(x)))",
            ),
        ),
        kind="causal language model",
        symptom="The loss falls slowly, the more so the deeper the model.",
        why="What attention found is passed on only as far as the feed-forward part lets it through.",
        fix="Add what came in.",
        hint="What is left of x when the feed-forward part gives zero?",
    ),
    Bug(
        name="layers-shared",
        title="All layers are one layer",
        family="architecture",
        component="layers",
        edits=(
            Edit(
                "transformer",
                "nn.ModuleList(Block(config, layer) for layer in range(config.layers))",
                "nn.ModuleList([Block(config, 0)] * config.layers)",
            ),
        ),
        kind="causal language model",
        symptom="The curve looks normal; the model has fewer parameters than it should.",
        why="Multiplying a list repeats the reference, not the layer.",
        fix="Make a new block in a loop.",
        hint="Count the parameters.",
    ),
    Bug(
        name="layers-alike",
        title="All layers begin with the same weights",
        family="architecture",
        component="layers",
        edits=(
            Edit(
                "transformer",
                "import math\nfrom dataclasses",
                """\
import copy
import math
from dataclasses""",
            ),
            Edit(
                "transformer",
                "        self.reset_parameters()\n",
                """\
        self.reset_parameters()
        self.blocks = nn.ModuleList(copy.deepcopy(self.blocks[0]) for _ in self.blocks)
""",
            ),
        ),
        kind="causal language model",
        symptom="The curve looks normal.",
        why="A layer was drawn once and copied.",
        fix="Draw each layer's weights for itself.",
        hint="Compare the first two layers before training.",
    ),
    Bug(
        name="layers-not-registered",
        title="Layers are kept in a plain list",
        family="architecture",
        component="layers",
        edits=(
            Edit(
                "transformer",
                "nn.ModuleList(Block(config, layer) for layer in range(config.layers))",
                "[Block(config, layer) for layer in range(config.layers)]",
            ),
        ),
        kind="causal language model",
        symptom="The loss stops early; a saved model has lost its layers.",
        why=(
            "torch does not look into lists: the layers are not trained, moved, saved nor put into eval mode."
        ),
        fix="Use nn.ModuleList.",
        hint="Count the parameters.",
    ),
    Bug(
        name="last-layer-skipped",
        title="The last layer is never called",
        family="architecture",
        component="layers",
        edits=(Edit("transformer", "for block in self.blocks:", "for block in self.blocks[:-1]:"),),
        kind="causal language model",
        symptom="The curve looks like that of a model with one layer less.",
        why="A slice drops it.",
        fix="Go through all layers.",
        hint="Does every parameter get a gradient?",
    ),
    Bug(
        name="weights-not-reset",
        title="Weights keep torch's defaults",
        family="architecture",
        component="layers",
        edits=(Edit("transformer", "        self.reset_parameters()\n", ""),),
        kind="causal language model",
        symptom="The loss of the first batch is many times that of a guess.",
        why=(
            "Rows of an embedding table begin with a standard deviation of 1; tied to the head they "
            "give huge scores."
        ),
        fix="Draw small weights: a standard deviation of 0.02.",
        hint="What is the loss before the first step? What would a guess have?",
    ),
    Bug(
        name="weights-zero",
        title="Weights begin at zero",
        family="architecture",
        component="layers",
        edits=(Edit("transformer", "nn.init.normal_(parameter, std=0.02)", "nn.init.zeros_(parameter)"),),
        kind="classification",
        symptom="The loss stays at that of a guess.",
        why="Where all weights are zero, all outputs and nearly all gradients are zero too.",
        fix="Draw them at random.",
        hint="Which parameters get a gradient that is not zero?",
        silent=False,
    ),
)
