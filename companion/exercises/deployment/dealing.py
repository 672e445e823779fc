"""Writes the folder that a learner works in: the naive server, how it starts, and the task."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from companion.exercises.deployment.findings import CHECKS
from companion.exercises.deployment.submission import CONFIGURATION, NAIVE

__all__ = ["START", "deal"]

START = """# How the server is started, in this folder. PORT and MODEL are in its environment,
# and {port} and {model} in the command are replaced by the same.
command = ["python", "server.py"]
# The folder that companion export made, with model.onnx in it.
model = "model"
"""

_TASK = """# A server to trust

`server.py` answers, and that is all. Put the folder of an exported model under `model`, and try it:

    PORT=8000 MODEL=model python server.py
    curl -d '{"text": "Not a bad film."}' localhost:8000/predict

Repair it, or write another one in any language, and say in `serve.toml` how it starts. Hand in this folder.
The server is started and asked; nobody reads its code. What it has to do:

- `GET /health/ready` answers 200 as soon as, and not before, texts can be answered.
- `POST /predict` takes `{"text": "..."}` and answers
  `{"label": "positive", "probabilities": {"negative": 0.1, "positive": 0.9}}`, all digits, and more fields if
  you like: the probabilities that the model in the folder
  gives this text alone. Texts are cut at the model's `max_length`, in `manifest.json`.
- It listens on 127.0.0.1, at the port in `PORT`. It has no network, starts programs that are installed or lie
  in this folder, writes below `TMPDIR` alone, and has 2 GiB of memory.
- SIGTERM ends it: what was accepted is answered first.

| Check | The server | Marks |
|---|---|---|
{checks}

Without right answers there are no marks for the rest. Check as you go, in Python:

    from companion import exercises
    work = exercises.load("deployment")
    work.check("server", "{folder}")
    work.hint("server")
"""


def deal(folder: str | Path) -> Path:
    """Write ``server.py``, ``serve.toml`` and ``README.md``: all of them, or nothing.

    Parameters
    ----------
    folder : str or Path
        Must not exist yet, or be empty.

    Returns
    -------
    Path
        The folder. The model that it is to serve is the learner's to make, as ``model`` in it.

    Raises
    ------
    ValueError
        When there is something in the folder, or it cannot be written.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is there already: choose a folder that does not exist, or an empty one")
    checks = "\n".join(f"| {name} | {title} | {marks} |" for name, (title, marks) in CHECKS.items())
    files = {
        "server.py": NAIVE.read_text(encoding="utf-8"),
        CONFIGURATION: START,
        "README.md": _TASK.replace("{checks}", checks).replace("{folder}", str(folder)),
    }
    staging = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        for name, text in files.items():
            (staging / name).write_text(text, encoding="utf-8", newline="")
        staging.chmod(0o755)
        staging.rename(target)  # replaces an empty folder
    except OSError as error:
        raise ValueError(f"{target} cannot be written: {error}") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
    return target
