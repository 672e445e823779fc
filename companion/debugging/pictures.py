"""Pictures of attention: who looks at whom, and how widely each head looks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from companion import plots
from companion.debugging.attention_maps import AttentionMaps
from companion.plots import PALETTE, Plot
from companion.training.monitoring.attention import attention_entropy

__all__ = ["head_entropies", "plot_attention", "plot_entropy"]

_SHADES = 16
_MANY = 24  # labels that fit on an axis


def plot_attention(
    maps: AttentionMaps,
    tokens: Sequence[str],
    *,
    layer: int | str = 0,
    head: int = 0,
    row: int = 0,
    keys: Sequence[str] | None = None,
) -> Plot:
    """Draw one head's attention as a heat map: each row says where one token looks.

    Parameters
    ----------
    maps : list of (str, Tensor)
        From `companion.debugging.attention_maps.attention_maps`.
    tokens : sequence of str
        The tokens that look; as many as are to be drawn, from the first on: leave padding out.
    layer : int or str
        The index in `maps`, or the name.
    head, row : int
        The head, and the text of the batch.
    keys : sequence of str, optional
        The tokens that are looked at, if they are others: between encoder and decoder.

    Returns
    -------
    Plot

    Raises
    ------
    ValueError
        When there is no such layer, head or text, or there are more tokens than weights.
    """
    name, weights = _chosen(maps, layer, head, row)
    seen = list(tokens) if keys is None else list(keys)
    if not tokens or not seen or len(tokens) > weights.size(0) or len(seen) > weights.size(1):
        raise ValueError(
            f"{len(tokens)} tokens that look at {len(seen)}, and weights {tuple(weights.shape)}: expected "
            "one token for each row and each column, or fewer"
        )
    shown = weights[: len(tokens), : len(seen)]
    title = f"{name or 'attention'}, head {head}"
    alt = f"{title}: where each of {len(tokens)} tokens looks. {_finding(shown, list(tokens), seen)}"
    side = 1.4 + 0.26 * min(max(len(tokens), len(seen)), _MANY)
    with plots.style():
        figure, axes = plots.figure(width=min(side + 0.8, 7.0), height=min(side, 6.6))
        _heat_map(figure, axes, shown, label="weight", top=float(shown[torch.isfinite(shown)].max()))
        _label(axes.yaxis, list(tokens))
        _label(axes.xaxis, seen)
        axes.tick_params(axis="x", rotation=60 if max(map(len, seen)) > 2 else 0)
        axes.set(xlabel="looks at", ylabel="token", title=title)
        return plots.show(figure, alt=alt)


def head_entropies(maps: AttentionMaps, attention_mask: Tensor) -> list[list[float]]:
    """Return the normalised attention entropy of each head of each layer.

    Parameters
    ----------
    maps : list of (str, Tensor)
    attention_mask : Tensor
        (batch, seq), 1 for real tokens.

    Returns
    -------
    list of list of float
        Layers by heads: 1 is uniform, 0 is all on one token; NaN where no token can see two. See
        `companion.training.monitoring.attention.attention_entropy`.

    Raises
    ------
    ValueError
        When the attention is between two texts, or has another length than the mask.
    """
    found = []
    for name, weights in maps:
        if weights.shape[-2:] != (attention_mask.size(1),) * 2:
            raise ValueError(
                f"{name}: weights {tuple(weights.shape)} and a mask {tuple(attention_mask.shape)}: expected "
                "attention of a text to itself; leave the layers between encoder and decoder out"
            )
        causal = not bool(weights.triu(diagonal=1).any())
        heads = [weights[:, head : head + 1] for head in range(weights.size(1))]
        entropies = [attention_entropy(part, attention_mask, causal=causal) for part in heads]
        found.append([math.nan if value is None else value for value in entropies])
    return found


def plot_entropy(maps: AttentionMaps, attention_mask: Tensor) -> Plot:
    """Draw how widely each head of each layer looks; parameters and errors as in `head_entropies`.

    Raises
    ------
    ValueError
        When there are no layers.
    """
    if not maps:
        raise ValueError("no attention maps: expected those of at least one layer")
    entropies = head_entropies(maps, attention_mask)
    heads = max(map(len, entropies))
    grid = torch.tensor([[*row, *[math.nan] * (heads - len(row))] for row in entropies])
    places = [(layer, head) for layer, row in enumerate(entropies) for head in range(len(row))]
    measured = [place for place in places if math.isfinite(float(grid[place]))]
    alt = (
        f"Attention entropy of {len(places)} heads in {len(maps)} layers; 1 is uniform, 0 all on one token. "
    )
    if measured:
        sharp, wide = (pick(measured, key=lambda place: float(grid[place])) for pick in (min, max))
        alt += (
            f"The sharpest is head {sharp[1]} of {maps[sharp[0]][0]} with {float(grid[sharp]):.2f}, the "
            f"widest head {wide[1]} of {maps[wide[0]][0]} with {float(grid[wide]):.2f}."
        )
    else:
        alt += "No token can look at two others, so none is measured."
    with plots.style():
        figure, axes = plots.figure(width=min(3.2 + 0.34 * heads, 7.0), height=1.3 + 0.3 * len(maps))
        _heat_map(figure, axes, grid, label="entropy (of maximum)", top=1.0)
        _label(axes.yaxis, [name or f"layer {index}" for index, (name, _) in enumerate(maps)])
        _label(axes.xaxis, [str(head) for head in range(heads)])
        axes.set(xlabel="head", ylabel="layer")
        return plots.show(figure, alt=alt)


def _chosen(maps: AttentionMaps, layer: int | str, head: int, row: int) -> tuple[str, Tensor]:
    names = [name for name, _ in maps]
    index = names.index(layer) if isinstance(layer, str) and layer in names else layer
    if isinstance(index, str) or not 0 <= index < len(maps):
        raise ValueError(f"layer {layer!r} found, an index below {len(maps)} or one of {names} expected")
    name, weights = maps[index]
    if not 0 <= row < weights.size(0) or not 0 <= head < weights.size(1):
        raise ValueError(
            f"text {row}, head {head} found: {name} has {weights.size(0)} texts of {weights.size(1)} heads"
        )
    return name, weights[row, head]


def _finding(weights: Tensor, tokens: list[str], keys: list[str]) -> str:
    """Say in words what a heat map shows."""
    if bool(weights.isnan().any()):
        rows = int(weights.isnan().any(dim=1).sum())
        return f"{rows} of {len(tokens)} rows are not numbers: these tokens see nothing."
    # A token that sees one alone has no choice.
    choosing = (weights > 0).sum(dim=1) > 1
    chosen = weights.masked_fill(~choosing[:, None], 0.0) if bool(choosing.any()) else weights
    looking, looked_at = divmod(int(chosen.argmax()), weights.size(1))
    received = weights.mean(dim=0)
    favourite = int(received.argmax())
    said = (
        f"The largest weight, {float(chosen.max()):.2f}, goes from {tokens[looking]!r} to "
        f"{keys[looked_at]!r}. {keys[favourite]!r} (place {favourite}) gets the most, "
        f"{float(received[favourite]):.0%} of all attention."
    )
    if weights.size(0) == weights.size(1):
        said += f" A token gives {float(weights.diagonal().mean()):.0%} to itself on average."
        ahead = float(weights.triu(diagonal=1).sum(dim=1).max()) if weights.size(0) > 1 else 0.0
        if weights.size(0) > 1:
            said += (
                " No token looks ahead."
                if ahead == 0
                else f" Up to {ahead:.0%} of a row goes to later tokens."
            )
    return said


def _heat_map(figure: Any, axes: Any, values: Tensor, *, label: str, top: float) -> None:
    """Draw cells from see-through to the first colour: so they stand on a light and on a dark page."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize, to_rgb

    colour = to_rgb(PALETTE.series[0])
    shades = ListedColormap([(*colour, 0.04 + 0.96 * shade / (_SHADES - 1)) for shade in range(_SHADES)])
    scale = Normalize(0.0, top if top > 0 else 1.0)
    cells = values.masked_fill(~values.isfinite(), 0.0).numpy()
    axes.pcolormesh(cells, cmap=shades, norm=scale, edgecolors="none", rasterized=False)
    for row, column in (~values.isfinite()).nonzero().tolist():
        axes.text(column + 0.5, row + 0.5, "×", ha="center", va="center", color=PALETTE.series[3])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_aspect("equal" if values.size(0) > 2 else "auto")
    bar = figure.colorbar(ScalarMappable(scale, shades), ax=axes, shrink=0.7, label=label)
    bar.outline.set_visible(False)
    bar.solids.set_rasterized(False)


def _label(axis: Any, names: list[str]) -> None:
    """Name cells in their middle; of very many, every second, third, ... one."""
    every = -(-len(names) // _MANY)
    places = range(0, len(names), every)
    # A dollar sign would start a formula.
    axis.set_ticks([place + 0.5 for place in places], [names[place].replace("$", r"\$") for place in places])
    axis.set_tick_params(length=0)
