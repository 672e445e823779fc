"""Inspects a server as a black box: it is started, asked, stopped, and raced against the naive one."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from companion.exercises.deployment.answers import (
    distance,
    judge_answers,
    judge_int8,
    likeness,
    read_answer,
)
from companion.exercises.deployment.asking import Reply, ask_all
from companion.exercises.deployment.behaving import (
    judge_company,
    judge_concurrency,
    judge_errors,
    judge_loading,
)
from companion.exercises.deployment.draining import Drained, clients_for, judge_drain
from companion.exercises.deployment.findings import CHECKS, ServerFinding, ServerInspection
from companion.exercises.deployment.material import Material
from companion.exercises.deployment.offline import ModelFacts, read_facts
from companion.exercises.deployment.processes import ServerProcess, free_port, surroundings
from companion.exercises.deployment.submission import (
    ServerSubmission,
    naive_server,
    read_submission,
)

__all__ = ["Site", "inspect", "inspect_folder"]

_FEW, _CLIENTS, _ASKERS, _MOST_CLIENTS = 2, 8, 32, 256
_SLOW, _ASKING = 5.0, 60.0
"""Replies per second below which fewer are asked at once, and seconds for all texts together."""
_NAIVE_SECONDS, _SECONDS, _NAIVE_PATIENCE = 3.0, 30.0, 4
_MARGIN = 1.5
"""A middle ratio less than this factor from what is required decides nothing: the race is run again."""


@dataclass(frozen=True)
class Site:
    """Where servers are started.

    Attributes
    ----------
    scratch : Path
        The only folder that they may write in.
    wrap : callable
        Takes a command, returns one that runs it with fewer rights.
    clear : callable
        Called when no server should run: ends what is left of them.
    """

    scratch: Path
    wrap: Callable[[list[str]], list[str]] = list
    clear: Callable[[], None] = lambda: None

    def environment(self) -> dict[str, str]:
        """Return what every server finds in its environment."""
        return surroundings(self.scratch)

    @contextmanager
    def running(self, submission: ServerSubmission) -> Iterator[ServerProcess]:
        """Start a server; in the end nothing of it is left, neither a process nor a file."""
        port = free_port()
        environment = {**self.environment(), **submission.environment(port)}
        command = self.wrap(submission.argv(port))
        try:
            with ServerProcess(command, submission.folder, environment, port) as server:
                yield server
        finally:
            self.clear()
            for entry in self.scratch.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)


def inspect_folder(folder: str | Path, material: Material) -> ServerInspection:
    """Inspect a submission of one's own, with one's own rights; grading does it with walls around.

    Parameters
    ----------
    folder : str or Path
        Holds ``serve.toml``. A copy of it is started.
    material : Material
        See `draw`.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_submission`.
    """
    read_submission(folder)
    with tempfile.TemporaryDirectory(prefix="companion-server-") as place:
        copy, scratch = Path(place) / "submission", Path(place) / "scratch"
        shutil.copytree(folder, copy, symlinks=True)
        scratch.mkdir()
        return inspect(read_submission(copy), material, Site(scratch))


def inspect(submission: ServerSubmission, material: Material, site: Site) -> ServerInspection:
    """Make all checks.

    Parameters
    ----------
    submission : ServerSubmission
        A copy: its model's folder is moved away for a moment.
    material : Material
    site : Site

    Returns
    -------
    ServerInspection
        With every check, whatever the server does.
    """
    begun = time.monotonic()
    texts = [*material.texts, *(text for one in material.rounds for text in one)]
    try:
        facts = read_facts(
            submission.model,
            texts,
            candidates=material.candidates,
            wrap=site.wrap,
            environment=site.environment(),
        )
    except ValueError as error:
        advice = "Make the folder with companion export, and try companion predict on it."
        first = ServerFinding("ready", False, "a model that can be opened", str(error), advice)
        return _complete([first], (), begun)
    finally:
        site.clear()
    findings = _look(submission, material, site, facts)
    ratios: tuple[float, ...] = ()
    if material.requirements.rounds and any(one.check == "answers" and one.passed for one in findings):
        finding, ratios = _race(submission, material, site, facts)
        findings.append(finding)
    return _complete(findings, ratios, begun)


def _look(
    submission: ServerSubmission, material: Material, site: Site, facts: ModelFacts
) -> list[ServerFinding]:
    """Start the server once, and make every check but the race."""
    wanted, texts = material.requirements, material.texts
    expected = f"status 200 from /health/ready within {wanted.ready_seconds:g} s"
    try:
        with site.running(submission) as server:
            waited = server.ready_within(wanted.ready_seconds)
            if waited is None:
                return [ServerFinding("ready", False, expected, _not_ready(server), _START)]
            findings = [ServerFinding("ready", True, expected, f"after {waited:.1f} s")]
            replies, rate = _ask(server.port, texts, facts, wanted.reply_seconds)
            telling = _ask(server.port, facts.telling, facts, wanted.reply_seconds)[0] if replies else []
            truth = material.labels[: len(replies)]
            findings += judge_answers(replies, facts, truth, wanted, telling=telling)
            if 2 * sum(not reply.status for reply in replies) > len(replies):
                return findings  # it hangs: nothing more can be learnt, and each question takes a minute
            answered = next(one.passed for one in findings if one.check == "answers")
            close, row = wanted.close, facts.probabilities[0]
            findings += [
                judge_company(server.port, texts, facts, wanted),
                judge_int8(facts, answered, wanted, alike=likeness(telling, facts)),
                judge_errors(server.port, texts[0], row, facts.labels, close),
                judge_concurrency(
                    server.port, texts, facts, wanted, askers=_ASKERS if rate > _SLOW else _CLIENTS
                ),
                judge_loading(server.port, submission.model, texts, facts, close),
            ]
            drained = None
            if server.ended is None:
                drained = judge_drain(server, texts, facts, wanted, clients=clients_for(rate))
        if drained is not None:
            if answered and not drained.under_way and drained.finding.passed:
                drained = _drain_again(submission, material, site, facts, drained, clients_for(rate))
            findings.append(drained.finding)
        return findings
    except OSError as error:
        return [ServerFinding("ready", False, expected, f"it cannot be started ({error})", _START)]


def _drain_again(
    submission: ServerSubmission,
    material: Material,
    site: Site,
    facts: ModelFacts,
    first: Drained,
    clients: int,
) -> Drained:
    """Stop it under more load: nothing was under way at the moment of the signal, so nothing was shown."""
    found = first
    for times in (4, 16):
        with site.running(submission) as server:
            if server.ready_within(material.requirements.ready_seconds) is None:
                break
            found = judge_drain(
                server,
                material.texts,
                facts,
                material.requirements,
                clients=min(times * clients, _MOST_CLIENTS),
            )
        if found.under_way or not found.finding.passed:
            break
    return found


def _ask(port: int, texts: Sequence[str], facts: ModelFacts, patience: float) -> tuple[list[Reply], float]:
    """Ask the texts; only a few where none of these gets an answer, and for a minute where it is slow.

    Returns
    -------
    list of Reply
        To the first texts.
    float
        Replies per second.
    """
    begun = time.monotonic()
    replies = ask_all(port, texts[:_CLIENTS], clients=_CLIENTS, timeout=patience)
    if any(not isinstance(read_answer(reply, facts.labels), str) for reply in replies):
        replies += ask_all(port, texts[_CLIENTS:], clients=_CLIENTS, seconds=_ASKING)
    return replies, len(replies) / (time.monotonic() - begun)


_START = "Start it by hand, with PORT and MODEL in the environment and nothing else; see what it prints."


def _race(
    submission: ServerSubmission, material: Material, site: Site, facts: ModelFacts
) -> tuple[ServerFinding, tuple[float, ...]]:
    """Run both servers in turns, each alone on the machine, until the middle of the ratios is clear."""
    wanted = material.requirements
    expected = f"at least {wanted.speed:g} times the naive server's requests per second"
    naive = naive_server(submission)
    own = dict(zip((text for one in material.rounds for text in one), _later(facts, material), strict=True))
    ratios: list[float] = []
    for number, texts in enumerate(material.rounds):
        rates = []
        for one, checked in ((submission, own), (naive, None)):
            # How slowly the naive server starts on a busy machine is not the submission's fault.
            patience = wanted.ready_seconds * (1 if one is submission else _NAIVE_PATIENCE)
            rate = _rate(one, texts, site, facts, checked, wanted.close, patience)
            if isinstance(rate, str):
                whose = "the server" if one is submission else "the naive server, on this model,"
                found = f"in round {number + 1} {whose} did not come through: {rate}"
                return ServerFinding("throughput", False, expected, found, _FASTER), tuple(ratios)
            rates.append(rate)
        ratios.append(rates[0] / rates[1])
        middle = statistics.median(ratios)
        clear = middle > _MARGIN * wanted.speed or middle < wanted.speed / _MARGIN
        if number + 1 >= wanted.rounds and (clear or number + 1 == 2 * wanted.rounds):
            break
    found = f"{middle:.1f} times ({min(ratios):.1f} to {max(ratios):.1f} in {len(ratios)} rounds)"
    good = middle >= wanted.speed
    return ServerFinding("throughput", good, expected, found, "" if good else _FASTER), tuple(ratios)


_FASTER = "Load once, and compute where the event loop does not wait for it."


def _later(facts: ModelFacts, material: Material) -> Sequence[Sequence[float]]:
    return facts.probabilities[len(material.texts) :]


def _rate(
    submission: ServerSubmission,
    texts: Sequence[str],
    site: Site,
    facts: ModelFacts,
    own: dict[str, Sequence[float]] | None,
    close: float,
    ready_seconds: float,
) -> float | str:
    """Return requests per second; or say why there are none. Fast wrong answers are none."""
    with site.running(submission) as server:
        if server.ready_within(ready_seconds) is None:
            return _not_ready(server)
        warming = _CLIENTS if own else _FEW
        ask_all(server.port, [f"Warm up {number}." for number in range(warming)], clients=warming)
        begun = time.monotonic()
        seconds = _SECONDS if own else _NAIVE_SECONDS
        # The naive server answers one after the other: more clients would only wait for longer.
        replies = ask_all(server.port, texts, clients=_CLIENTS if own else _FEW, seconds=seconds)
        took = time.monotonic() - begun
    for text, reply in zip(texts, replies, strict=False):
        if own is None:
            if reply.status != 200:
                return reply.says()
            continue
        row = read_answer(reply, facts.labels)
        if isinstance(row, str) or distance(row, own[text]) > close:
            return row if isinstance(row, str) else "an answer that is not the model's"
    return len(replies) / took if replies else "no reply"


def _not_ready(server: ServerProcess) -> str:
    last = (server.said.splitlines() or ["nothing"])[-1][:200]
    if server.ended is not None:
        return f"it ended with code {server.ended}; the last that it printed: {last}"
    return f"it runs and is not ready; the last that it printed: {last}"


def _complete(findings: list[ServerFinding], ratios: tuple[float, ...], begun: float) -> ServerInspection:
    """Add what could not be looked at, in the order of all checks."""
    made = {finding.check: finding for finding in findings}
    blocked = next((one.check for one in findings if not one.passed), "ready")
    for name in CHECKS:
        if name not in made:
            advice = f"Make `{blocked}` pass first."
            made[name] = ServerFinding(name, False, CHECKS[name][0], "not looked at", advice)
    return ServerInspection(tuple(made[name] for name in CHECKS), ratios, time.monotonic() - begun)
