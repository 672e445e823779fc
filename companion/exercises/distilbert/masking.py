"""Step ``masking``: tokens are hidden anew each time, as BERT hides them. A learner may draw in any order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from companion.data import Batch
from companion.exercises.distilbert.texts import make_batch, make_tokenizer
from companion.exercises.exercise import Step
from companion.exercises.probing import Failed, Probe
from companion.exercises.values import plain, same, shown
from companion.training.objectives import IGNORED

__all__ = ["MASKING"]

_ROWS, _LENGTH, _CALLS = 96, 60, 8


@dataclass(frozen=True)
class _Seen:
    """All calls of one function on one batch: (calls, rows, length)."""

    ids: torch.Tensor
    hidden: torch.Tensor
    targets: torch.Tensor

    @property
    def chosen(self) -> torch.Tensor:
        return self.targets != IGNORED


def _examine(work: Any, probe: Probe) -> str:
    generator = torch.Generator().manual_seed(probe.seed)
    tokenizer = make_tokenizer(probe.seed)
    batch = make_batch(tokenizer, _ROWS, _LENGTH, generator)
    share = 0.1 + 0.2 * torch.rand((), generator=generator).item()
    hide = partial(_hide, probe, work, batch, tokenizer, share)
    stream = torch.Generator().manual_seed(probe.seed + 1)
    calls = [hide(stream, f"{_CALLS} calls, {share:.0%} to hide") for _ in range(_CALLS)]
    seen = _Seen(
        batch["input_ids"].expand(_CALLS, -1, -1),
        torch.stack([call["input_ids"] for call in calls]),
        torch.stack([call["targets"] for call in calls]),
    )
    real = batch["attention_mask"].bool()
    special = torch.isin(batch["input_ids"], torch.tensor(tokenizer.all_special_ids))
    _where(probe, seen, real, special & real)
    _targets(probe, seen)
    _renewed(probe, seen)
    _how_many(probe, seen, (real & ~special), share)
    _what_instead(probe, seen, tokenizer, share)
    _reproducible(probe, hide)
    return "it hides like the package's mask_tokens: the right tokens, anew each time, 80/10/10."


def _hide(
    probe: Probe, work: Any, batch: Batch, tokenizer: Any, share: float, stream: torch.Generator, what: str
) -> dict[str, torch.Tensor]:
    """Call the learner's function once; see that it returned two tensors of the right shape."""
    watched = {f"batch[{name!r}]": tensor for name, tensor in batch.items()}
    answer = probe.call(work, dict(batch), tokenizer, share, stream, what=what, watched=watched)
    if not isinstance(answer, Mapping):
        raise Failed(f"it returned a {type(answer).__name__}, expected a dict with input_ids and targets.")
    found: dict[str, torch.Tensor] = {}
    for name in ("input_ids", "targets"):
        tensor = plain(answer[name]) if name in answer else None
        if tensor is None:
            raise Failed(f"{name} is missing in what it returned, or no tensor; it has {', '.join(answer)}.")
        if tensor.shape != batch["input_ids"].shape or tensor.is_floating_point():
            raise Failed(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}, expected whole numbers of shape "
                f"{tuple(batch['input_ids'].shape)}."
            )
        found[name] = tensor.long()
    return found


def _where(probe: Probe, seen: _Seen, real: torch.Tensor, special: torch.Tensor) -> None:
    """See that no padding and no special token is chosen or changed."""
    touched = seen.chosen | (seen.hidden != seen.ids)
    for name, places in (("padding", ~real), ("special tokens", special)):
        count = int((touched & places).sum())
        probe.require(
            count == 0,
            f"{name} hidden or to be predicted",
            0,
            count,
            f"{name} {'is' if name == 'padding' else 'are'} hidden or predicted: nothing can be learnt "
            "there, and the loss counts it all the same.",
        )


def _targets(probe: Probe, seen: _Seen) -> None:
    """See that the target is what was there, and that nothing else was changed."""
    wrong = int((seen.targets != seen.ids)[seen.chosen].sum())
    probe.require(
        wrong == 0,
        "targets that are not the token that was there",
        0,
        wrong,
        "targets hold something else than the original tokens: were they copied after hiding?",
    )
    silent = int(((seen.hidden != seen.ids) & ~seen.chosen).sum())
    probe.require(
        silent == 0,
        "tokens changed without a target",
        0,
        silent,
        "tokens are changed whose target is -100: the model would read noise and never be asked about it.",
    )


