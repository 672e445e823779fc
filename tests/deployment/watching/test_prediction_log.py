"""The prediction log: what is in a line, what the files may take, and that no trouble reaches an answer."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import resource
import subprocess
import sys
import threading
from pathlib import Path

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.deployment.answering import Answer, Question
from companion.deployment.problems import NOT_READY, ProblemError
from companion.deployment.watching import (
    LoggedAnswerer,
    LogLimits,
    PredictionLog,
    TextFeatures,
    TokenCount,
    measure_text,
    read_log,
    token_counter,
)
from companion.deployment.watching.files import PATTERN, LogFiles
from companion.deployment.watching.reading import Skipped, scan
from companion.deployment.watching.records import (
    Loss,
    NewerSchemaError,
    Prediction,
    from_line,
    loss_line,
    prediction_line,
)

LABELS = ("negative", "positive")
KEY = b"sixteen bytes are"
SECRET = "My card is 4929 1234, Zoë."


def line(
    number: int,
    *,
    version: str = "v1",
) -> bytes:
    """Write a log's line for answer `number`, one a minute."""
    return prediction_line(
        Prediction(
            time=60.0 * number,
            request_id=f"r{number}",
            model_version=version,
            labels=LABELS,
            values=(0.25, 0.75),
            features=measure_text(Question("a fine film")),
            digest="00",
        )
    )


def answer_of() -> Answer:
    return Answer((0.25, 0.75), LABELS, "v1")


def written(folder: Path) -> list[bytes]:
    """Return all lines of a log, the oldest first."""
    return [found for file in sorted(folder.glob(PATTERN)) for found in file.read_bytes().splitlines(True)]


def objects(folder: Path) -> list[dict]:
    return [json.loads(found) for found in written(folder)]


class Echo:
    """Answers at once, or fails."""

    async def answer(self, question: Question, *, deadline: float) -> Answer:
        if question.text == "fail":
            raise ProblemError(NOT_READY, "not yet")
        return Answer((0.25, 0.75), LABELS, "v1")


# --- one line


def test_a_line_tells_of_the_answer_and_not_the_text(tmp_path):
    log = PredictionLog(tmp_path, key=KEY, clock=lambda: 12.5)
    answerer = LoggedAnswerer(Echo(), log, request_id=lambda: "r-1")

    async def run() -> None:
        assert (await answerer.answer(Question(SECRET), deadline=1.0)).values == (0.25, 0.75)
        await answerer.aclose()

    anyio.run(run)
    [found] = objects(tmp_path)
    assert {name: found[name] for name in ("schema", "time", "request_id", "model_version")} == {
        "schema": 1,
        "time": 12.5,
        "request_id": "r-1",
        "model_version": "v1",
    }
    assert found["probabilities"] == {"negative": 0.25, "positive": 0.75}
    assert found["features"]["characters"] == len(SECRET)
    assert "text" not in found and "pair" not in found
    raw = written(tmp_path)[0].decode()
    assert not any(word in raw for word in re.findall(r"\w+", SECRET))


def test_the_text_is_there_when_asked_for(tmp_path):
    log = PredictionLog(tmp_path, text=True)
    log.offer(Question(SECRET, "and more"), answer_of())
    log.offer(Question("half of a pair \ud800"), answer_of())
    anyio.run(log.aclose)
    first, second = objects(tmp_path)
    assert (first["text"], first["pair"]) == (SECRET, "and more")
    assert (second["text"], second["pair"]) == ("half of a pair \ud800", None)


def test_hashes_are_equal_for_equal_texts_under_one_key(tmp_path):
    questions = [Question("one two"), Question("one two"), Question("one", "two"), Question("one tw", "o")]
    for folder, key in (("a", KEY), ("b", KEY), ("c", None)):
        log = PredictionLog(tmp_path / folder, key=key)
        for question in questions:
            log.offer(question, answer_of())
        anyio.run(log.aclose)
    a, b, c = ([found["hash"] for found in objects(tmp_path / folder)] for folder in "abc")
    assert a == b
    assert a[0] == a[1]
    assert len({*a, *c}) == 6


