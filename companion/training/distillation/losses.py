r"""The three losses of distillation, as pure functions on tensors.

Each returns a sum over the positions that its mask chooses, so that the loop can divide by the count of the
whole batch; padding is in none of them, because no mask chooses it. With :math:`z_s, z_t` the logits of
student and teacher, :math:`T` the temperature and :math:`h_s, h_t` hidden states:

- :math:`T^2 \sum_v p_t(v) \log \frac{p_t(v)}{p_s(v)}` with :math:`p = \mathrm{softmax}(z / T)` [1]_,
- :math:`-\log \mathrm{softmax}(z_s)_y` where token :math:`y` was hidden [2]_,
- :math:`1 - \cos(h_s, h_t)` [3]_.

References
----------
.. [1] Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015.
.. [2] Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", NAACL 2019.
.. [3] Sanh et al., "DistilBERT, a distilled version of BERT", 2019.
"""

from __future__ import annotations

import torch
from torch.nn import functional

__all__ = ["cosine_distance", "kl_with_temperature", "masked_cross_entropy"]


def kl_with_temperature(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    mask: torch.Tensor | None = None,
    temperature: float = 2.0,
) -> torch.Tensor:
    r"""Sum the divergence of the student's softened distribution from the teacher's, times :math:`T^2`.

    The gradient with respect to a logit shrinks as :math:`1/T^2` when :math:`T` grows; the factor keeps its
    size, so that the weight of this loss keeps its meaning at every temperature (Hinton et al. 2015, section
    2). Libraries differ here: weights carry over only between recipes that both have the factor.

    Parameters
    ----------
    student_logits, teacher_logits : Tensor
        Any float dtype, (..., classes). No gradient flows into the teacher's.
    mask : Tensor, optional
        Which positions count, bool (...). Only these are made float32. Default: all.
    temperature : float
        Above 0.

    Returns
    -------
    Tensor
        Nats, float32, a scalar: the sum over ``mask.sum()`` positions.

    Raises
    ------
    ValueError
        When the shapes differ or the temperature is not above 0.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"the student's logits have shape {tuple(student_logits.shape)}, the teacher's "
            f"{tuple(teacher_logits.shape)}: expected the same positions and the same classes"
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected a number above 0")
    student, teacher = _chosen(student_logits, mask), _chosen(teacher_logits.detach(), mask)
    divergence = functional.kl_div(
        functional.log_softmax(student / temperature, dim=-1),
        functional.log_softmax(teacher / temperature, dim=-1),
        reduction="sum",
        log_target=True,
    )
    return divergence * temperature**2


def masked_cross_entropy(logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sum the cross-entropy of the hidden tokens.

    Parameters
    ----------
    logits : Tensor
        Any float dtype, (..., vocabulary).
    targets : Tensor
        What was hidden, int64 (...); read where the mask chooses.
    mask : Tensor
        Which positions were hidden, bool (...). Only these are made float32.

    Returns
    -------
    Tensor
        Nats, float32, a scalar: the sum over ``mask.sum()`` positions.
    """
    return functional.cross_entropy(logits[mask].float(), targets[mask], reduction="sum")


def cosine_distance(
    student_hidden: torch.Tensor, teacher_hidden: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum one minus the cosine of the angle between hidden states.

    Parameters
    ----------
    student_hidden, teacher_hidden : Tensor
        Any float dtype, (..., hidden). No gradient flows into the teacher's.
    mask : Tensor, optional
        Which positions count, bool (...). Default: all.

    Returns
    -------
    Tensor
        Between 0 and 2 for each position, float32, a scalar: the sum over ``mask.sum()`` positions.

    Raises
    ------
    ValueError
        When the shapes differ.
    """
    if student_hidden.shape != teacher_hidden.shape:
        raise ValueError(
            f"the student's hidden states have shape {tuple(student_hidden.shape)}, the teacher's "
            f"{tuple(teacher_hidden.shape)}: expected the same; without a projection the cosine needs hidden "
            "sizes that are equal, so set its weight to 0 for a narrower student"
        )
    student, teacher = _chosen(student_hidden, mask), _chosen(teacher_hidden.detach(), mask)
    return (1 - functional.cosine_similarity(student, teacher, dim=-1)).sum()


def _chosen(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return (values if mask is None else values[mask]).float()
