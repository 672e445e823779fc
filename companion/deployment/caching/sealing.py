"""The names under which answers are stored, and the bytes in which they leave the process.

A key is a hash: neither the text nor the pair can be read off it. A stored value carries a keyed hash of
itself and of its key, so that a value that was damaged, cut, written by another program or put under the key
of another question is found out and counts as absent. (A connection pool once handed one client the answer to
another client's command [1]_; here such an answer does not open.)

References
----------
.. [1] OpenAI, "March 20 ChatGPT outage: Here's what happened", 2023: a cancelled request left its reply on
   the connection, and the next command read it.
"""

from __future__ import annotations

import hmac
import json
import math
from hashlib import blake2b

from companion.deployment.answering import Answer, Question

__all__ = ["MAX_VALUE_BYTES", "question_key", "seal", "unseal"]

MAX_VALUE_BYTES = 64 * 1024
"""Longer values are neither written nor read: a thousand labels fit."""

_MAGIC = b"ca1:"
_MAC_BYTES = 16
_HEAD = len(_MAGIC) + _MAC_BYTES


def question_key(question: Question, model_version: str) -> bytes:
    """Name the answer of one model to one question.

    Parameters
    ----------
    question : Question
    model_version : str
        Another version never finds this one's answers.

    Returns
    -------
    bytes
        20 bytes, different for different arguments: each part is hashed with its length before it, so that
        no two ways to split a text into a pair are the same, and no pair is not an empty pair.
    """
    parts = [model_version, question.text]
    if question.pair is not None:
        parts.append(question.pair)
    found = blake2b(digest_size=20, person=b"companion-answer")
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)
    return found.digest()


def seal(answer: Answer, key: bytes, secret: bytes = b"") -> bytes | None:
    """Write an answer as bytes for a store outside of this process.

    Parameters
    ----------
    answer : Answer
    key : bytes
        Under which it will be stored.
    secret : bytes
        Who has it can write values that open; at most 64 bytes.

    Returns
    -------
    bytes or None
        None for an answer that is not worth keeping: too large, or with a number that is not finite.
    """
    if not all(map(math.isfinite, answer.values)):
        return None
    fields = [answer.values, answer.labels, answer.model_version]
    payload = json.dumps(fields, separators=(",", ":")).encode()
    sealed = _MAGIC + _mac(payload, key, secret) + payload
    return sealed if len(sealed) <= MAX_VALUE_BYTES else None


def unseal(data: object, key: bytes, secret: bytes = b"") -> Answer | None:
    """Read what `seal` wrote.

    Parameters
    ----------
    data : object
        Whatever the store gave.
    key, secret : bytes
        As for `seal`.

    Returns
    -------
    Answer or None
        Bit for bit the one that was sealed; None for anything else.
    """
    if not isinstance(data, bytes) or not _HEAD < len(data) <= MAX_VALUE_BYTES:
        return None
    payload = data[_HEAD:]
    if data[: len(_MAGIC)] != _MAGIC:
        return None
    if not hmac.compare_digest(data[len(_MAGIC) : _HEAD], _mac(payload, key, secret)):
        return None
    try:
        values, labels, version = json.loads(payload)
        return _checked(values, labels, version)
    except (ValueError, TypeError, RecursionError):
        return None


def _mac(payload: bytes, key: bytes, secret: bytes) -> bytes:
    """Hash a value together with its key; the key's length is fixed, so the two cannot be split otherwise."""
    return blake2b(key + payload, key=secret, digest_size=_MAC_BYTES, person=b"companion-value").digest()


def _checked(values: object, labels: object, version: object) -> Answer | None:
    """Believe no field: without a secret, anyone who can write to the store can seal."""
    if not (isinstance(values, list) and isinstance(labels, list) and isinstance(version, str)):
        return None
    if not all(isinstance(value, float) and math.isfinite(value) for value in values):
        return None
    if not all(isinstance(label, str) for label in labels) or len(values) != (len(labels) or 1):
        return None
    return Answer(tuple(values), tuple(labels), version)
