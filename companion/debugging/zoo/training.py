"""Bugs in the training step."""

from __future__ import annotations

from companion.debugging.zoo.bug import Bug, Configuration, Edit

__all__ = ["BUGS"]

BUGS = (
    Bug(
        name="mean-of-means",
        title="Accumulated gradients are a mean of means",
        family="training",
        component="training step",
        edits=(
            Edit(
                "recipe", "loss.backward()  # type: ignore[no-untyped-call]", "(loss / predicted).backward()"
            ),
            Edit("recipe", "parameter.grad /= max(count, 1)", "parameter.grad /= len(parts)"),
        ),
        kind="causal language model",
        symptom="The curve looks normal; runs with and without accumulation differ.",
        why="Each part is divided by its own number of words: words of short parts weigh more.",
        fix="Add up sums, and divide by all words at the end.",
        hint="Take one step on a batch, whole and in parts of unlike length.",
        settings={"micro_batches": 4},
        equivalent_where=Configuration(
            kind="classification", because="parts of one size predict the same number of labels"
        ),
    ),
    Bug(
        name="accumulation-not-divided",
        title="Accumulated gradients are a sum of means",
        family="training",
        component="training step",
        edits=(
            Edit(
                "recipe", "loss.backward()  # type: ignore[no-untyped-call]", "(loss / predicted).backward()"
            ),
            Edit("recipe", "parameter.grad /= max(count, 1)", "parameter.grad /= 1"),
        ),
        kind="causal language model",
        symptom=(
            "Nothing without accumulation; with it, gradients are as many times larger as there are parts."
        ),
        why="The mean over the parts is missing, which clipping and Adam partly hide.",
        fix="Divide by all that was predicted in all parts.",
        hint="Take one step on a batch, whole and in parts.",
        settings={"micro_batches": 4},
    ),
    Bug(
        name="zero-grad-missing",
        title="Gradients are never set to zero",
        family="training",
        component="training step",
        edits=(Edit("recipe", "    optimizer.zero_grad()\n", ""),),
        kind="causal language model",
        symptom="The curve looks normal; clipping hides that gradients only grow.",
        why="Each step follows the sum of all gradients so far.",
        fix="Set gradients to zero before each step's first backward.",
        hint="How does the norm of the gradients move from step to step?",
    ),
    Bug(
        name="zero-grad-before-step",
        title="Gradients are set to zero before the step",
        family="training",
        component="training step",
        edits=(
            Edit(
                "recipe",
                "    optimizer.step()\n",
                """\
    optimizer.zero_grad()
    optimizer.step()
""",
            ),
        ),
        kind="causal language model",
        symptom="The loss does not move.",
        why="The optimizer finds no gradients.",
        fix="Set them to zero behind the step, or before backward.",
        hint="Do parameters move?",
        silent=False,
    ),
    Bug(
        name="clip-after-step",
        title="Gradients are clipped behind the step",
        family="training",
        component="training step",
        edits=(
            Edit(
                "recipe",
                """\
    nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
    optimizer.step()
""",
                """\
    optimizer.step()
    nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
""",
            ),
        ),
        kind="causal language model",
        symptom="The curve looks normal until a batch with a huge gradient comes.",
        why="What is clipped has been used already.",
        fix="Clip between backward and step.",
        hint="What is the norm of the gradients that the optimizer sees?",
        settings={"max_grad_norm": 0.1},
        equivalent_where=Configuration(
            kind="causal language model",
            settings={"max_grad_norm": 1000000000.0},
            because="nothing is clipped by a limit that is never reached",
        ),
    ),
    Bug(
        name="never-in-training-mode",
        title="The model is not put back into training mode",
        family="training",
        component="dropout",
        edits=(Edit("recipe", "    model.train()\n    optimizer.zero_grad()", "    optimizer.zero_grad()"),),
        kind="classification",
        symptom="Behind the first evaluation, training loss falls faster and held-out loss rises.",
        why="Evaluation switches dropout off, and nobody switches it on again.",
        fix="Call model.train() in the step.",
        hint="Which mode is the model in at the second epoch?",
        equivalent_where=Configuration(
            kind="classification", shape={"dropout": 0.0}, because="without dropout the two modes are one"
        ),
    ),
)