@settings(max_examples=60, deadline=None)
@given(st.text(), st.none() | st.text())
def test_features_do_not_tell_letters_apart(text: str, pair: str | None):
    """Features do not change when every plain letter and digit is replaced by another of its kind."""

    def masked(value: str) -> str:
        return re.sub("[0-9]", "7", re.sub("[A-Z]", "Q", re.sub("[a-z]", "q", value)))

    hidden = Question(masked(text), None if pair is None else masked(pair))
    assert measure_text(Question(text, pair)) == measure_text(hidden)


def test_features_are_what_they_say():
    found = measure_text(Question("Ab c1 ", "Ä!"), lambda question: TokenCount(6, 3, 4))
    assert found == TextFeatures(
        characters=8,
        letters_per_word=2.0,
        non_letters=2 / 6,
        upper_case=2 / 4,
        non_ascii=1 / 6,
        tokens=6,
        tokens_per_word=1.5,
        unknown_tokens=0.5,
    )
    assert measure_text(Question("")) == TextFeatures(0, 0.0, 0.0, 0.0, 0.0)
    assert measure_text(Question("x" * 100_000)).characters == 100_000


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        Prediction,
        time=st.floats(0, 4e9).map(lambda value: round(value, 6)),
        request_id=st.none() | st.text(),
        model_version=st.text(),
        labels=st.just(LABELS),
        values=st.tuples(st.floats(0, 1), st.floats(0, 1)),
        features=st.builds(measure_text, st.builds(Question, st.sampled_from(["", "abcd", "AB 12", "é!"]))),
        digest=st.text(alphabet="0123456789abcdef"),
        share=st.floats(0.01, 1),
        text=st.none() | st.text(),
        pair=st.none(),
    )
)
def test_a_line_gives_back_what_was_written(prediction: Prediction):
    found = prediction_line(prediction)
    assert found.endswith(b"\n") and found.count(b"\n") == 1 and found.isascii()
    assert from_line(found) == prediction


def test_a_regression_has_a_score(tmp_path):
    log = PredictionLog(tmp_path)
    log.offer(Question("a", "b"), Answer((3.5,), (), "v2"))
    anyio.run(log.aclose)
    [found] = objects(tmp_path)
    assert found["score"] == 3.5
    columns = read_log(tmp_path).versions["v2"]
    assert columns.is_regression
    assert columns.scores.tolist() == [3.5]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[]", "has no schema"),
        (b'{"schema": "1"}', "schema is '1'"),
        (b'{"schema": 1}', "has no 'features'|has no 'score'"),
        (b'{"schema": 1, "time": 0, "not_logged": 0}', "not_logged is 0"),
        (line(0).replace(b"0.25", b"NaN"), "nan is in it"),
        (line(0).replace(b"0.25", b'"much"'), "'much' is in it"),
        (line(0).replace(b'"characters":11', b'"chars":11'), "has no 'characters'"),
    ],
)
def test_lines_that_are_not_ours_are_refused(data: bytes, words: str):
    with pytest.raises(ValueError, match=words) as caught:
        from_line(data)
    assert not isinstance(caught.value, json.JSONDecodeError)


def test_a_line_of_the_future_is_refused():
    with pytest.raises(NewerSchemaError, match="has schema 2, but this version of companion reads up to 1"):
        from_line(line(0).replace(b'"schema":1', b'"schema":2'))


# --- files


def fill(files: LogFiles, first: int, count: int) -> None:
    for number in range(first, first + count):
        files.write(line(number))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4000), min_size=1, max_size=60), st.integers(4096, 9000), st.integers(2, 5))
