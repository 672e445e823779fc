"""Grades what learners hand in: their code runs apart, and every score is computed here."""

from __future__ import annotations

from companion.grading.sandbox import Outcome, Sandbox, run

__all__ = ["Outcome", "Sandbox", "run"]
