"""Verdicts of earlier runs, one small file each: `HOME/claims/<id>.json`."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from companion.artifacts import machine
from companion.claims.records import claim
from companion.claims.words import VERDICTS
from companion.settings import get_settings


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class StoredVerdict:
    """A verdict as it was found, when and on which machine.

    Attributes
    ----------
    id : str
        A claim's id, or `id.name` for one of its further numbers.
    verdict, measured, spread, detail
        As in `companion.claims.Verdict`.
    low, high : float or None
        The bounds that were used.
    date : str
        When, as ISO 8601 in UTC.
    machine : mapping
        The fingerprint of `companion.artifacts.machine`.
    """

    id: str
    verdict: str
    measured: float | None
    spread: tuple[float, float] | None
    low: float | None
    high: float | None
    detail: str
    date: str = field(default_factory=_now)
    machine: Mapping[str, str | int] = field(default_factory=machine)

    @property
    def here(self) -> bool:
        """Whether this very machine, with these versions, found it."""
        return dict(self.machine) == machine()


def keep(verdict: StoredVerdict, home: Path | None = None) -> None:
    """Store a verdict in place of an earlier one on the same claim.

    A home that cannot be written to is a warning: the page that judges goes on. Two processes may store at
    the same time: each file is complete, the later one stays.
    """
    path = _folder(home) / f"{verdict.id}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, json.dumps(asdict(verdict), indent=1))
    except OSError as error:
        warnings.warn(f"the verdict on {verdict.id} is not kept in {path.parent}: {error}", stacklevel=3)


def verdicts(home: Path | None = None) -> dict[str, StoredVerdict]:
    """Read all stored verdicts.

    Parameters
    ----------
    home : Path, optional
        Where they are kept; by default the settings' home.

    Returns
    -------
    dict
        From id to verdict, sorted by id. A file that cannot be read, or that judges a claim that is no
        longer in the ledger, is left out with a warning.
    """
    found = {}
    for path in _folder(home).glob("[!.]*.json"):
        try:
            found[path.stem] = _read(path)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            warnings.warn(f"{path} is ignored: {error}; delete it, or judge the claim again", stacklevel=2)
    return dict(sorted(found.items()))


def _folder(home: Path | None) -> Path:
    return (get_settings().home if home is None else home) / "claims"


def _write(path: Path, text: str) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _read(path: Path) -> StoredVerdict:
    content: Any = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or set(content) != {part.name for part in fields(StoredVerdict)}:
        raise ValueError("it does not hold a stored verdict")
    spread = content["spread"]
    if spread is not None:
        low, high = spread
        content["spread"] = spread = (low, high)
    numbers = (content["measured"], content["low"], content["high"], *(spread or ()))
    texts = (content["detail"], content["date"])
    if not (
        content["verdict"] in VERDICTS
        and all(isinstance(text, str) for text in texts)
        and all(number is None or isinstance(number, int | float) for number in numbers)
        and isinstance(content["machine"], dict)
    ):
        raise ValueError("it does not hold a stored verdict")
    if content["id"] != path.stem:
        raise ValueError(f"it is about {content['id']!r}")
    claim(content["id"]).quantity(content["id"])
    return StoredVerdict(**content)
