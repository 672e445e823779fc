"""One server's settings, divided among its processes; and what cannot be divided."""

from __future__ import annotations

from companion.deployment.configuration import ServerSettings
from companion.settings import get_settings

__all__ = ["check_alone", "divide"]


def check_alone(settings: ServerSettings, copies: str) -> None:
    """Refuse what each process would do for itself, and the caller means for all of them.

    Parameters
    ----------
    settings : ServerSettings
    copies : str
        What there are several of, for the message.

    Raises
    ------
    ValueError
        For rates without Redis, and for a rollout.
    """
    if settings.rate is not None and settings.redis is None:
        raise ValueError(
            f"rates would be counted in each of several {copies}, and a caller get more than "
            f"{settings.rate}: count them together with --redis redis://HOST:PORT/0."
        )
    if getattr(settings, "rollout", None) is not None:
        raise ValueError(
            f"a rollout is steered in one process, and a canary in one of several {copies} would be in no "
            "other: use one process and more --workers, or several servers behind a load balancer."
        )


def divide(settings: ServerSettings, processes: int) -> list[ServerSettings]:
    """Give each process its share of threads and workers; everything else is as it was.

    Parameters
    ----------
    settings : ServerSettings
    processes : int

    Returns
    -------
    list of ServerSettings
        One for each process, for one process each.

    Raises
    ------
    ValueError
        When there are fewer threads or workers than processes.
    """
    threads = settings.threads or get_settings().threads
    for name, value in (("threads", threads), ("workers", settings.workers)):
        if value is not None and value < processes:
            raise ValueError(
                f"processes is {processes}, but there are {value} {name}, expected at least one for each: "
                f"choose fewer --processes, or more --{name}."
            )
    shares = [
        settings.but(threads=share, processes=1, workers=workers)
        for share, workers in zip(
            _shares(threads, processes),
            _shares(settings.workers, processes) if settings.workers else [None] * processes,
            strict=True,
        )
    ]
    return shares


def _shares(total: int, parts: int) -> list[int]:
    each, rest = divmod(total, parts)
    return [each + (part < rest) for part in range(parts)]