def test_the_folder_never_holds_more_than_it_may(tmp_path_factory, sizes, file_bytes, times):
    """Whatever is written: the newest lines are there, in order, none is cut, and the bound holds."""
    folder = tmp_path_factory.mktemp("log")
    files = LogFiles(folder, file_bytes=file_bytes, total_bytes=times * file_bytes, clock=lambda: 0.0)
    sent = []
    for number, size in enumerate(sizes):
        sent.append(f"{number}:".encode().ljust(size, b".") + b"\n")
        files.write(sent[-1])
        held = [file.stat().st_size for file in folder.iterdir()]
        assert sum(held) <= times * file_bytes
        assert max(held) <= file_bytes
        found = written(folder)
        assert found == sent[-len(found) :]
    files.close()
    # Two files' worth of the bound at most are given up: the one that is begun, and the one that made room.
    assert sum(map(len, written(folder))) >= min(sum(map(len, sent)), (times - 2) * file_bytes)


def test_several_writers_keep_to_one_bound_and_off_each_others_files(tmp_path):
    size = len(line(100))
    first, second = (
        LogFiles(tmp_path, file_bytes=20 * size, total_bytes=80 * size, clock=lambda: 0.0) for _ in range(2)
    )
    fill(first, 100, 15)
    mine = set(tmp_path.iterdir())
    for start in range(120, 320, 20):
        fill(second, start, 20)
        assert mine <= set(tmp_path.iterdir()), "the file that another writes is not deleted"
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 80 * size
    fill(first, 115, 5)
    held = [from_line(found).request_id for found in next(iter(mine)).read_bytes().splitlines()]
    assert held == [f"r{number}" for number in range(100, 120)]
    first.close()
    for start in range(320, 400, 20):
        fill(second, start, 20)
    assert not mine & set(tmp_path.iterdir()), "what nobody writes any more goes first"
    second.close()


def test_too_many_writers_for_the_bound(tmp_path):
    made = [LogFiles(tmp_path, file_bytes=4096, total_bytes=8192, clock=lambda: 0.0) for _ in range(3)]
    made[0].write(line(0))
    made[1].write(line(1))
    with pytest.raises(OSError, match="2 other processes write files of up to 4,096 bytes"):
        made[2].write(line(2))
    made[0].close()
    made[2].write(line(2))
    assert len(written(tmp_path)) == 2
    for files in made:
        files.close()


def test_a_file_that_is_deleted_under_the_log_is_replaced(tmp_path):
    files = LogFiles(tmp_path / "log", file_bytes=4096, total_bytes=8192, clock=lambda: 0.0)
    files.write(line(0))
    for file in (tmp_path / "log").iterdir():
        file.unlink()
    (tmp_path / "log").rmdir()
    files.write(line(1))
    files.close()
    assert written(tmp_path / "log") == [line(1)]


# --- trouble


def test_what_finds_the_queue_full_is_dropped_and_counted(tmp_path):
    gate, busy = threading.Event(), threading.Event()

    def count_tokens(question: Question) -> TokenCount:
        busy.set()
        assert gate.wait(60)
        return TokenCount(1, 0, 1)

    log = PredictionLog(
        tmp_path, limits=LogLimits(queue_answers=3, queue_characters=100), count_tokens=count_tokens
    )
    log.offer(Question("held"), answer_of(), "held")
    assert busy.wait(60)  # the thread is at work on it
    for number in range(5):
        log.offer(Question("x"), answer_of(), f"r{number}")
    counts = log.counts
    assert (counts.waiting, counts.dropped, counts.written) == (3, 3, 0), "the one at work waits too"
    gate.set()
    anyio.run(log.flush)
    gate.clear(), busy.clear()
    log.offer(Question("held"), answer_of(), "held")
    assert busy.wait(60)
    log.offer(Question("x" * 60), answer_of(), "fits")
    log.offer(Question("x" * 30, "x" * 11), answer_of(), "too much")
    gate.set()
    anyio.run(log.aclose)
    assert (log.counts.written, log.counts.dropped, log.counts.waiting) == (5, 4, 0)
    found = [from_line(one) for one in written(tmp_path)]
    assert [one.request_id for one in found if isinstance(one, Prediction)] == [
        *("held", "r0", "r1"),
        *("held", "fits"),
    ]
    assert sum(one.count for one in found if isinstance(one, Loss)) == 4, "the log says what it lacks"


