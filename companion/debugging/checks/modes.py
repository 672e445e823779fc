"""Training and evaluation: what may differ between the two, and what may not."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from companion.debugging.checks.probing import LENGTH, MOVED, Probe, difference, first_to_move, probe
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Finding
from companion.debugging.subject import Subject

__all__ = [
    "dropout_acts_in_training",
    "eval_determinism",
    "modes_agree_without_dropout",
    "switching_modes_changes_nothing",
]


@check(family="model", component="dropout", needs=("make_model",), likelihood=0.9)
def eval_determinism(subject: Subject) -> Finding:
    """Does a model in evaluation mode give the same scores twice?"""
    look = Probe(subject, subject.model(jitter=True))
    ids = look.ids(2)
    one, other = look(ids), look(ids, seed=1)
    if not one.isfinite().all():
        raise NotApplicable("the scores are not finite")
    size = max(float(one.std()), 1e-12)
    moved = difference(one, other) / size
    if moved < MOVED:
        return eval_determinism.ok("two calls give the same scores", {"moved": moved})
    culprit = first_to_move(look.model, lambda: look(ids), lambda: look(ids, seed=1), lambda x: x)
    return eval_determinism.problem(
        f"two calls in evaluation mode differ by {moved:.2g} spreads of the scores; expected 0",
        {"moved": moved},
        why="Answers change from call to call, and every measurement of the model is worse than the model.",
        fix="Use nn.Dropout, which follows model.eval(), or pass training=self.training to "
        "functional.dropout. Keep "
        "submodules in attributes, nn.ModuleList or nn.ModuleDict: eval() does not reach those in a "
        "plain list.",
        where=culprit.where,
    )


@check(family="model", component="dropout", needs=("make_model",), likelihood=0.6)
def dropout_acts_in_training(subject: Subject) -> Finding:
    """Does each dropout of a model do something in training?"""
    look = probe(subject)
    droppers = {
        name: module
        for name, module in look.model.named_modules()
        if isinstance(module, _DropoutNd) and module.p > 0
    }
    wanted = _rates(getattr(look.model, "config", None))
    if not droppers and not wanted:
        raise NotApplicable("the model has no dropout")
    ids = look.ids(4)
    evaluated = look(ids)
    look.model.train()
    trained = look(ids)
    moved = look.moved(trained, evaluated)
    if moved < MOVED:
        named = ", ".join(droppers) or ", ".join(
            f"{name}={rate:g} in its config" for name, rate in wanted.items()
        )
        return dropout_acts_in_training.problem(
            f"the model is to drop ({_short(named)}), and training mode moves no score ({moved:.1e} spreads)",
            {"moved": moved, "dropouts": float(len(droppers))},
            why="The model trains without the regularisation that its settings promise, and overfits sooner.",
            fix="Call the dropout modules in forward, and give functional.dropout training=self.training.",
            where=_short(named),
        )
    owners = {name: type(look.model.get_submodule(name.rpartition(".")[0])).__module__ for name in droppers}
    dead = [
        name
        for name, module in droppers.items()
        # Some layers of transformers hold one that they never call: their authors' choice.
        if not owners[name].startswith("transformers.") and _is_dead(look, module, ids, trained)
    ]
    if not dead:
        return dropout_acts_in_training.ok(
            f"training mode moves scores by {moved:.2g} spreads; all {len(droppers)} dropouts act",
            {"moved": moved},
        )
    return dropout_acts_in_training.problem(
        f"{len(dead)} of {len(droppers)} dropouts never act: switching them off moves no score",
        {"dead": float(len(dead)), "dropouts": float(len(droppers))},
        why="A part of the model trains without the regularisation that it was given.",
        fix="Call these modules in forward: on attention's weights after softmax, on the output of "
        "attention and "
        "of feed-forward before the residual sum, on the sum of embeddings.",
        where=_short(", ".join(dead)),
    )


def _is_dead(look: Probe, module: _DropoutNd, ids: Tensor, trained: Tensor) -> bool:
    """Whether scores in training, with the same random numbers, are the same without one dropout.

    Not whether it is called: many models read its `p` and hand that to a function.
    """
    rate, module.p = module.p, 0.0
    try:
        return difference(look(ids), trained) == 0.0
    finally:
        module.p = rate


def _rates(config: object) -> dict[str, float]:
    """Return the general dropout rates in a model's config that are above zero."""
    names = ("dropout", "hidden_dropout_prob", "resid_pdrop", "dropout_rate", "hidden_dropout", "embd_pdrop")
    found = {name: getattr(config, name, None) for name in names}
    return {name: rate for name, rate in found.items() if isinstance(rate, float) and rate > 0}


