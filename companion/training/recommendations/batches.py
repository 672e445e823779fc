"""How many examples a step takes, and how they are spread over passes and devices."""

from __future__ import annotations

from dataclasses import dataclass

from companion.training.recommendations.rates import Kind

__all__ = ["Split", "default_batch", "split"]


@dataclass(frozen=True)
class Split:
    """A batch as devices compute it.

    Attributes
    ----------
    micro_batch_size : int
        Examples per pass on one device.
    accumulation : int
        Passes per step on one device.
    devices : int
    reasons : tuple of str
    """

    micro_batch_size: int
    accumulation: int
    devices: int
    reasons: tuple[str, ...]


def default_batch(kind: Kind, *, examples: int, devices: int, few: bool) -> tuple[int, tuple[str, ...]]:
    """Choose a batch size within the published range, a multiple of `devices`, and say why.

    Parameters
    ----------
    kind : {"encoder", "decoder", "pretraining"}
    examples, devices : int
    few : bool
        Whether the data set counts as small.

    Returns
    -------
    tuple of int and tuple of str
        Examples per step over all devices, and the reasons.

    Raises
    ------
    ValueError
        If there are fewer examples than devices.
    """
    if kind == "pretraining":
        alone, most, says = (
            256,
            4096,
            "256 to 4,096 in pre-training (Devlin et al. 2019 take 256; claim batch-ranges)",
        )
    elif devices == 1:
        alone, most, says = (
            16 if few else 32,
            32,
            "16 to 32 on one device (Devlin et al. 2019; claim batch-ranges)",
        )
    else:
        alone, most, says = 16 if few else 32, 256, "32 to 256 on several devices (claim batch-ranges)"
    each = max(1, min(alone, most // devices))
    reason = f"batch: {each * devices}, of {says}"
    if each * devices > examples:
        if examples < devices:
            raise ValueError(
                f"{examples} examples for {devices} devices found: take at most {examples} devices"
            )
        each = examples // devices
        reason = f"batch: {each * devices}, for there are {examples} examples; usual are {says}"
    return each * devices, (reason,)


def split(batch_size: int, *, examples: int, devices: int, limit: int | None) -> Split:
    """Spread a batch evenly: batch size = micro-batch x accumulation x devices.

    Parameters
    ----------
    batch_size, examples, devices : int
    limit : int, optional
        Examples that one pass on one device can hold.

    Returns
    -------
    Split
        With the largest micro-batch that divides a device's share and keeps to the limit.

    Raises
    ------
    ValueError
        If the batch exceeds the examples or does not divide among the devices.
    """
    if batch_size > examples:
        raise ValueError(f"batch_size is {batch_size} with {examples} examples: take at most {examples}")
    share, left = divmod(batch_size, devices)
    if left:
        near = f"{share * devices} or {(share + 1) * devices}" if share else f"{devices}"
        raise ValueError(f"batch_size is {batch_size}, no multiple of {devices} devices: take {near}")
    if limit is None or share <= limit:
        reason = f"accumulation: none, a pass takes a device's {share} examples whole"
        if limit is None:
            reason += "; no limit was given, so measure whether they fit"
        return Split(share, 1, devices, (f"{reason} (claim accumulation-equivalence)",))
    micro = max(size for size in range(1, limit + 1) if share % size == 0)
    reasons = [
        f"accumulation: {share // micro} passes of {micro} make a device's {share}, at most {limit} fit; the "
        "gradient is that of the whole batch (claim accumulation-equivalence)"
    ]
    if micro <= limit // 2:
        better = devices * limit * max(1, round(share / limit))
        reasons.append(
            f"accumulation: {share} has no divisor near {limit}; a batch of {better} would fill the devices "
            "(no source)"
        )
    return Split(micro, share // micro, devices, tuple(reasons))