def test_a_folder_that_cannot_be_written_costs_lines_and_no_answer(tmp_path, caplog):
    (tmp_path / "here").write_text("a file")
    now = [0.0]
    log = PredictionLog(
        tmp_path / "here" / "log", limits=LogLimits(retry_s=5.0), monotonic=lambda: now[0], clock=lambda: 1.0
    )
    answerer = LoggedAnswerer(Echo(), log)

    async def run(count: int) -> None:
        for _ in range(count):
            assert (await answerer.answer(Question("a"), deadline=1.0)).labels == LABELS
        assert await log.flush()

    with caplog.at_level(logging.WARNING, "companion.deployment"):
        anyio.run(run, 3)
    assert (log.counts.written, log.counts.lost) == (0, 3)
    assert caplog.text.count("cannot be written") == 1, "said once, not with every line"
    (tmp_path / "here").unlink()
    now[0] = 4.0
    anyio.run(run, 2)
    assert (log.counts.written, log.counts.lost) == (0, 5), "it is not tried again with every line"
    now[0] = 6.0
    anyio.run(run, 2)
    anyio.run(log.aclose)
    assert (log.counts.written, log.counts.lost) == (2, 5)
    assert written(tmp_path / "here" / "log").count(loss_line(Loss(1.0, 5))) == 1
    assert read_log(tmp_path / "here" / "log").not_logged == 5


@pytest.mark.mount
def test_a_full_disk_costs_lines_and_no_answer(small_disk):
    """Two mebibytes of room for sixteen; when some is freed, whole lines follow whole lines."""
    now = [0.0]
    limits = LogLimits(file_bytes=16 << 20, total_bytes=64 << 20, retry_s=1.0)
    log = PredictionLog(small_disk / "log", limits=limits, text=True, monotonic=lambda: now[0])
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * (1 << 20))
    answerer = LoggedAnswerer(Echo(), log)

    async def run() -> None:
        for _ in range(40):
            await answerer.answer(Question("x" * 50_000), deadline=1.0)
        assert await log.flush()

    anyio.run(run)
    before = log.counts
    assert before.lost > 5 and before.written > 5
    assert before.lost + before.written == 40
    ballast.unlink()
    now[0] = 2.0

    async def more() -> None:
        for _ in range(5):
            await answerer.answer(Question("x" * 1000), deadline=1.0)
        await answerer.aclose()

    anyio.run(more)
    found = [from_line(one) for one in written(small_disk / "log")]  # every line is whole
    assert sum(isinstance(one, Prediction) for one in found) == before.written + 5
    assert sum(one.count for one in found if isinstance(one, Loss)) == before.lost


CHILD = """
import resource, sys, anyio
from pathlib import Path
from companion.deployment.answering import Answer, Question
from companion.deployment.watching import LogLimits, PredictionLog
limit, count, end = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
log = PredictionLog(Path(sys.argv[1]), limits=LogLimits(retry_s=1e-9))
for number in range(count):
    log.offer(Question("a fine film"), Answer((0.25, 0.75), ("negative", "positive"), "v1"), f"r{number}")
assert anyio.run(log.flush)
print(log.counts.written, log.counts.lost, "scipy" in sys.modules, "numpy" in sys.modules, flush=True)
if end == "killed":
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
anyio.run(log.aclose)
"""


def child(folder: Path, *, limit: int = 0, count: int, end: str = "closed") -> list[str]:
    """Log in another process, and return what it counted."""
    command = [sys.executable, "-c", CHILD, str(folder), str(limit), str(count), end]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), timeout=150)
    assert done.returncode == (-9 if end == "killed" else 0), done.stderr
    return done.stdout.split()


def test_a_limit_of_the_system_on_files_costs_lines_and_no_answer(tmp_path):
    assert resource.RLIMIT_FSIZE is not None
    said, lost, *_ = map(str, child(tmp_path, limit=10_000, count=100))
    assert int(lost) > 0 and int(said) + int(lost) == 100
    found = [from_line(one) for one in written(tmp_path)]
    assert sum(isinstance(one, Prediction) for one in found) == int(said)