def _short(names: str, most: int = 160) -> str:
    return names if len(names) <= most else names[: most - 3] + "..."


@check(family="model", component="dropout", needs=("make_model",), likelihood=0.7)
def switching_modes_changes_nothing(subject: Subject) -> Finding:
    """Are scores the same after a stretch of training mode without a step?"""
    look = probe(subject)
    ids = look.ids(2)
    before = look(ids)
    state = {name: tensor.clone() for name, tensor in look.model.state_dict().items()}
    look.model.train()
    look(subject.ids(3, 9, seed=5))
    look.model.eval()
    if any(difference(state[name].float(), now.float()) > 0 for name, now in look.model.state_dict().items()):
        raise NotApplicable("the model keeps statistics of what it sees in training")
    moved = look.moved(look(ids), before)
    if moved < MOVED:
        return switching_modes_changes_nothing.ok("a call in training mode leaves no trace", {"moved": moved})
    return switching_modes_changes_nothing.problem(
        f"after a call in training mode and model.eval(), scores are {moved:.2g} spreads away; expected 0",
        {"moved": moved},
        why="What the model says depends on what it was asked before.",
        fix="Keep no masks, caches or hidden states of a call for the next, and let eval() reach all "
        "submodules.",
    )


@check(family="model", component="dropout", needs=("make_model",), likelihood=0.7)
def modes_agree_without_dropout(subject: Subject) -> Finding:
    """Without dropout, are training and evaluation the same computation?"""
    look = probe(subject)
    _silence(look.model)
    ids, mask = subject.padded([LENGTH, 7, 4]) if look.takes_mask() else (look.ids(3), None)
    evaluated = look(ids, mask)
    look.model.train()
    trained, again = look(ids, mask), look(ids, mask, seed=1)
    look.model.eval()
    if look.moved(trained, again) >= MOVED:
        raise NotApplicable("something else than dropout is random in training")
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in look.model.modules()):
        raise NotApplicable("batch norm computes differently in training, as it should")
    if subject.by_token and mask is not None:
        evaluated, trained = evaluated[mask.bool()], trained[mask.bool()]
    moved = look.moved(evaluated, trained)
    if moved < MOVED:
        return modes_agree_without_dropout.ok(
            f"both modes give the same scores ({moved:.1e} spreads apart)", {"moved": moved}
        )
    return modes_agree_without_dropout.problem(
        f"without dropout, training mode gives scores {moved:.2g} spreads away from evaluation mode; "
        "expected 0",
        {"moved": moved},
        why="The model is trained to be one function, and used as another.",
        fix="Look in forward for what asks self.training: nothing but dropout should.",
    )


def _silence(model: nn.Module) -> None:
    """Set all dropout rates to 0: those of modules, and those that modules keep as numbers."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and (
                "drop" in name or (name == "p" and isinstance(module, _DropoutNd))
            ):
                setattr(module, name, 0.0)


@check(family="model", component="dropout", needs=("make_model",), likelihood=0.7)
def dropout_rates(subject: Subject) -> Finding:
    """Is more kept than dropped?"""
    droppers = {
        name: module.p for name, module in subject.model().named_modules() if isinstance(module, _DropoutNd)
    }
    if not any(droppers.values()):
        raise NotApplicable("the model has no dropout module with a rate above 0")
    high = {name: rate for name, rate in droppers.items() if rate > 0.7}
    evidence = {"highest": max(droppers.values()), "dropouts": float(len(droppers))}
    if not high:
        return dropout_rates.ok(f"the highest rate is {evidence['highest']:g}", evidence)
    return dropout_rates.problem(
        f"{len(high)} of {len(droppers)} dropouts drop {max(high.values()):.0%} of what they are given",
        evidence,
        where=_short(", ".join(high)),
        why="Next to nothing comes through in training, and what does is scaled up many times.",
        fix="nn.Dropout takes the share to drop, not the share to keep.",
    )
