"""What is looked at: a model, and whatever is known of its data, its loss, its optimizer and its loop."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from companion.data import Batch, Example
from companion.debugging.calling import Scores, default_scores, mask_name
from companion.training.monitoring.observations import Observation
from companion.training.records import Evaluation, StepRecord

__all__ = ["Kind", "Subject"]

Kind = Literal["classification", "regression", "causal language model", "masked language model", "encoder"]
MakeModel = Callable[[], nn.Module]
MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
MakeSchedule = Callable[[torch.optim.Optimizer, int], Any]
Loss = Callable[[nn.Module, Batch], Tensor]
TrainStep = Callable[[nn.Module, torch.optim.Optimizer, Sequence[Batch]], Any]
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Subject:
    """A model and what surrounds it. All but the model can be left out: checks that need it do not apply.

    Attributes
    ----------
    make_model : callable
        Returns a model of its own at each call; drawing from torch's global generator if it is fresh.
    kind : str
        What the scores are for. An ``encoder`` has none: its "scores" are hidden states (batch, seq, width).
    vocab_size : int
        Token ids are below it.
    classes : int
        Of a classifier; 1 for regression, 0 for language models.
    max_length : int
        Tokens, at most.
    pad_token_id : int
    fresh : bool
        Whether `make_model` gives new weights at each call. A trained model has no initial loss.
    scores : callable
        Calls the model: see `companion.debugging.calling`.
    make_optimizer : callable, optional
        Takes a model.
    make_schedule : callable, optional
        Takes an optimizer and the number of optimizer steps; returns a torch scheduler.
    loss : callable, optional
        Takes a model and a batch; returns the loss that is trained on, as a mean.
    train_step : callable, optional
        Takes a model, an optimizer and the micro-batches of one step; leaves the model one step further.
    collate : callable, optional
        Takes rows of (token ids, label); returns a batch with ``input_ids``, ``attention_mask``, ``labels``.
    encode : callable, optional
        Takes a text; returns its token ids. The one that training used.
    encode_served : callable, optional
        The one that the server uses.
    evaluate : callable, optional
        Takes a model and a list of batches; returns the share of right answers (or of right tokens).
    batches : sequence of dict
        Batches as the loop sees them, on the CPU.
    splits : mapping of str to sequence of Example
        ``train``, ``dev``, ``test``: those that there are.
    label_names : tuple of str
    steps, evaluations, observations : sequence
        The records of a run, and what a Monitor saw of it.
    texts : sequence of Tensor
        Token ids, int64 (seq,) each, without padding: what `ids` is cut from where random tokens are no text
        to the model.
    """

    make_model: MakeModel
    kind: Kind
    vocab_size: int
    classes: int = 0
    max_length: int = 128
    pad_token_id: int = 0
    fresh: bool = True
    scores: Scores = default_scores
    make_optimizer: MakeOptimizer | None = None
    make_schedule: MakeSchedule | None = None
    loss: Loss | None = None
    train_step: TrainStep | None = None
    collate: Callable[[Sequence[tuple[list[int], Any]]], Batch] | None = None
    encode: Callable[[str], list[int]] | None = None
    encode_served: Callable[[str], list[int]] | None = None
    evaluate: Callable[[nn.Module, Sequence[Batch]], float] | None = None
    batches: Sequence[Batch] = ()
    splits: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    label_names: tuple[str, ...] = ()
    steps: Sequence[StepRecord] = ()
    evaluations: Sequence[Evaluation] = ()
    observations: Sequence[Observation] = ()
    texts: Sequence[Tensor] = ()

    @property
    def causal(self) -> bool:
        """Whether no token may see what comes after it."""
        return self.kind == "causal language model"

    @property
    def by_token(self) -> bool:
        """Whether there are scores for each token, (batch, seq, ...), rather than for each text."""
        return self.kind not in ("classification", "regression")

    @property
    def outputs(self) -> int | None:
        """Numbers in the last dimension of the scores; None for an encoder, whose width is its own."""
        if self.kind == "encoder":
            return None
        return self.vocab_size if self.by_token else max(self.classes, 1)

    def takes_mask(self) -> bool:
        """Whether the model can be told what is padding."""
        return self.scores is not default_scores or self._has_mask

    @cached_property
    def _has_mask(self) -> bool:
        with seeded(0):
            return mask_name(self.make_model()) is not None

    def model(self, *, jitter: bool = False, seed: int = 0) -> nn.Module:
        """Return a model of its own, in evaluation mode, the same for the same seed.

        Parameters
        ----------
        jitter : bool
            Move all weights. Fresh ones are so small that attention is nearly uniform and biases are
            nothing: most faults then change no number, and a check would pass whatever is wrong.
        seed : int
        """
        with seeded(seed):
            model = self.make_model().eval()
            if jitter:
                jitter_(model)
        return model

    def ids(self, rows: int = 2, seq: int = 12, *, seed: int = 0) -> Tensor:
        """Return random token ids, int64 (rows, seq), without the padding token.

        Where the model needs `texts`, they begin and end as those do, with words of those between.
        """
        generator = torch.Generator().manual_seed(seed)
        seq = min(seq, self.max_length)
        if self.texts:
            return torch.stack([_cut(self.texts, seq, generator) for _ in range(rows)])
        choices = torch.tensor([token for token in range(self.vocab_size) if token != self.pad_token_id])
        return choices[torch.randint(len(choices), (rows, seq), generator=generator)]

    def padded(self, lengths: Sequence[int], *, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return texts of these lengths, padded on the right, and their mask: int64 (rows, longest) both."""
        ids = self.ids(len(lengths), max(lengths), seed=seed)
        mask = torch.ones_like(ids)
        for row, length in enumerate(lengths):
            if length < ids.size(1):
                ids[row, :length] = self.ids(1, length, seed=seed + row + 1)[0]
                ids[row, length:] = self.pad_token_id
                mask[row, length:] = 0
        return ids, mask


