"""What a right ``model.py`` and ``train.py`` do, as numbers: each behaviour runs the code on drawn inputs.

Repairs are judged by these alone, never by how the code is written. Who compares the numbers sits outside.
"""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from typing import Any

from companion.exercises.broken_transformer import behaviour, model_behaviours, stub, train_behaviours
from companion.exercises.broken_transformer.behaviour import BEHAVIOURS, Behaviour, measure, names_of

__all__ = ["BEHAVIOURS", "Behaviour", "measure", "names_of", "run_all", "sources"]


def run_all(inputs: dict[str, Any]) -> dict[str, Any]:
    """Import the module under ``inputs["file"]`` and return each of its behaviours, or what it raised."""
    module = import_module(inputs["file"].removesuffix(".py"))
    return {name: measure(name, module, inputs["seed"]) for name in inputs["names"]}


def sources() -> dict[str, str]:
    """Return this module and those it needs as files that lie beside each other, without the course."""
    modules = (behaviour, stub, model_behaviours, train_behaviours, sys.modules[__name__])
    texts = {module.__name__.rpartition(".")[2]: inspect.getsource(module) for module in modules}
    package = __name__.rpartition(".")[0]
    return {
        f"{name}.py": text.replace(f"from {package} import ", "import ").replace(f"from {package}.", "from ")
        for name, text in texts.items()
    }
