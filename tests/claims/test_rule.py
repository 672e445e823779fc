"""The rule that judges, as a table; the box it draws; what it keeps."""

from __future__ import annotations

import html
import json
import re
import threading
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from companion.claims import VERDICTS, judge, ledger, ledger_table, verdicts
from companion.claims.records import claim
from companion.claims.rule import Verdict
from companion.claims.store import StoredVerdict, keep


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMPANION_HOME", str(tmp_path))
    return tmp_path


NOISE = "within the noise"


@pytest.mark.parametrize(
    ("claim_id", "measured", "spread", "word", "noisy"),
    [
        # int8-ptq: measured on the reader's machine, 2x to 4x
        ("int8-ptq", None, None, "not measurable here", False),
        ("int8-ptq", 3.0, None, "holds here", False),
        ("int8-ptq", 2.0, None, "holds here", False),
        ("int8-ptq", 4.0, None, "holds here", False),
        ("int8-ptq", 1.999, None, "does not hold", False),
        ("int8-ptq", 4.001, None, "does not hold", False),
        ("int8-ptq", 3.0, (2.5, 3.5), "holds here", False),
        ("int8-ptq", 3.0, (2.0, 4.0), "holds here", False),
        ("int8-ptq", 2.1, (1.9, 2.2), "holds here", True),
        ("int8-ptq", 3.0, (1.0, 5.0), "holds here", True),
        ("int8-ptq", 1.9, (1.8, 2.1), "does not hold", True),
        ("int8-ptq", 1.5, (1.0, 5.0), "does not hold", True),
        ("int8-ptq", 1.5, (1.4, 1.6), "does not hold", False),
        ("int8-ptq", 6.0, (5.0, 7.0), "does not hold", False),
        # onprem-break-even: arithmetic, 12 to 18 months
        ("onprem-break-even", 15.0, None, "holds", False),
        ("onprem-break-even", 15.0, (13.0, 17.0), "holds", False),
        ("onprem-break-even", 15.0, (11.0, 17.0), "holds here", True),
        ("onprem-break-even", 8.3, None, "does not hold", False),
        # one bound only
        ("utilisation-80", 80.0, None, "holds here", False),
        ("utilisation-80", 79.0, None, "does not hold", False),
        ("finetune-search-cost", 300, None, "holds", False),
        ("finetune-search-cost", -5, None, "holds", False),
        ("finetune-search-cost", 301, (299, 400), "does not hold", True),
        # further numbers of a claim: the same rule, their own bounds
        ("int8-ptq.accuracy", 1.0, None, "holds here", False),
        ("int8-ptq.accuracy", 2.5, None, "does not hold", False),
        ("distilbert-size-speed.parameters", 66.4, None, "holds", False),
        ("memory-rule", 7.8, None, "holds", False),
        ("memory-rule.peak", 1.0, None, "holds here", False),
        ("bert-pretraining-cost.tpu-days", 64, None, "holds", False),
    ],
)
def test_rule(claim_id, measured, spread, word, noisy):
    verdict = judge(claim_id, measured, spread)
    assert verdict.verdict == word
    assert verdict.verdict in VERDICTS
    assert (NOISE in verdict.detail) == noisy, verdict.detail
    assert verdict.claim is claim(claim_id)
    assert verdict.quantity.id == claim_id
    assert verdict.measured == measured
    assert verdict.spread == spread


@pytest.mark.parametrize(
    ("arguments", "detail"),
    [
        (("int8-ptq", 3.0), "Speed over FP32: 3x; claimed: 2x to 4x."),
        (("int8-ptq", 3.0, (2.5, 3.5)), "Speed over FP32: 3x (2.5x to 3.5x); claimed: 2x to 4x."),
        (("int8-ptq", 3.0, (3.0, 3.0)), "Speed over FP32: 3x; claimed: 2x to 4x."),
        (("int8-ptq", 1.5), "Speed over FP32: 1.5x; claimed: 2x to 4x, 25% below that."),
        (("int8-ptq", 6), "Speed over FP32: 6x; claimed: 2x to 4x, 50% above that."),
        (
            ("int8-ptq.accuracy", 3.5),
            "Accuracy lost: 3.5 points; read as: at most 2 points, 1.5 points above that.",
        ),
        (("kv-cache.differ", 5), "Tokens that differ: 5%; read as: at most 0%, 5% above that."),
        (("lr-bert", 1e-4), "Best learning rate: 1e-4; claimed: 1e-5 to 5e-5, 100% above that."),
        (("int8-ptq", None), "Speed over FP32: not measured; claimed: 2x to 4x."),
    ],
)
def test_the_sentence_says_what_was_measured_what_was_claimed_and_how_far_off(arguments, detail):
    assert judge(*arguments).detail == detail


