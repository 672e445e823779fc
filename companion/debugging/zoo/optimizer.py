"""Bugs in the optimizer and the schedule."""

from __future__ import annotations

from companion.debugging.zoo.bug import Bug, Configuration, Edit

__all__ = ["BUGS"]

BUGS = (
    Bug(
        name="optimizer-misses-biases",
        title="The optimizer does not have biases and norms",
        family="training",
        component="optimizer",
        edits=(Edit("recipe", "if parameter.dim() <= 1]", "if parameter.dim() < 1]"),),
        kind="causal language model",
        symptom="The curve looks normal.",
        why="No parameter has less than one dimension: the second group is empty.",
        fix="Make groups that hold every parameter once.",
        hint="Add up the parameters in the optimizer's groups.",
    ),
    Bug(
        name="optimizer-has-the-head-alone",
        title="The optimizer has the head's matrix alone",
        family="training",
        component="optimizer",
        edits=(
            Edit(
                "recipe",
                ("matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]"),
                ("matrices = [parameter for parameter in model.head.parameters() if parameter.dim() > 1]"),
            ),
        ),
        kind="classification",
        symptom="The loss falls slowly and stops early.",
        why="A line from training a head on frozen layers was left in.",
        fix="Make groups that hold every parameter once.",
        hint="Which parameters move?",
    ),
    Bug(
        name="decay-on-everything",
        title="Weight decay pulls on norms and biases",
        family="training",
        component="optimizer",
        edits=(
            Edit(
                "recipe",
                '{"params": others, "weight_decay": 0.0}',
                '{"params": others, "weight_decay": settings.weight_decay}',
            ),
        ),
        kind="causal language model",
        symptom="The curve looks normal.",
        why="Decay pulls the weights of norms towards zero, where the right value is about one.",
        fix="Decay matrices and tables alone.",
        hint="Which groups does the optimizer have?",
        equivalent_where=Configuration(
            kind="causal language model",
            settings={"weight_decay": 0.0},
            because="a decay of zero pulls on nothing",
        ),
    ),
    Bug(
        name="adam-with-l2",
        title="Adam in place of AdamW",
        family="training",
        component="optimizer",
        edits=(Edit("recipe", "torch.optim.AdamW(groups", "torch.optim.Adam(groups"),),
        kind="causal language model",
        symptom="The curve looks normal; weight decay does next to nothing.",
        why=(
            "Adam divides the decay by the size of the gradients along with them (Loshchilov and "
            "Hutter, 2019)."
        ),
        fix="Use AdamW, which decays weights by themselves.",
        hint="How much does a weight without a gradient shrink at a step?",
        settings={"weight_decay": 0.1},
        equivalent_where=Configuration(
            kind="causal language model",
            settings={"weight_decay": 0.0},
            because="without decay Adam and AdamW are one",
        ),
    ),
    Bug(
        name="adam-without-bias-correction",
        title="Adam without bias correction",
        family="training",
        component="optimizer",
        edits=(
            Edit(
                "recipe",
                "def make_optimizer(",
                '''\
class Adam(torch.optim.Optimizer):
    """Adam, written out."""

    def __init__(self, groups, lr: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                state["mean"].lerp_(parameter.grad, 1 - 0.9)
                state["square"].lerp_(parameter.grad**2, 1 - 0.999)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(group["lr"] * state["mean"] / (state["square"].sqrt() + 1e-8))


def make_optimizer(''',
            ),
            Edit("recipe", "torch.optim.AdamW(groups", "Adam(groups"),
        ),
        kind="causal language model",
        symptom="The first steps are too large; later the curve looks normal.",
        why=(
            "Running means begin at zero, the mean of squares more slowly than the mean: their ratio "
            "is too large at first."
        ),
        fix="Divide both means by one minus their rate to the power of the step.",
        hint="How far does a parameter move at the first step, in learning rates?",
    ),
    Bug(
        name="learning-rate-too-high",
        title="The learning rate is thirty times too high",
        family="training",
        component="optimizer",
        edits=(Edit("recipe", "learning_rate: float = 1e-3", "learning_rate: float = 3e-2"),),
        kind="causal language model",
        symptom="The loss jumps, or stays at that of word counts.",
        why="Steps are longer than the region in which the gradient says anything.",
        fix="Try rates on a grid, a factor of three apart.",
        hint="How far do weights move at a step, in their own size?",
        silent=False,
    ),
    Bug(
        name="learning-rate-too-low",
        title="The learning rate is a hundred times too low",
        family="training",
        component="optimizer",
        edits=(Edit("recipe", "learning_rate: float = 1e-3", "learning_rate: float = 1e-5"),),
        kind="causal language model",
        symptom="The loss falls in a straight, slow line.",
        why="The run ends long before the model is trained.",
        fix="Try rates on a grid, a factor of three apart.",
        hint="How far do weights move at a step, in their own size?",
        silent=False,
    ),
    Bug(
        name="schedule-too-fast",
        title="The learning rate reaches zero after a quarter of the steps",
        family="training",
        component="schedule",
        edits=(
            Edit(
                "recipe",
                "    warmup = max(1, round(settings.warmup * steps))\n",
                """\
    steps = steps // 4  # in batches of micro-batches
    warmup = max(1, round(settings.warmup * steps))
""",
            ),
        ),
        kind="causal language model",
        symptom="The curve is flat from a quarter on, and looks converged.",
        why="Somebody divided by the number of micro-batches what counted steps already.",
        fix="Count what the schedule counts.",
        hint="What is the learning rate halfway?",
    ),
    Bug(
        name="no-warm-up",
        title="The learning rate starts at its full height",
        family="training",
        component="schedule",
        edits=(
            Edit(
                "recipe",
                """\
        if step < warmup:
            return (step + 1) / (warmup + 1)
""",
                "",
            ),
        ),
        kind="causal language model",
        shape={"norm": "post"},
        symptom="The curve looks normal, or jumps in its first steps.",
        why="Adam's first estimates are poor, and its first steps are full ones. A norm after each sum makes "
        "the gradients near the output large then.",
        fix="Raise the rate over the first steps.",
        hint="What is the learning rate at the first step?",
    ),
    Bug(
        name="schedule-rises",
        title="The learning rate rises to the end",
        family="training",
        component="schedule",
        edits=(Edit("recipe", "(steps - step) / max(1, steps - warmup)", "step / max(1, steps - warmup)"),),
        kind="causal language model",
        symptom="The loss is noisy at the end, where it should settle.",
        why="The share of the steps that are over stands where the share that is left should.",
        fix="Let the rate fall to zero.",
        hint="What is the learning rate at the last step?",
    ),
)
