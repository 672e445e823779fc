"""One run on several processes: who takes which rows, and whose sums are added up.

Started by ``torchrun``, `fit` shards parameters, gradients and optimizer states over the processes
(FSDP2 [1]_). Without it there is one process, and everything here does nothing.

When a process ends with an error, ``torchrun`` ends the others: none waits for ever. An error of one process
that another could run past, to wait elsewhere, is raised in all of them (`Processes.together`).

References
----------
.. [1] Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", VLDB 2023.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from companion.data import Batch
from companion.training.device import choose_device

__all__ = ["Processes", "join", "joined", "micro_batches", "shard"]


@dataclass(frozen=True)
class Processes:
    """The processes that compute one run together.

    Attributes
    ----------
    rank : int
        Which one this is; counts from 0.
    count : int
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def total(self, values: Mapping[str, float], device: torch.device) -> dict[str, float]:
        """Add up each value over all processes, in float64 (float32 on MPS)."""
        if self.count == 1:
            return dict(values)
        kind = torch.float32 if device.type == "mps" else torch.float64
        tensor = torch.tensor(list(values.values()), dtype=kind, device=device)
        dist.all_reduce(tensor)
        return dict(zip(values, tensor.tolist(), strict=True))

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            dist.barrier()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Leave the block together: when it raises in one process, the same is raised in all of them.

        Without this the others would go on to wait for one that is gone. No process may use another one's
        results inside the block.

        Raises
        ------
        Exception
            That of the first process that has one.
        """
        if self.count == 1:
            yield
            return
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        failures: list[Exception | None] = [None] * self.count
        # A traceback cannot be sent; the process it belongs to raises its own exception, with its traceback.
        dist.all_gather_object(failures, failure and failure.with_traceback(None))
        if failure is not None:
            raise failure
        for other in failures:
            if other is not None:
                raise other


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the process group for a block, and leave it at the end if it was made here.

    When the block raises, the group stays: taking it down can wait for processes that wait for this one, and
    the error would never be seen. The process is expected to end then.

    Yields
    ------
    Processes
    """
    ours = dist.is_available() and not dist.is_initialized()
    processes = join()
    yield processes
    if ours and processes.count > 1:
        processes.wait()  # one that has left already could not answer the others any more
        dist.destroy_process_group()


def join() -> Processes:
    """Join the process group that ``torchrun`` announces in the environment; alone without one.

    Returns
    -------
    Processes

    Raises
    ------
    ValueError
        When there are more processes on this machine than GPUs, or the device cannot work with others.
    """
    if not dist.is_available():
        return Processes()
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return Processes()
        _make_group(choose_device())
    return Processes(dist.get_rank(), dist.get_world_size())


def _make_group(device: torch.device) -> None:
    if device.type == "mps":
        raise ValueError(
            "several processes cannot share the work on MPS: set COMPANION_DEVICE to 'cpu', or start one"
        )
    if device.type == "cuda":
        local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= gpus:
            raise ValueError(
                f"process {local} of this machine has no GPU of its own, there are {gpus}: "
                "start as many processes as GPUs (--nproc-per-node)"
            )
        torch.cuda.set_device(local)
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    store, rank, count = next(rendezvous("env://"))
    # torchrun's store outlives a group. A second group must not find the addresses of the first one there.
    made_before = (store.add("companion/joined", 1) - 1) // count
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore(f"companion/{made_before}", store),
        rank=rank,
        world_size=count,
    )


def shard(model: nn.Module, processes: Processes) -> None:
    """Shard a model's parameters over the processes, in place: each layer a unit of its own, then the rest.

    Outside of a forward and its backward pass every process holds its shards only.

    Parameters
    ----------
    model : torch.nn.Module
        On its device. Its layers are found as the entries of its longest `torch.nn.ModuleList`.
    processes : Processes
    """
    if processes.count == 1:
        return
    from torch.distributed.fsdp import fully_shard

    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    units: list[Any] = [*max(lists, key=len, default=()), model]
    for unit in units:
        fully_shard(unit)
    for unit in units:
        # Makes the buffers that whole parameters are gathered in. If an evaluation made them, in inference
        # mode, training could not write to them.
        unit.unshard()
        unit.reshard()
    model.register_forward_hook(_shard_again)


def _shard_again(model: Any, *_: Any) -> None:
    """Shard the outermost unit again after an evaluation.

    It stays whole after a forward pass, for the backward pass that shards it. Where none follows, a
    checkpoint would find whole parameters there, which the optimizer does not know.
    """
    if not torch.is_grad_enabled():
        model.reshard()


def micro_batches(
    batch: Batch, size: int | None, processes: Processes, *, multiple_of: int = 1
) -> Iterator[tuple[Batch, bool]]:
    """Cut a batch into this process's micro-batches, each as narrow as its longest text allows.

    Every process gets the same number of them, for all must take part in each pass. Where the rows do not
    suffice, one gets a row of another again, to compute and not to count.

    Parameters
    ----------
    batch : dict
        The whole batch, tensors of (batch, ...).
    size : int or None
        Rows of a micro-batch; None: all of this process's rows.
    processes : Processes
    multiple_of : int
        Widths are rounded up to a multiple of this many tokens, as those of the batch were.

    Yields
    ------
    tuple of dict and bool
        The micro-batch, and whether it counts.
    """
    rows = len(batch["index"])
    together = (size or -(-rows // processes.count)) * processes.count
    for first in range(0, rows, together):
        own = range(first + processes.rank, min(first + together, rows), processes.count)
        if len(own) == rows:
            yield batch, True
            return
        part = {name: tensor[own.start : own.stop : own.step] for name, tensor in batch.items()}
        spare = {name: tensor[:1] for name, tensor in batch.items()}
        yield _trimmed(part if len(own) else spare, multiple_of), len(own) > 0


def _trimmed(batch: Batch, multiple_of: int) -> Batch:
    """Drop the columns that are padding in every row."""
    used = batch["attention_mask"].bool().any(dim=0).nonzero()
    width = batch["attention_mask"].shape[1]
    if not len(used):
        return batch
    pad_left = int(used[-1]) == width - 1 and int(used[0]) > 0
    needed = width - int(used[0]) if pad_left else int(used[-1]) + 1
    kept = min(-(-needed // multiple_of) * multiple_of, width)
    columns = slice(width - kept, width) if pad_left else slice(0, kept)
    return {
        name: tensor[:, columns] if tensor.ndim == 2 and tensor.shape[1] == width else tensor
        for name, tensor in batch.items()
    }