def once(function: Callable[Concatenate[Subject, P], T]) -> Callable[Concatenate[Subject, P], T]:
    """Let a function of a subject run once for each subject, whatever number of checks ask it.

    What it raises is not remembered. What it returns is shared, so nobody may write into it.
    """

    @wraps(function)
    def remembered(subject: Subject, /, *args: P.args, **kwargs: P.kwargs) -> T:
        memory = vars(subject).setdefault("_remembered", {})
        question = (function, args, *kwargs.items())
        if question not in memory:
            memory[question] = function(subject, *args, **kwargs)
        answer: T = memory[question]
        return answer

    return remembered


def _cut(texts: Sequence[Tensor], seq: int, generator: torch.Generator) -> Tensor:
    """Return a text of a length: the first token and the last of one, and words of all between."""
    number = int(torch.randint(len(texts), (1,), generator=generator))
    words = torch.cat([text[1:-1] for text in texts])
    between = words[torch.randint(len(words), (max(seq - 2, 0),), generator=generator)]
    return torch.cat([texts[number][:1], between, texts[number][-1:]])[-seq:]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator, and put it back afterwards."""
    with torch.random.fork_rng(devices=[]):
        # `torch.manual_seed` takes a millisecond without an accelerator: it notes its callers for one.
        (torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed)(seed)
        yield


@torch.no_grad()
def jitter_(model: nn.Module) -> None:
    """Add noise to all parameters, each once however often it is used, as large as trained weights are."""
    moved: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in moved:
                moved.add(id(parameter))
                parameter.add_(_scale(module, parameter) * torch.randn_like(parameter))


def _scale(module: nn.Module, parameter: Tensor) -> float:
    if isinstance(module, nn.Embedding):
        return 0.5
    if parameter.dim() < 2:
        return 0.2  # biases and the weights of norms
    fan_in = parameter.size(0) if type(module).__name__ == "Conv1D" else parameter[0].numel()
    return 1 / math.sqrt(fan_in)


def copies_of(model: nn.Module) -> MakeModel:
    """Return a function that gives a copy of a model at each call."""
    return lambda: copy.deepcopy(model)
