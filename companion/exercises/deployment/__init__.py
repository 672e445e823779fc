"""Exercise 3, deploy a model behind HTTP: a naive server to repair, and checks that ask it from outside.

`deal` writes the folder, `exercise` checks it as the learner goes, `inspect_folder` says all at once.
A server is judged by what it answers, whatever it is written in.
"""

from __future__ import annotations

from companion.exercises.deployment.dealing import deal
from companion.exercises.deployment.findings import CHECKS, ServerFinding, ServerInspection
from companion.exercises.deployment.folders import model_step, server_step
from companion.exercises.deployment.inspecting import Site, inspect, inspect_folder
from companion.exercises.deployment.material import Material, Requirements, draw
from companion.exercises.deployment.parts import padding_step, probabilities_step
from companion.exercises.deployment.submission import ServerSubmission, naive_server, read_submission
from companion.exercises.exercise import Exercise

__all__ = [
    "CHECKS",
    "Material",
    "Requirements",
    "ServerFinding",
    "ServerInspection",
    "ServerSubmission",
    "Site",
    "deal",
    "draw",
    "exercise",
    "inspect",
    "inspect_folder",
    "naive_server",
    "read_submission",
]


def exercise(wanted: Requirements | None = None) -> Exercise:
    """Return the exercise, with nothing done.

    Parameters
    ----------
    wanted : Requirements, optional
        What a model and a server have to reach. Default: those of `Requirements`.

    Returns
    -------
    Exercise
        Steps: ``padding`` and ``probabilities`` take functions, ``model`` the exported folder, ``server`` the
        folder with ``serve.toml``.
    """
    steps = (padding_step(), probabilities_step(), model_step(wanted), server_step(wanted))
    return Exercise("deployment", "Deploy a model behind HTTP", steps)