def test_other_bounds_replace_both_and_are_named_as_ours():
    assert judge("int8-ptq", 5.0, low=2).verdict == "holds here"
    assert judge("int8-ptq", 1.0, high=4).verdict == "holds here"
    verdict = judge("int8-ptq", 1.6, low=1.7, high=9)
    assert verdict.verdict == "does not hold"
    assert "read as: 1.7x to 9x" in verdict.detail
    assert judge("int8-ptq", 5.0).verdict == "does not hold", "the ledger itself is unchanged"


def test_numbers_of_numpy_are_numbers():
    verdict = judge("int8-ptq", np.float32(3), (np.float64(2.5), np.int64(4)))
    assert type(verdict.measured) is float
    assert verdict.spread == (2.5, 4.0)
    assert verdicts()["int8-ptq"].measured == 3.0


@pytest.mark.parametrize(
    ("arguments", "bounds", "message"),
    [
        (("int8-pqt", 1.0), {}, "did you mean .*int8-ptq"),
        (("int8-ptq", float("nan")), {}, "measured is nan, expected a finite number"),
        (("int8-ptq", float("inf")), {}, "expected a finite number"),
        (("int8-ptq", 3.0, (3.5, 2.5)), {}, "expected \\(smallest, largest\\)"),
        (("int8-ptq", 3.0, (3.5, 4.5)), {}, "between them"),
        (("int8-ptq", 3.0, (2.0, float("inf"))), {}, "between them"),
        (("int8-ptq", 3.0, (float("nan"), 4.0)), {}, "between them"),
        (("int8-ptq", None, (2.0, 3.0)), {}, "without a measured number"),
        (("int8-ptq", 3.0), {"low": 4, "high": 2}, "expected low <= high"),
        (("int8-ptq", 3.0), {"low": float("nan")}, "expected finite"),
    ],
)
def test_what_cannot_be_judged_is_refused_and_not_kept(own_home, arguments, bounds, message):
    with pytest.raises(ValueError, match=message):
        judge(*arguments, **bounds)
    assert list(own_home.rglob("*.json")) == []


def test_the_box_has_the_markup_that_the_style_sheet_knows():
    verdict = judge("int8-ptq", 3.0)
    assert verdict._repr_html_() == (
        '<div class="claim-box claim-holds-here" role="note"><p class="claim-verdict">holds here</p>'
        f'<p class="claim-says">{claim("int8-ptq").says}</p>'
        '<p class="claim-measured">Speed over FP32: 3x; claimed: 2x to 4x.</p></div>'
    )
    classes = {re.search(r"claim-box ([\w-]+)", one._repr_html_())[1] for one in all_four()}
    assert classes == {"claim-holds", "claim-holds-here", "claim-does-not-hold", "claim-not-measurable-here"}


def all_four():
    yield judge("onprem-break-even", 15)
    yield judge("int8-ptq", 3)
    yield judge("int8-ptq", 1)
    yield judge("tensorrt", None)


def test_a_terminal_gets_text_and_a_notebook_both():
    verdict = judge("int8-ptq", 1.5)
    assert repr(verdict) == f"DOES NOT HOLD: {claim('int8-ptq').says}\n  {verdict.detail}"
    assert verdict._repr_mimebundle_() == {"text/plain": repr(verdict), "text/html": verdict._repr_html_()}


def test_text_is_escaped():
    from dataclasses import replace

    entry = replace(claim("int8-ptq"), says='<b>a & "b"</b>', published="<i>", published_source="&")
    verdict = Verdict(entry, entry.quantities[0], "holds", 1.0, None, "1 < 2 & 3")
    markup = verdict._repr_html_()
    assert "<b>" not in markup
    assert html.escape(entry.says) in markup
    assert "1 &lt; 2 &amp; 3" in markup
    from companion.claims import LedgerTable

    table = LedgerTable((entry,), {})._repr_html_()
    assert "<b>" not in table
    assert "<i>" not in table


def test_verdicts_are_kept_with_date_and_machine(own_home):
    from companion.artifacts import machine

    judge("int8-ptq", 3.0, (2.5, 3.5))
    judge("int8-ptq.accuracy", 0.4)
    judge("tensorrt", None)
    assert {path.name for path in (own_home / "claims").iterdir()} == {
        "int8-ptq.json",
        "int8-ptq.accuracy.json",
        "tensorrt.json",
    }
    kept = verdicts()
    assert list(kept) == ["int8-ptq", "int8-ptq.accuracy", "tensorrt"]
    stored = kept["int8-ptq"]
    assert (stored.verdict, stored.measured, stored.spread) == ("holds here", 3.0, (2.5, 3.5))
    assert (stored.low, stored.high) == (2, 4)
    assert stored.machine == machine()
    assert stored.here
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", stored.date)
    judge("int8-ptq", 1.0)
    assert verdicts()["int8-ptq"].verdict == "does not hold", "the latest one counts"


def test_another_home(own_home, tmp_path):
    judge("int8-ptq", 3.0, home=tmp_path / "else")
    assert verdicts() == {}
    assert list(verdicts(tmp_path / "else")) == ["int8-ptq"]


