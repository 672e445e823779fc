"""Beam search: several texts for each row of a batch, continued side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from companion.inference.generation.steps import Reader
from companion.inference.generation.strategies import Beam

__all__ = ["Path", "search"]


class Path(NamedTuple):
    """A generated text: its words, and the log-probability of each.

    Attributes
    ----------
    token_ids : tuple of int
    log_probabilities : tuple of float
    """

    token_ids: tuple[int, ...] = ()
    log_probabilities: tuple[float, ...] = ()

    def then(self, token: int, log_probability: float) -> Path:
        """Return the text with one more word."""
        return Path((*self.token_ids, token), (*self.log_probabilities, log_probability))


class Candidate(NamedTuple):
    """One more word for one of a row's open texts.

    Attributes
    ----------
    total : float
        The sum of all log-probabilities, this word's included.
    beam : int
        Which of the open texts.
    token : int
    log_probability : float
        Of this word.
    """

    total: float
    beam: int
    token: int
    log_probability: float


@dataclass
class RowSearch:
    """The search for one row's continuation.

    Attributes
    ----------
    beam : Beam
    open : list of Path
        The texts that are continued, best first.
    ended : list of (float, Path)
        The best texts that have ended, with their scores, best first; at most the beam's width.
    """

    beam: Beam
    open: list[Path] = field(default_factory=lambda: [Path()])
    ended: list[tuple[float, Path]] = field(default_factory=list)

    def advance(self, candidates: list[Candidate], eos_token_id: int | None, last: bool) -> list[Candidate]:
        """Take the best candidates, best first; return those that are to be continued.

        Every text ends at the `last` word, whatever it is.
        """
        going: list[Candidate] = []
        paths: list[Path] = []
        for rank, candidate in enumerate(candidates):
            path = self.open[candidate.beam].then(candidate.token, candidate.log_probability)
            if last or candidate.token == eos_token_id:
                if rank < self.beam.width:
                    self.ended.append((self._score(candidate.total, path), path))
            elif len(going) < self.beam.width:
                going.append(candidate)
                paths.append(path)
        self.ended = sorted(self.ended, key=lambda entry: entry[0], reverse=True)[: self.beam.width]
        self.open = paths
        if not going or self._is_done(going[0].total):
            return []
        return going

    def _score(self, total: float, path: Path) -> float:
        return total / math.pow(len(path.token_ids), self.beam.length_penalty)

    def _is_done(self, best: float) -> bool:
        if len(self.ended) < self.beam.width:
            return False
        return self.beam.early_stopping or self._score(best, self.open[0]) <= self.ended[-1][0]


def search(
    reader: Reader, input_ids: Tensor, beam: Beam, max_new_tokens: int, eos_token_id: int | None
) -> list[Path]:
    """Return the best continuation of each row.

    Parameters
    ----------
    reader : Reader
        Has read nothing yet.
    input_ids : Tensor
        int64 (rows, seq): the prompts.
    beam : Beam
    max_new_tokens : int
    eos_token_id : int or None

    Returns
    -------
    list of Path
    """
    searches = [RowSearch(beam) for _ in input_ids]
    running = list(searches)
    scores = reader.read(input_ids)
    # Each prompt is read once; its row becomes `width` rows with the first choice.
    totals = scores.new_zeros(len(running), 1)
    for length in range(1, max_new_tokens + 1):
        still: list[RowSearch] = []
        chosen: list[Candidate] = []
        rows: list[int] = []
        beams = totals.size(1)
        for row, candidates in enumerate(_candidates(scores, totals, 2 * beam.width)):
            going = running[row].advance(candidates, eos_token_id, last=length == max_new_tokens)
            if going:
                still.append(running[row])
                chosen += going
                rows += [row * beams + candidate.beam for candidate in going]
        if not still:
            break
        running = still
        reader.select(torch.tensor(rows, device=input_ids.device))
        scores = reader.read(input_ids.new_tensor([[candidate.token] for candidate in chosen]))
        totals = scores.new_tensor([candidate.total for candidate in chosen]).view(len(running), -1)
    return [found.ended[0][1] for found in searches]


def _candidates(scores: Tensor, totals: Tensor, count: int) -> list[list[Candidate]]:
    """Return each row's best words for any of its texts, best first.

    Twice the width is enough: of `width` texts, at most `width` candidates are the end of the text.
    """
    words = scores.size(-1)
    logs = scores.float().log_softmax(dim=-1).view(len(totals), -1, words)
    best, where = (totals[..., None] + logs).flatten(1).topk(count)
    steps = logs.flatten(1).gather(1, where)
    return [
        [
            Candidate(total, place // words, place % words, step)
            for total, place, step in zip(*row, strict=True)
        ]
        for row in zip(best.tolist(), where.tolist(), steps.tolist(), strict=True)
    ]