def test_a_killed_process_leaves_its_lines_and_loads_no_heavy_library(tmp_path):
    assert child(tmp_path, count=50, end="killed") == ["50", "0", "False", "False"]
    assert len(read_log(tmp_path).versions["v1"]) == 50


def test_a_half_written_line_that_cannot_be_taken_back_stays_alone(tmp_path, monkeypatch):
    files = LogFiles(tmp_path, file_bytes=4096, total_bytes=8192, clock=lambda: 0.0)
    files.write(line(0))
    real = os.write

    def refuse(handle: int, size: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: real(handle, data[:30]))
        patch.setattr(os, "ftruncate", refuse)
        with pytest.raises(OSError):
            files.write(line(1))
    files.write(line(2))
    files.write(line(3))
    files.close()
    content = list(scan([next(tmp_path.iterdir())]))
    assert [type(item).__name__ for item in content] == ["Prediction", "Skipped", "Prediction", "Prediction"]
    assert str(content[1]).endswith(".jsonl:2")


def test_a_tokenizer_that_fails_costs_a_line_and_keeps_the_text_to_itself(tmp_path, caplog):
    def count_tokens(question: Question) -> TokenCount:
        if "boom" in question.text:
            raise RuntimeError("the text was " + question.text)
        return TokenCount(1, 0, 1)

    log = PredictionLog(tmp_path, count_tokens=count_tokens)
    for text in ("one", "boom", "two"):
        log.offer(Question(text), answer_of(), text)
    anyio.run(log.aclose)
    assert (log.counts.written, log.counts.lost) == (2, 1)
    assert "request boom is not logged: RuntimeError" in caplog.text
    assert "the text was" not in caplog.text


def test_a_line_longer_than_a_file_is_lost(tmp_path):
    log = PredictionLog(tmp_path, limits=LogLimits(file_bytes=4096, total_bytes=8192), text=True)
    log.offer(Question("x" * 5000), answer_of())
    log.offer(Question("short"), answer_of())
    anyio.run(log.aclose)
    assert (log.counts.written, log.counts.lost) == (1, 1)


def test_errors_pass_and_are_no_answers(tmp_path):
    log = PredictionLog(tmp_path / "log")
    answerer = LoggedAnswerer(Echo(), log)

    async def run() -> None:
        with pytest.raises(ProblemError):
            await answerer.answer(Question("fail"), deadline=1.0)
        await answerer.aclose()

    anyio.run(run)
    assert log.counts.written == 0
    assert not (tmp_path / "log").exists(), "without an answer there is no folder"


