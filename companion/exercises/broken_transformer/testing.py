"""The step ``tests``: a learner's own tests, on right code and on the code that they were given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from companion.debugging.zoo.bug import Edit
from companion.debugging.zoo.editing import right_source, source_of
from companion.exercises.broken_transformer.planted import Planted
from companion.exercises.broken_transformer.repairing import folder_of, load_module, module_of
from companion.exercises.exercise import Step
from companion.exercises.probing import Failed, NotDone, Probe

__all__ = ["VARIANTS", "tests_of", "tests_step", "variant"]

VARIANTS: Mapping[str, tuple[Edit, ...]] = {
    "the right code": (),
    "norms after the sums": (
        Edit("transformer", 'norm: Literal["pre", "post"] = "pre"', 'norm: Literal["pre", "post"] = "post"'),
    ),
    "rotary positions": (Edit("transformer", '"rotary"] = "learned"', '"rotary"] = "rotary"'),),
    "sinusoidal positions": (Edit("transformer", '"rotary"] = "learned"', '"rotary"] = "sinusoidal"'),),
    "untied tables": (Edit("transformer", "tied: bool = True", "tied: bool = False"),),
}
"""Right transformers that are not alike: the defaults of the right code, changed."""


def variant(edits: tuple[Edit, ...]) -> tuple[str, str]:
    """Return the sources of ``model.py`` and ``train.py`` with edits of the right code.

    Raises
    ------
    ValueError
        When the right code does not hold what an edit replaces exactly once.
    """
    sources = {"transformer": right_source("transformer"), "recipe": right_source("recipe")}
    for edit in edits:
        count = sources[edit.file].count(edit.before)
        if count != 1:
            raise ValueError(f"{edit.before!r} occurs {count} times in the {edit.file}, expected once")
        sources[edit.file] = sources[edit.file].replace(edit.before, edit.after)
    return sources["transformer"], sources["recipe"]


def tests_of(module: ModuleType) -> dict[str, Callable[[Any, Any], Any]]:
    """Return a module's functions that begin with ``test_``."""
    return {
        name: value for name, value in vars(module).items() if name.startswith("test_") and callable(value)
    }


def tests_step(planted: Planted) -> Step:
    """Return the step for a learner's tests."""

    def examine(work: Any, probe: Probe) -> str:
        path = folder_of(work, planted) / "test_broken.py"
        tests = tests_of(probe.call(load_module, path, what="import test_broken.py"))
        if not tests:
            raise NotDone("test_broken.py has no function that begins with test_")
        for name in ("the right code", "norms after the sums", "rotary positions", "untied tables"):
            objecting = _objecting(path, variant(VARIANTS[name]), probe, name)
            probe.require(
                not objecting,
                f"tests that object to {name}",
                "none",
                ", ".join(objecting) or "none",
                f"{', '.join(objecting)} fails on right code ({name}). Test what any right "
                "transformer does, not "
                "what this one looks like.",
            )
        found = []
        for family, bug in zip(("architecture", "training", "data"), planted.bugs, strict=True):
            model, train = source_of(bug, "transformer"), source_of(bug, "recipe")
            objecting = _objecting(path, (model, train), probe, f"the {family} bug alone")
            probe.show(
                f"tests that find the {family} bug",
                "at least one",
                ", ".join(objecting) or "none",
                bool(objecting),
            )
            found += [family] * bool(objecting)
        missing = {"architecture", "training", "data"} - set(found)
        if missing:
            raise Failed(
                f"no test finds the {' and the '.join(sorted(missing))} bug that you were given. "
                "Write down how you "
                "found it: that is the test."
            )
        return (
            "they leave right code alone and find your three bugs. Others, which you have not "
            "seen, come in grading."
        )

    return Step(
        name="tests",
        title="Tests of your own",
        task=(
            "test_broken.py: plain functions test_...(model, train) that are given the two modules, "
            "pass on right "
            "code and fail on wrong code. They will meet bugs that you have not seen, and right "
            "transformers that "
            "are built differently. Give the check the folder that you work in."
        ),
        hints=(
            "What must be true of every right transformer, whatever its norms and positions? What "
            "must no text's "
            "score depend on?",
            "Change what must not matter, and assert that nothing changes: the content of padding, "
            "the other texts "
            "of a batch, the order of a batch, a repeated evaluation. Change what must matter, and "
            "assert that "
            "something does: a word, the mode, the mask. Fresh weights hide differences: make them "
            "larger first.",
            "Take, for example, a batch with padding: assert torch.allclose(scores(ids), scores(ids "
            "with other "
            "words at the padding)); from train.collate: assert mask.sum(1) equals the lengths; from "
            "train.train "
            "on a stub: record the learning rate of each step, and assert that it rises, peaks and falls.",
        ),
        examine=examine,
        seconds=120.0,
    )


def _objecting(path: Any, sources: tuple[str, str], probe: Probe, what: str) -> list[str]:
    """Return the names of the tests that fail on two sources, all modules made anew."""
    import torch

    def run() -> list[str]:
        objecting = []
        tests = tests_of(load_module(path))
        with torch.random.fork_rng(devices=[]):
            for name, test in tests.items():
                torch.manual_seed(probe.seed)
                model = module_of(sources[0], "model", "model.py")
                train = module_of(sources[1], "train", "train.py")
                try:
                    test(model, train)
                except Exception:
                    objecting.append(name)
        return objecting

    found: list[str] = probe.call(run, what=f"test_broken.py on {what}")
    return found
