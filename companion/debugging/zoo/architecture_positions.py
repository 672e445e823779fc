"""Bugs in positions."""

from __future__ import annotations

from companion.debugging.zoo.bug import Bug, Configuration, Edit

__all__ = ["BUGS"]

BUGS = (
    Bug(
        name="places-count-padding",
        title="Places count padding on the left",
        family="architecture",
        component="positions",
        edits=(
            Edit(
                "transformer",
                ("places = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -new:]"),
                (
                    "places = torch.arange(attention_mask.size(1), "
                    "device=input_ids.device)[-new:].expand(len(input_ids), -1)"
                ),
            ),
        ),
        kind="causal language model",
        symptom="The model writes well alone and badly in a batch that is padded on the left.",
        why="A padded text begins at a later place than the same text alone.",
        fix="Count places from the first real token.",
        hint="Give a text twice: alone, and with padding on the left.",
        settings={"pad_left": True},
        equivalent_where=Configuration(
            kind="causal language model",
            because="with padding on the right, the places count from the first token anyway",
        ),
    ),
    Bug(
        name="constant-places",
        title="All tokens have the same place",
        family="architecture",
        component="positions",
        edits=(
            Edit(
                "transformer",
                ("places = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -new:]"),
                "places = torch.zeros_like(input_ids)",
            ),
        ),
        kind="classification",
        symptom="The loss falls to that of a bag of words.",
        why="The place is 0 everywhere: order is not seen.",
        fix="Number the tokens.",
        hint="Reverse a text. Do the scores change?",
    ),
    Bug(
        name="places-along-the-batch",
        title="Places are counted along the batch",
        family="architecture",
        component="positions",
        edits=(Edit("transformer", "cumsum(dim=1)", "cumsum(dim=0)"),),
        kind="classification",
        symptom="A text's scores depend on its row in the batch.",
        why="The sum runs over the wrong axis: a place is the number of the row.",
        fix="Count along the text, dim=1.",
        hint="Swap two texts of a batch.",
    ),
    Bug(
        name="one-frequency",
        title="Sinusoids all turn at the same speed",
        family="architecture",
        component="positions",
        edits=(
            Edit(
                "transformer",
                "10_000.0 ** (-torch.arange(0, width, 2, device=device) / width)",
                ("10_000.0 ** (-(torch.arange(0, width, 2, device=device) // width)).float()"),
            ),
        ),
        kind="classification",
        symptom="Long texts train worse than short ones.",
        why=(
            "Integer division leaves only zeros: every pair turns once in about six places, and "
            "places repeat."
        ),
        fix="Divide, do not floor.",
        hint="Print the frequencies.",
        shape={"positions": "sinusoidal"},
    ),
    Bug(
        name="rotary-on-query-alone",
        title="Rotary positions turn queries but not keys",
        family="architecture",
        component="positions",
        edits=(
            Edit(
                "transformer",
                "query, key = rotate(query, turns), rotate(key, turns)",
                "query = rotate(query, turns)",
            ),
        ),
        kind="causal language model",
        symptom="The curve looks normal; nothing that was learned at one place holds at another.",
        why="The score of two tokens depends on where they are, not on how far apart.",
        fix="Turn queries and keys alike.",
        hint="Move a text by some places. Do its attention scores change?",
        shape={"positions": "rotary"},
    ),
    Bug(
        name="rotary-in-bfloat16",
        title="The angles of rotary positions are rounded to bfloat16",
        family="architecture",
        component="positions",
        edits=(
            Edit(
                "transformer",
                "    return torch.polar(torch.ones_like(angles), angles)",
                ("    return torch.polar(torch.ones_like(angles), angles.bfloat16().float())"),
            ),
        ),
        kind="causal language model",
        symptom="Nothing at short lengths; quality falls with length.",
        why=(
            "Angles need more than the eight bits of precision that bfloat16 has: far places get the "
            "same angle."
        ),
        fix="Compute angles in float32, whatever the weights are in.",
        hint="Which numbers grow with the length of the text?",
        shape={"positions": "rotary"},
    ),
)
