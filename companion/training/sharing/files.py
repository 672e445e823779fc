"""Which files of a folder may be shared, and what must not be in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from companion.training.sharing.reports import REPORT, WEIGHTS

__all__ = [
    "ATTRIBUTES",
    "CARD",
    "CONFIG",
    "LARGE",
    "REQUIRED",
    "SHARED",
    "Problem",
    "places_and_keys",
    "unexpected",
    "unfit",
]

ATTRIBUTES, CARD, CONFIG = ".gitattributes", "README.md", "config.json"
REQUIRED = (CONFIG, WEIGHTS, "tokenizer.json", "tokenizer_config.json", CARD, REPORT, ATTRIBUTES)
VOCABULARY = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")
SENTENCEPIECE = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
SHARED = frozenset({*REQUIRED, *VOCABULARY, *SENTENCEPIECE, "special_tokens_map.json"})
"""The only files that are shared."""

LARGE = 10 * 10**6
"""Bytes above which the hub takes a file through large file storage only."""

LIMIT = 500 * 10**9
"""Bytes that no single file on the hub may exceed."""

_PICKLED = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill"})
_STATE = re.compile(r"(checkpoint|optimizer|scheduler|scaler|rng_state|trainer_state)|step-\d+$|.*\.distcp$")
_SECRETS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|api_org_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{60,}"
    r"|AKIA[0-9A-Z]{16}|sk-[A-Za-z0-9_-]{32,})|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_ABSOLUTE = re.compile(
    r"(?<![\w.:/~\\])/(?:[\w.@+\\-]+/)+[\w.@+-]*|(?<!\w)[A-Za-z]:\\+\w[^\"'\n]*|file:///\S+"
)


@dataclass(frozen=True)
class Problem:
    """One reason not to share a folder.

    Attributes
    ----------
    kind : str
        ``"missing"``, ``"file"``, ``"config"``, ``"weights"``, ``"labels"``, ``"tokenizer"``, ``"report"``,
        ``"card"``, ``"path"`` or ``"secret"``.
    file : str
        Where, as a path within the folder.
    message : str
        What was found and what to do.
    """

    kind: str
    file: str
    message: str

    def __str__(self) -> str:
        """Return the problem as one line."""
        return f"{self.file}: {self.message}"


def unfit(folder: Path) -> tuple[Problem, ...]:
    """Find files that must never be shared.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    tuple of Problem
        About links, hidden files, pickled files, the state of a training run, and files that are too large.
    """
    found: list[Problem] = []
    below: list[Path] = []
    for path in sorted(folder.rglob("*")):
        if any(parent in below for parent in path.parents):
            continue
        reason = _unfit(path)
        if reason:
            found.append(Problem("file", path.relative_to(folder).as_posix(), reason))
            below.append(path)
    return tuple(found)


def _unfit(path: Path) -> str | None:
    if path.is_symlink():
        return "is a link; put a copy of what it points at there"
    if path.name.startswith(".") and path.name != ATTRIBUTES:
        return "is hidden; move it elsewhere"
    if _STATE.match(path.name):
        return "is the state of a training run; move it elsewhere"
    if path.is_dir():
        return None
    if not path.is_file():
        return "is not a plain file; move it elsewhere"
    if path.suffix.lower() in _PICKLED:
        return f"is pickled, and opening it can run code; keep {WEIGHTS} alone"
    if path.stat().st_size > LIMIT:
        return f"has {path.stat().st_size:,} bytes, the hub takes at most {LIMIT:,}"
    return None


def unexpected(folder: Path) -> Iterator[Problem]:
    """Find files that nobody needs, and large ones that the hub would refuse.

    Parameters
    ----------
    folder : Path

    Yields
    ------
    Problem
        About files outside `SHARED`, and files above `LARGE` that ``.gitattributes`` does not name.
    """
    attributes = folder / ATTRIBUTES
    lines = attributes.read_text(errors="replace").splitlines() if attributes.is_file() else []
    patterns = [line.split()[0] for line in lines if "filter=lfs" in line.split()[1:]]
    for path in sorted(folder.iterdir()):
        if _unfit(path):
            continue  # said already
        if path.name not in SHARED or not path.is_file():
            yield Problem("file", path.name, "is no part of a shared model; move it elsewhere")
            continue
        if path.stat().st_size > LARGE and not any(fnmatch(path.name, pattern) for pattern in patterns):
            yield Problem("file", path.name, f"is large, and {ATTRIBUTES} does not name it; prepare again")


def places_and_keys(folder: Path) -> Iterator[Problem]:
    """Find the author's own paths and keys in files that can be read as text.

    Parameters
    ----------
    folder : Path

    Yields
    ------
    Problem
        One per file for an absolute path, one for a key (of the hub, of others, or a private one).
    """
    home = re.escape(f"{Path.home()}/")
    # A vocabulary may hold pieces such as "/usr/bin"; where somebody lives is no piece of language.
    lives = re.compile(r"/(?:home|Users)/[\w.-]+/" + (f"|{home}" if len(home) > 3 else ""))
    for path in sorted(folder.iterdir()):
        if (path.suffix not in (".json", ".txt", ".md") and path.name != ATTRIBUTES) or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if found := (lives if path.name in VOCABULARY else _ABSOLUTE).search(text) or lives.search(text):
            yield Problem("path", path.name, f"names a place on your machine ({found[0]}); take it out")
        if secret := _SECRETS.search(text):
            yield Problem("secret", path.name, f"holds a key ({secret[0][:4]}...); take it out and revoke it")
