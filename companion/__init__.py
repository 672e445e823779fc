"""Transformers in production: the package behind the course.

The subpackages are the road from text to answers: `companion.data`, `companion.models`, `companion.training`,
`companion.inference`, `companion.deployment`. Importing `companion` itself loads none of them.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
