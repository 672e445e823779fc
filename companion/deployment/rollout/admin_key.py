"""The one secret that controls a rollout: where it comes from, and what is none."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["ADMIN_KEY_VARIABLE", "MIN_KEY", "check_admin_key", "read_admin_key"]

ADMIN_KEY_VARIABLE = "COMPANION_ADMIN_KEY"
"""Holds the key itself, where no file is named."""
MIN_KEY = 16
"""Fewest characters of an admin key: a shorter one can be tried out."""


def check_admin_key(key: str, where: str = "the admin key") -> str:
    """Return a key that can be one. The message of the error does not hold it.

    Raises
    ------
    ValueError
        When it is too short, or cannot be sent in a header.
    """
    if len(key) < MIN_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"{where} has {len(key)} characters, expected at least {MIN_KEY}, printable ASCII without "
            "blanks: make one with 'openssl rand -hex 32'."
        )
    return key


def read_admin_key(file: Path | None = None) -> str:
    """Read the admin key: a file's only line, or the environment's `ADMIN_KEY_VARIABLE`.

    Parameters
    ----------
    file : Path, optional

    Returns
    -------
    str

    Raises
    ------
    ValueError
        When there is none, or what is there is none.
    OSError
        When the file cannot be read.
    """
    if file is None:
        key = os.environ.get(ADMIN_KEY_VARIABLE, "").strip()
        if not key:
            raise ValueError(
                f"a rollout needs an admin key: give --admin-key FILE, or set {ADMIN_KEY_VARIABLE}. "
                "Make one with 'openssl rand -hex 32'."
            )
        return check_admin_key(key, f"the admin key in {ADMIN_KEY_VARIABLE}")
    try:
        key = file.read_text(encoding="ascii").strip()
    except UnicodeDecodeError:
        raise ValueError(f"the admin key in {file} is not text, expected one line of it.") from None
    return check_admin_key(key, f"the admin key in {file}")
