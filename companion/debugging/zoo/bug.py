"""What a bug of the zoo is: an edit of the right code, and what is known about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from companion.debugging.finding import COMPONENTS, Component
from companion.debugging.subject import Kind

__all__ = ["Bug", "Configuration", "Edit", "File", "ZooFamily"]

File = Literal["transformer", "recipe"]
ZooFamily = Literal["architecture", "training", "data"]


@dataclass(frozen=True)
class Edit:
    """One change of a source file.

    Attributes
    ----------
    file : {"transformer", "recipe"}
        `companion.models.transformer` or `companion.debugging.recipe`.
    before : str
        Right code. It occurs in the file exactly once.
    after : str
        What somebody wrote instead.
    """

    file: File
    before: str
    after: str


@dataclass(frozen=True)
class Configuration:
    """What a model is for, its shape, and the recipe's settings.

    Attributes
    ----------
    kind : str
    shape : mapping
        For `TransformerConfig`.
    settings : mapping
        For the recipe's `Settings`.
    because : str
        Of a configuration in which a bug changes nothing: why it does not.
    """

    kind: Kind
    shape: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    because: str = ""


@dataclass(frozen=True)
class Bug:
    """A bug.

    Attributes
    ----------
    name : str
        Short, in lower case, with hyphens.
    title : str
        What is wrong, in one line.
    family : {"architecture", "training", "data"}
    component : str
        Where its repair goes: one of `companion.debugging.finding.COMPONENTS`.
    edits : tuple of Edit
        From right to wrong.
    kind : str
        What the model is for in which the bug shows.
    shape, settings : mapping
        Its shape and the recipe's settings there; the defaults where empty.
    silent : bool
        Whether a run looks as one without the bug: nothing is raised, and the loss falls.
    symptom : str
        What one sees.
    why : str
        What happens.
    fix : str
        What to do.
    hint : str
        Where to look, for somebody who searches; says less than the fix.
    equivalent_where : Configuration, optional
        A configuration in which the bug changes nothing.
    """

    name: str
    title: str
    family: ZooFamily
    component: Component
    edits: tuple[Edit, ...]
    kind: Kind
    symptom: str
    why: str
    fix: str
    hint: str
    silent: bool = True
    shape: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    equivalent_where: Configuration | None = None

    def __post_init__(self) -> None:
        """Refuse a component that does not exist, and a bug without an edit."""
        if self.component not in COMPONENTS:
            raise ValueError(
                f"bug {self.name!r} is in {self.component!r}, expected one of {sorted(COMPONENTS)}"
            )
        if not self.edits:
            raise ValueError(f"bug {self.name!r} edits nothing: give it at least one edit")

    @property
    def configuration(self) -> Configuration:
        """Where the bug shows."""
        return Configuration(self.kind, self.shape, self.settings)
