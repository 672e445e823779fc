"""API keys: what the server stores of them is a name and a hash.

A token looks like ``ck_3f9a1c2b4d5e_`` and 43 more characters: a public id, then 32 random bytes. The file
holds one line per key: id, SHA-256 of the whole token, name, day it was made. A token cannot be had back
from its line, and 256 random bits need no slow hash: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from companion.artifacts import staged_file

__all__ = ["ApiKey", "KeyRing", "add_key", "read_keys", "revoke_keys"]

logger = logging.getLogger("companion.deployment")

_TOKEN = re.compile(r"ck_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_LINE = re.compile(r"([0-9a-f]{12})\s+sha256:([0-9a-f]{64})\s+(\S+)\s+(\d{4}-\d\d-\d\d)")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_NOBODY = bytes(32)


@dataclass(frozen=True)
class ApiKey:
    """What is stored of a key.

    Attributes
    ----------
    id : str
        The public part of the token: twelve hexadecimal digits.
    digest : bytes
        SHA-256 of the token.
    name : str
        Whose it is. Two keys may share a name, so that one can replace the other without a gap.
    made_on : str
        Day, as ``2026-01-31``.
    """

    id: str
    digest: bytes
    name: str
    made_on: str

    def line(self) -> str:
        """Write it as a line of the file, without the line's end."""
        return f"{self.id} sha256:{self.digest.hex()} {self.name} {self.made_on}"


def add_key(file: Path, name: str, *, now: datetime | None = None) -> tuple[str, ApiKey]:
    """Make a key, and add its line to a file, which is made when it is missing.

    Parameters
    ----------
    file : Path
        Readable by its owner only, when it is made here.
    name : str
        Letters, digits, dots, dashes and underscores; at most 64.
    now : datetime, optional
        The day to write down; by default today.

    Returns
    -------
    token : str
        The only time that it is shown to anyone.
    key : ApiKey

    Raises
    ------
    ValueError
        If the name has other characters, or the file holds something else than keys.
    OSError
        If the file cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"the key's name is {name!r}, expected 1 to 64 letters, digits, dots, dashes and underscores."
        )
    known = read_keys(file) if file.exists() else {}
    public = secrets.token_hex(6)
    while public in known:
        public = secrets.token_hex(6)
    secret = urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")
    token = f"ck_{public}_{secret}"
    day = (now or datetime.now(UTC)).strftime("%Y-%m-%d")
    key = ApiKey(public, _digest(token), name, day)
    # One write to the end of the file: two that add a key at the same moment both succeed.
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "r+b", buffering=0) as lines:
        size = lines.seek(0, os.SEEK_END)
        torn = size > 0 and os.pread(lines.fileno(), 1, size - 1) != b"\n"
        lines.write(f"{chr(10) if torn else ''}{key.line()}\n".encode())
        os.fsync(lines.fileno())
    return token, key


def revoke_keys(file: Path, which: str) -> list[ApiKey]:
    """Remove the key with this id, or all keys with this name.

    Returns
    -------
    list of ApiKey
        What was removed.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_keys`; also when no key is meant.
    """
    gone = [key for key in read_keys(file).values() if which in (key.id, key.name)]
    if not gone:
        raise ValueError(
            f"{file} has no key with the id or name {which!r}: 'companion keys list' shows them."
        )
    ids = {key.id for key in gone}
    kept = [line for line in file.read_text(encoding="utf-8").splitlines() if _id_of(line) not in ids]
    mode = file.stat().st_mode & 0o777
    with staged_file(file) as staging:
        staging.chmod(mode)
        staging.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    return gone


def read_keys(file: Path) -> dict[str, ApiKey]:
    """Read a file of keys: one a line; empty lines and lines that begin with ``#`` are passed over.

    Returns
    -------
    dict of str to ApiKey
        By id, in the order of the file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a line is something else, or an id occurs twice. The line itself is not repeated: it could be a
        token that somebody pasted.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist, expected a file of API keys: make one with "
            f"'companion keys new NAME --file {file}'."
        )
    keys: dict[str, ApiKey] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not text, expected one API key a line.") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if not found:
            raise ValueError(
                f"{file}, line {number} is not a key, expected 'ID sha256:HASH NAME DAY' "
                "as 'companion keys new' writes it."
            )
        if found[1] in keys:
            raise ValueError(
                f"{file}, line {number} has the id {found[1]} again: remove one of the two lines."
            )
        keys[found[1]] = ApiKey(found[1], bytes.fromhex(found[2]), found[3], found[4])
    return keys


class KeyRing:
    """The keys that a server accepts. A file that changes counts within a second.

    A file that has become unreadable changes nothing: the keys of before stay, and the log says so once.

    Parameters
    ----------
    file : Path
        Made by `add_key`.
    recheck_s : float
        How often, at most, the file is looked at.
    clock : callable
        Seconds that only go up.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_keys`; also when the file holds no key at all.
    """

    def __init__(
        self, file: Path, *, recheck_s: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.file = file
        self._recheck_s = recheck_s
        self._clock = clock
        self._checked_at = clock()
        self._seen = _signature(file)
        self._keys: Mapping[str, ApiKey] = read_keys(file)
        if not self._keys:
            raise ValueError(
                f"{file} holds no key, so nobody could ask anything: "
                f"make one with 'companion keys new NAME --file {file}'."
            )

    def find(self, token: str) -> ApiKey | None:
        """Return the key of a token, or None when it is none of ours.

        The hashes are compared in constant time, also when nobody has that id.
        """
        self._reread()
        found = _TOKEN.fullmatch(token)
        key = self._keys.get(found[1]) if found else None
        same = hmac.compare_digest(_digest(token), key.digest if key else _NOBODY)
        return key if same else None

    def _reread(self) -> None:
        now = self._clock()
        if now - self._checked_at < self._recheck_s:
            return
        self._checked_at = now
        seen = _signature(self.file)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._keys = read_keys(self.file)
            logger.warning("%s was read again: %d keys", self.file, len(self._keys))
        except (OSError, ValueError) as error:
            logger.error("the keys of before stay in force: %s", error)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _id_of(line: str) -> str | None:
    found = _LINE.fullmatch(line.strip())
    return found[1] if found else None


def _signature(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