def _renewed(probe: Probe, seen: _Seen) -> None:
    """See that each call hides others, and each row."""
    repeated = sum(same(seen.targets[0], seen.targets[call]) for call in range(1, _CALLS))
    probe.require(
        repeated == 0,
        "later calls that hid the same tokens as the first",
        0,
        repeated,
        "it hides the same tokens each time: static masking. Draw from the generator that is passed in, and "
        "do not seed it inside.",
    )
    # A column is the same in all rows that reach it when one row of chances was drawn for the whole batch.
    inner = seen.chosen[:, :, 1 : _LENGTH // 2 - 1].float().mean(dim=1)
    constant = ((inner == 0) | (inner == 1)).float().mean().item()
    probe.require(
        constant < 0.5,
        "share of places that are hidden in all rows or in none",
        "0",
        shown(constant),
        "every row hides the same places: draw a number for each token, not for each place.",
    )


def _how_many(probe: Probe, seen: _Seen, maskable: torch.Tensor, share: float) -> None:
    found = seen.chosen[:, maskable].float().mean().item()
    probe.require(
        abs(found - share) < 0.02,
        "share of the tokens that may be hidden",
        f"{share:.3f}",
        f"{found:.3f}",
        f"it hides {found:.1%} of the tokens, {share:.1%} was asked for.",
    )


def _what_instead(probe: Probe, seen: _Seen, tokenizer: Any, share: float) -> None:
    """See that of the chosen ones 80% become the mask token, 10% another token, and 10% stay."""
    hidden, ids = seen.hidden[seen.chosen], seen.ids[seen.chosen]
    masked = hidden == tokenizer.mask_token_id
    drawn = hidden[~masked & (hidden != ids)]
    found = {
        "the mask token": (masked.float().mean().item(), 0.8),
        "another token": (len(drawn) / len(hidden), 0.1),
        "what it was": ((hidden == ids).float().mean().item(), 0.1),
    }
    right = True
    for name, (got, wanted) in found.items():
        right &= probe.show(
            f"share that became {name}", f"{wanted:.2f}", f"{got:.2f}", abs(got - wanted) < 0.03
        )
    if not right:
        shares = [got for got, _ in found.values()]
        why = "the fates of the chosen tokens are not 80/10/10."
        if shares[0] == 1:
            why = "every chosen token becomes the mask token: no token is replaced by another or left."
        elif shares[0] == 0:
            why = "no token becomes the mask token: is its id the tokenizer's mask_token_id?"
        elif min(shares[1:]) < 0.04:
            why += " Two draws one after the other: the second chance has to be relative to what is left."
        raise Failed(why)
    kinds = len(set(drawn.tolist())) / max(1, len(drawn))
    probe.require(
        kinds > 0.2,
        "different tokens among the random ones, as a share",
        "above 0.2",
        shown(kinds),
        "the random tokens are nearly always the same: draw one for each place, from the whole vocabulary.",
    )


def _reproducible(probe: Probe, hide: Any) -> None:
    what = "two generators in the same state"
    first, second = (hide(torch.Generator().manual_seed(probe.seed), what) for _ in range(2))
    equal = same(first["input_ids"], second["input_ids"]) and same(first["targets"], second["targets"])
    probe.require(
        equal,
        what,
        "the same tokens hidden",
        "the same" if equal else "other ones",
        "it does not draw from the generator alone: a run that was interrupted could not be repeated.",
    )


MASKING = Step(
    name="masking",
    title="Dynamic masking",
    task=(
        "hide(batch, tokenizer, share, generator): batch has input_ids and attention_mask, int64 (batch, "
        "seq). Return a new dict with input_ids, tokens hidden, and targets: the original token where one "
        "was chosen, -100 elsewhere. Each token that is neither special nor padding is chosen with the "
        "chance share; of the chosen ones 80% become the mask token, 10% a random token, 10% stay. Draw "
        "from the generator alone."
    ),
    hints=(
        "Which tokens must never be chosen? And if the second of two draws only sees what the first one "
        "left, what does its chance have to be?",
        "Draw one tensor of torch.rand(ids.shape, generator=generator) to choose, and a second one for the "
        "fate of each chosen token: below 0.8, from 0.9 on, between. torch.where makes a new tensor.",
        "special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids)); chosen = mask.bool() & ~special "
        "& (rand < share); hidden = torch.where(chosen & (fate < 0.8), tokenizer.mask_token_id, ids); "
        "hidden = torch.where(chosen & (fate >= 0.9), random_ids, hidden); targets = torch.where(chosen, "
        "ids, -100)",
    ),
    examine=_examine,
)
