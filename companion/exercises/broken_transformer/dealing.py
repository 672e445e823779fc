"""Writes the folder that a learner works in."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from companion.debugging.zoo.bug import Bug
from companion.exercises.broken_transformer.planted import Seed, plant
from companion.exercises.broken_transformer.reviewing import reviews

__all__ = ["HANDED_IN", "MAIN", "deal", "seed_of"]

HANDED_IN = ("model.py", "train.py", "diagnosis.json", "test_broken.py")
"""What a learner hands in."""

MAIN = '''

EPOCHS = 4


def read_reviews(path: str) -> list[tuple[str, str, int]]:
    """Return (split, text, label) of each review in a file."""
    import csv

    with open(path, encoding="utf-8", newline="") as file:
        return [(row["split"], row["text"], int(row["label"])) for row in csv.DictReader(file)]


def experiment(
    model_file: Any, reviews: Sequence[tuple[str, str, int]], settings: Settings
) -> tuple[nn.Module, dict[str, list[Row]], list[float]]:
    """Train the Transformer of a module; return it, the rows of each split, and the loss of each step."""
    vocabulary = Vocabulary([text for part, text, _ in reviews if part == "train"])
    rows: dict[str, list[Row]] = {"train": [], "dev": []}
    for part, text, label in reviews:
        rows[part].append((vocabulary.encode(text, settings.max_length), label))
    torch.manual_seed(settings.seed)
    config = model_file.TransformerConfig(
        len(vocabulary), width=32, max_length=settings.max_length, classes=2
    )
    model = model_file.Transformer(config)
    return model, rows, train(model, rows["train"], settings)


def main() -> None:
    """Train on reviews.csv and print the accuracy on its held-out part."""
    import model as model_file

    settings = Settings(epochs=EPOCHS)
    model, rows, losses = experiment(model_file, read_reviews("reviews.csv"), settings)
    for step, loss in enumerate(losses):
        if step % 10 == 0 or step == len(losses) - 1:
            print(f"step {step:4}  loss {loss:.3f}")
    print(f"held-out accuracy {evaluate(model, list(batches(rows['dev'], settings))):.3f}")


if __name__ == "__main__":
    main()
'''
"""What ``train.py`` has more than the recipe: the run that a learner starts."""

_TASK = """# A broken transformer

`python train.py` trains a classifier of reviews. It runs, the loss falls, and the result is poor: three bugs
are in the two files. One is in the **architecture** (`model.py`), one in the **training** and one in the way
the **data** reaches the model (both in `train.py`).

Hand in four files, in this folder:

1. `model.py` and `train.py`, repaired. They are judged by what they do. Write them as you like, but keep what
   others rely on: the classes `Transformer` and `TransformerConfig` and the names of the parameters, so that
   a saved model still loads; `Settings`, `Vocabulary`, `split`, `collate`, `batches`, `mean_loss`,
   `make_optimizer`, `make_schedule`, `train_step`, `evaluate` and `train` with their arguments; an Adam.
2. `diagnosis.json`: a list of three entries, one for each bug. `file`; `function` (its name, `Class.method`
   or a class's name) or `lines` ([first, last], counted in the file as you got it); `family`: "architecture",
   "training" or "data"; `what`: one sentence.
3. `test_broken.py`: tests of your own, plain functions `test_...(model, train)` that are given the two
   modules. They pass on right code and fail on wrong code. They are run on other bugs that you have not seen,
   and on right transformers that are not this one: other norms, other positions, untied tables. A test that
   objects to those costs as much as one that misses a bug. Use small models: all of them have 3 seconds.

The repairs are worth 50 marks of 100, the diagnosis 20, your tests 30. The right code is
in the package that you have installed, and comparing the files gives the repairs and their places away. It
gives away neither why a line is wrong, nor a test that finds the next bug.

Check as you go, in Python:

    from companion.exercises.broken_transformer import exercise
    work = exercise({argument})
    work.check("data", "{folder}")     # also: "training", "architecture", "tests"
    work.hint("data")
"""

_DIAGNOSIS = [
    {"file": "model.py", "function": "", "family": "architecture", "what": ""},
    {"file": "train.py", "function": "", "family": "training", "what": ""},
    {"file": "train.py", "function": "", "family": "data", "what": ""},
]

_TESTS = '''"""Tests of a transformer and of what trains it. Each is given the two modules."""

import torch


def test_scores_have_one_number_for_each_class(model, train):
    config = model.TransformerConfig(50, width=16, heads=2, classes=2)
    scores = model.Transformer(config)(torch.randint(3, 50, (4, 7)))
    assert scores.shape == (4, 2)
'''


def deal(folder: str | Path, seed: Seed = "default", *, pool: Sequence[Bug] | None = None) -> Path:
    """Write a folder with three bugs in it: all of it, or nothing.

    Parameters
    ----------
    folder : str or Path
        Must not exist yet, or be empty.
    seed : int or "default"
        Another three bugs for each number. ``"default"``: attention without dropout, a learning rate that is
        too high without warm-up, padding that is not masked.
    pool : sequence of Bug, optional
        Bugs to draw from instead of the zoo's.

    Returns
    -------
    Path
        The folder, with ``model.py``, ``train.py``, ``reviews.csv``, ``README.md``, and beginnings of
        ``diagnosis.json`` and ``test_broken.py``.

    Raises
    ------
    ValueError
        When there is something in the folder, or the path is a file.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is there already: choose a folder that does not exist, or an empty one")
    planted = plant(seed, pool)
    argument = "" if seed == "default" else f"seed={seed}"
    files = {
        "model.py": planted.model,
        "train.py": planted.train + MAIN,
        "reviews.csv": reviews(),
        "README.md": _TASK.replace("{argument}", argument).replace("{folder}", str(folder)),
        "diagnosis.json": json.dumps(_DIAGNOSIS, indent=2) + "\n",
        "test_broken.py": _TESTS,
        "exercise.json": json.dumps({"exercise": "broken-transformer", "seed": seed}) + "\n",
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for name, text in files.items():
            (staging / name).write_text(text, encoding="utf-8", newline="")
        staging.chmod(0o755)
        # Replaces an empty folder, and fails where something has come into it meanwhile.
        staging.rename(target)
    except OSError as error:
        raise ValueError(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def seed_of(folder: str | Path) -> Seed:
    """Return the seed that a folder was dealt with.

    Raises
    ------
    FileNotFoundError
        When the folder was not made by `deal`.
    ValueError
        When its ``exercise.json`` is not what `deal` wrote.
    """
    path = Path(folder) / "exercise.json"
    # A link could name any file of whoever reads it.
    if path.is_symlink() or not path.is_file():
        raise FileNotFoundError(f"no exercise.json in {folder}: expected a folder that `deal` has written")
    try:
        seed = json.loads(path.read_text(encoding="utf-8"))["seed"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not what `deal` wrote ({error}): deal again, and copy your work"
        ) from error
    if seed == "default" or type(seed) is int:
        return seed  # type: ignore[no-any-return]
    raise ValueError(f'{path} has the seed {seed!r}, expected a whole number or "default"')
