"""The steps ``model`` and ``server``: an exported folder, and a folder that starts a server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from companion.exercises.deployment.answers import judge_int8
from companion.exercises.deployment.inspecting import inspect_folder
from companion.exercises.deployment.material import Requirements, draw
from companion.exercises.deployment.offline import read_facts
from companion.exercises.exercise import Step
from companion.exercises.probing import Failed, NotDone, Probe

__all__ = ["model_step", "server_step"]


def model_step(wanted: Requirements | None = None) -> Step:
    """Return the step in which a model is made small.

    Parameters
    ----------
    wanted : Requirements, optional
    """

    def examine(work: Any, probe: Probe) -> str:
        folder = _folder(work)
        material = draw(probe.seed, requirements=replace(wanted or Requirements(), each_round=1))
        probe.tried.append(f"answer {len(material.texts)} fresh texts with it, and look at what ran")
        try:
            facts = read_facts(folder, material.texts)
        except ValueError as error:
            raise Failed(f"the folder cannot be used: {error}") from error
        whole = judge_int8(facts, True, material.requirements)
        probe.require(whole.passed, "numbers", whole.expected, whole.found, f"{whole.found}. {whole.advice}")
        guesses = [row.index(max(row)) for row in facts.probabilities]
        right = sum(a == b for a, b in zip(guesses, material.labels, strict=True)) / len(guesses)
        least = material.requirements.accuracy
        why = f"{right:.0%} of the texts are right: train longer, or export again from the right folder"
        probe.require(right >= least, "accuracy", f"at least {least:.0%}", f"{right:.0%}", why)
        return f"it computes in whole numbers, and {right:.0%} of texts written for this are right."

    return Step(
        name="model",
        title="A small model",
        task="Export the fine-tuned model in eight bits. Give the check the exported folder.",
        hints=(
            "What does a server need of a model, and what does it not need of training?",
            "companion.inference.export writes such a folder; one of its arguments says how many bits.",
            'inference.export(source, folder, precision="int8")',
        ),
        examine=examine,
        seconds=300.0,
    )


def server_step(wanted: Requirements | None = None) -> Step:
    """Return the step in which the server is started and asked.

    Parameters
    ----------
    wanted : Requirements, optional
    """

    def examine(work: Any, probe: Probe) -> str:
        folder = _folder(work)
        material = draw(probe.seed, requirements=wanted)
        probe.tried.append("start the server, ask it, stop it, and race it against the naive one")
        try:
            inspection = inspect_folder(folder, material)
        except (ValueError, FileNotFoundError) as error:
            raise Failed(str(error)) from error
        for one in inspection.findings:
            probe.show(one.check, one.expected, one.found, one.passed)
        wrong = [one for one in inspection.findings if not one.passed]
        if wrong:
            raise Failed(f"{inspection.score:.0f} of 100. First {wrong[0].check}: {wrong[0].advice}")
        return f"all checks pass; throughput is {inspection.of('throughput').found}."

    return Step(
        name="server",
        title="A server to trust",
        task="Repair server.py, or write another server, so that README.md holds. Give the check the folder.",
        hints=(
            "Do two requests get the same answer as one alone? What happens to the second while the first "
            "is computed? What happens to both when the server is told to stop?",
            "Load in the lifespan, pad only to the longest text, give the mask, apply the softmax, compute "
            "in a thread, and describe the body with a pydantic model whose errors become 422.",
            'command = ["companion", "serve", "{model}", "--port", "{port}"] in serve.toml passes; read what '
            "it does in companion/deployment, and then write your own.",
        ),
        examine=examine,
        seconds=300.0,
    )


def _folder(work: Any) -> Path:
    if work is None or work is ...:
        raise NotDone("nothing was given")
    if not isinstance(work, str | Path):
        raise Failed(f"a {type(work).__name__} was given, expected a folder.")
    if not Path(work).is_dir():
        raise Failed(f"there is no folder {work}.")
    return Path(work)
