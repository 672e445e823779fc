"""Rules of thumb, judged by one rule on every page.

`ledger` lists what the course's source texts state, `judge` compares one claim with a measurement and keeps
the verdict, `ledger_table` shows all of them with what this machine has found so far.
"""

from __future__ import annotations

from companion.claims.records import Claim, Quantity, claim, ledger
from companion.claims.rule import Verdict, judge
from companion.claims.store import StoredVerdict, verdicts
from companion.claims.table import LedgerTable, ledger_table
from companion.claims.words import VERDICTS

__all__ = [
    "VERDICTS",
    "Claim",
    "LedgerTable",
    "Quantity",
    "StoredVerdict",
    "Verdict",
    "claim",
    "judge",
    "ledger",
    "ledger_table",
    "verdicts",
]