def test_a_log_that_breaks_altogether_costs_no_answer(tmp_path, monkeypatch):
    log = PredictionLog(tmp_path)

    def no_thread(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def run() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            answer = await LoggedAnswerer(Echo(), log).answer(Question("a"), deadline=1.0)
        assert answer.values == (0.25, 0.75)
        log.offer(Question("a"), answer)
        await log.aclose()

    anyio.run(run)
    assert log.counts.written == 1, "the next one starts the thread"


# --- sampling, closing


def test_a_share_of_the_answers_is_logged(tmp_path):
    log = PredictionLog(tmp_path, share=0.25, random_source=random.Random(7))
    for number in range(400):
        log.offer(Question("a"), answer_of(), f"r{number}")
    anyio.run(log.aclose)
    found = objects(tmp_path)
    assert 70 <= len(found) <= 130  # six standard deviations around 100
    assert {one["share"] for one in found} == {0.25}
    assert log.counts.dropped == 0, "what was not drawn is not lost"


def test_a_closed_log_takes_nothing_more(tmp_path):
    log = PredictionLog(tmp_path)
    assert anyio.run(log.flush) and anyio.run(log.aclose) and anyio.run(log.aclose)
    log.offer(Question("late"), answer_of())
    assert log.counts.dropped == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LogLimits(queue_answers=0), "queue_answers is 0, expected more than 0"),
        (lambda: LogLimits(file_bytes=100), "file_bytes is 100, expected at least 4096"),
        (lambda: LogLimits(file_bytes=5000, total_bytes=9999), "room for two files of 5,000: give 10,000"),
        (lambda: PredictionLog(Path("x"), share=0.0), "share is 0.0"),
        (lambda: PredictionLog(Path("x"), key=b"short"), "key has 5 bytes, expected 16 to 64"),
    ],
)
def test_settings_that_make_no_sense(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# --- reading back


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_log_cut_anywhere_gives_every_whole_line(tmp_path_factory, data):
    whole = b"".join(line(number) for number in range(5))
    cut = data.draw(st.integers(0, len(whole)))
    file = tmp_path_factory.mktemp("cut") / "predictions-1.jsonl"
    file.write_bytes(whole[:cut])
    items = list(scan([file]))
    kept = [item for item in items if isinstance(item, Prediction)]
    complete = whole[:cut].count(b"\n")
    rest = whole[:cut].rpartition(b"\n")[2]
    # A line that lacks nothing but its end is whole.
    expected = complete + (rest + b"\n" == line(complete) if complete < 5 else 0)
    assert len(kept) == expected
    assert [type(item) for item in items[expected:]] == [Skipped] * bool(rest and expected == complete)


def test_logs_of_several_processes_are_put_in_order(tmp_path):
    for process in range(3):
        one = b"".join(line(number) for number in range(process, 30, 3))
        (tmp_path / f"predictions-{process}.jsonl").write_bytes(one)
    columns = read_log(tmp_path).versions["v1"]
    assert columns.times.tolist() == sorted(columns.times.tolist())
    assert len(columns) == 30


def test_versions_are_kept_apart(tmp_path):
    file = tmp_path / "predictions-1.jsonl"
    file.write_bytes(line(5, version="new") + line(1, version="old") + line(6, version="new"))
    versions = read_log(file).versions
    assert list(versions) == ["old", "new"]
    assert [len(columns) for columns in versions.values()] == [1, 2]
    odd = prediction_line(
        Prediction(0.0, None, "new", ("a", "b"), (0.5, 0.5), measure_text(Question("x")), "00")
    )
    file.write_bytes(line(5, version="new") + odd)
    with pytest.raises(ValueError, match="new answers with negative, positive in one line and with a, b"):
        read_log(file)


def test_what_is_no_log_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        read_log(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="it is empty: expected the folder"):
        read_log(tmp_path)
    (tmp_path / "a.csv").write_text("text,label\na,b\n")
    with pytest.raises(FileNotFoundError, match=r"but a\.csv: expected the folder"):
        read_log(tmp_path)
    with pytest.raises(ValueError, match=r"a\.csv is no prediction log: line 1 is not JSON"):
        read_log(tmp_path / "a.csv")
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(ValueError, match=r"b\.jsonl, line 1: it has no schema"):
        read_log(tmp_path / "b.jsonl")
    (tmp_path / "predictions-1.jsonl").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="holds no answers yet"):
        read_log(tmp_path)
    (tmp_path / "predictions-1.jsonl").write_bytes(line(0) + line(1).replace(b'"schema":1', b'"schema":9'))
    with pytest.raises(NewerSchemaError, match=r"predictions-1\.jsonl, line 2: it has schema 9"):
        read_log(tmp_path)


# --- tokens of a real tokenizer


def test_tokens_are_counted_as_the_model_reads_them():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "un": 3, "##fair": 4, "film": 5}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))

    class Model:
        def encode(self, texts, pairs=None):
            return tokenizer.encode_batch(
                list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
            )

    count = token_counter(Model())
    assert count(Question("unfair film zzz")) == TokenCount(tokens=6, unknown=1, words=3)
    assert count(Question("film", "unfair")) == TokenCount(tokens=6, unknown=0, words=2)