def test_a_home_that_cannot_be_written_is_a_warning(own_home):
    (own_home / "claims").write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match="the verdict on int8-ptq is not kept"):
        assert judge("int8-ptq", 3.0).verdict == "holds here"


GOOD = {
    "id": "int8-ptq", "verdict": "holds here", "measured": 3.0, "spread": None, "low": 2, "high": 4,
    "detail": "d", "date": "2026-01-01T00:00:00+00:00", "machine": {},
}  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "\udcff",
        "[" * 100_000,
        GOOD | {"verdict": "<script>"},
        GOOD | {"verdict": []},
        GOOD | {"measured": "3"},
        GOOD | {"spread": [1]},
        GOOD | {"spread": "ab"},
        GOOD | {"spread": 5},
        GOOD | {"machine": []},
        GOOD | {"detail": 5},
        GOOD | {"id": "int8-qat"},
        GOOD | {"more": 1},
        {name: value for name, value in GOOD.items() if name != "date"},
    ],
)
def test_a_torn_file_is_ignored_with_a_warning(own_home, content):
    judge("kv-cache", 6)
    text = content if isinstance(content, str) else json.dumps(content)
    (own_home / "claims" / "int8-ptq.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.warns(UserWarning, match=r"int8-ptq\.json is ignored"):
        assert list(verdicts()) == ["kv-cache"]
    judge("int8-ptq", 3)
    assert list(verdicts()) == ["int8-ptq", "kv-cache"]


def test_a_good_file_is_read(own_home):
    (own_home / "claims").mkdir()
    (own_home / "claims" / "int8-ptq.json").write_text(json.dumps(GOOD))
    assert verdicts()["int8-ptq"].measured == 3.0


def test_a_claim_that_left_the_ledger_is_ignored_with_a_warning(own_home):
    (own_home / "claims").mkdir()
    (own_home / "claims" / "gone.json").write_text(json.dumps(GOOD | {"id": "gone"}))
    with pytest.warns(UserWarning, match="there is no claim 'gone'"):
        assert verdicts() == {}


def test_concurrent_verdicts_leave_whole_files_and_nothing_else(own_home):
    def work(number):
        for repeat in range(25):
            judge("int8-ptq", 2 + number / 10 + repeat / 1000)
            judge(f"kv-cache{'.differ' * (number % 2)}", 0)
            assert set(verdicts()) <= {"int8-ptq", "kv-cache", "kv-cache.differ"}

    failed = []

    def guarded(number):
        try:
            work(number)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert {path.name for path in (own_home / "claims").iterdir()} == {
        "int8-ptq.json",
        "kv-cache.json",
        "kv-cache.differ.json",
    }


class Cells(HTMLParser):
    """Collects rows of cell texts, and checks that every tag is closed."""

    def __init__(self, markup):
        super().__init__()
        self.rows, self.open = [], []
        self.feed(markup)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


def test_the_table_lists_every_claim_and_what_was_found():
    judge("int8-ptq", 3.0)
    judge("int8-ptq.accuracy", 5.0)
    judge("tensorrt", None)
    rows = Cells(ledger_table()._repr_html_()).rows
    assert rows[0] == ["Chapter", "Claim", "Verdict", "Measured"]
    assert len(rows) == 1 + len(ledger())
    by_text = {row[1]: row for row in rows[1:]}
    ptq = claim("int8-ptq")
    row = by_text[f"{ptq.says}Published: {ptq.published} ({ptq.published_source})"]
    assert row[0] == "inference"
    assert row[2] == "holds here"
    assert row[3].startswith("Speed over FP32: 3x; claimed: 2x to 4x.Does not hold. Accuracy lost: 5 points")
    assert by_text[claim("tensorrt").says][2] == "not measurable here"
    assert by_text[claim("kv-cache").says][2:] == [
        "not judged yet",
        "speed over generation without a cache: 5x to 10x?",
    ]
    for word in VERDICTS:
        assert f"<dt>{word}</dt>" in ledger_table()._repr_html_()


def test_the_table_of_one_chapter():
    rows = Cells(ledger_table("inference")._repr_html_()).rows[1:]
    assert {row[0] for row in rows} == {"inference"}
    assert len(repr(ledger_table("inference")).splitlines()) == len(rows)
    with pytest.raises(ValueError, match="no claim belongs to the chapter 'cooking', expected one of: case-"):
        ledger_table("cooking")


def test_verdicts_of_another_machine_are_not_shown_as_this_one_s(own_home):
    keep(StoredVerdict("int8-ptq", "holds here", 3.0, None, 2, 4, "d", machine={"cpu": "another"}))
    assert not verdicts()["int8-ptq"].here
    assert "not judged yet" in repr(ledger_table("inference")).splitlines()[1]
    assert "holds here" not in repr(ledger_table("inference"))
