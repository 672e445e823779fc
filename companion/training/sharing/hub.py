"""Turns a model folder into what a hub repository holds, checks it offline, and uploads it when told to."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from companion.artifacts import staged_folder
from companion.training.sharing.cards import model_card
from companion.training.sharing.checks import validate
from companion.training.sharing.files import ATTRIBUTES, CARD, LARGE, SHARED, Problem, unfit
from companion.training.sharing.gathering import is_place
from companion.training.sharing.licences import LICENCES
from companion.training.sharing.reports import REPORT, WEIGHTS, read_report, write_report

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["prepare", "upload"]

_WRITTEN = (CARD, REPORT, ATTRIBUTES)  # made here, not copied
_LFS = "filter=lfs diff=lfs merge=lfs -text"
_PLACES = ("_name_or_path", "name_or_path", "tokenizer_file", "vocab_file", "merges_file")


def prepare(
    folder: Path,
    out: Path,
    *,
    repo_id: str | None = None,
    license: str | None = None,
    language: Sequence[str] = (),
) -> Path:
    """Make a hub folder of a model folder: complete and without problems, or not at all.

    Configuration, weights and tokenizer are copied; the card is written from ``training.json``; other files
    stay behind. Places on this machine that transformers noted in the configuration are taken out.

    Parameters
    ----------
    folder : Path
        A model folder with ``training.json``, see `companion.training.sharing.write_report`.
    out : Path
        New, empty, or an earlier result of this function.
    repo_id : str, optional
        Where the model will be, for the example on the card.
    license : str, optional
        The hub's identifier, such as ``"apache-2.0"``. Default: the report's.
    language : sequence of str, optional
        ISO 639 codes, such as ``"en"``. Default: the report's.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    FileNotFoundError
        When `folder`, or the report in it, is missing.
    ValueError
        When the folder holds what must not be shared or has problems (all are named), or `out` holds
        something else.
    OSError
        When `out` cannot be written, or the disk is full.
    """
    folder, out = folder.expanduser().resolve(), out.expanduser().resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder, expected a model folder. Check the path.")
    if out == folder or out in folder.parents or folder in out.parents:
        raise ValueError(f"{out} and {folder} lie in each other: expected another folder to write")
    _check_identifiers(repo_id, license, language)
    _refuse(folder, unfit(folder))
    report = read_report(folder)
    report = replace(report, license=license or report.license, language=tuple(language) or report.language)
    if out.is_dir() and (others := {path.name for path in out.iterdir()} - SHARED):
        raise ValueError(f"{out} holds {min(others)}: expected a new folder, or an earlier result")
    with staged_folder(out, marker=ATTRIBUTES) as staging:
        for name in sorted(SHARED.difference(_WRITTEN)):
            if (folder / name).is_file():
                _copy(folder / name, staging / name)
        if (staging / WEIGHTS).is_file():
            report = write_report(report, staging)
        (staging / CARD).write_text(model_card(report, repo_id=repo_id), encoding="utf-8")
        _write_attributes(staging)
        _refuse(folder, validate(staging))
    return out


def upload(
    folder: Path,
    repo_id: str,
    *,
    confirm: bool = False,
    token: str | None = None,
    private: bool = True,
    api: HfApi | None = None,
) -> str:
    """Upload a hub folder. This is the only function of the package that sends anything anywhere.

    Parameters
    ----------
    folder : Path
        Made by `prepare`.
    repo_id : str
        ``"name"`` or ``"namespace/name"``; made if it is not there.
    confirm : bool
        Must be True: nothing is uploaded by accident.
    token : str, optional
        Default: the one that ``hf auth login`` stored.
    private : bool
        Whether the repository is visible to its owner only. A public one that is there already is then left
        alone.
    api : HfApi, optional
        Default: the hub's.

    Returns
    -------
    str
        Address of the commit.

    Raises
    ------
    ValueError
        Without `confirm`, when the name is none that the hub takes, when the folder has problems, or when
        the repository is public and should not be.
    """
    if confirm is not True:
        raise ValueError(f"uploading {folder} to {repo_id} was not confirmed: pass confirm=True (--upload)")
    _check_identifiers(repo_id, None, ())
    folder = folder.expanduser()
    _refuse(folder, validate(folder))
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi(token=token)
    made = api.create_repo(repo_id, token=token, private=private, repo_type="model", exist_ok=True)
    # An existing repository keeps its visibility, whatever create_repo was told.
    if private and not api.repo_info(made.repo_id, token=token, repo_type="model").private:
        raise ValueError(
            f"{made.repo_id} is there already and public, but the upload should be private: nothing was "
            "uploaded. Give another name, or say that it may be public."
        )
    commit = api.upload_folder(
        repo_id=made.repo_id,
        folder_path=folder,
        repo_type="model",
        commit_message="Upload the model with its card",
        token=token,
        allow_patterns=sorted(path.name for path in folder.iterdir()),
    )
    return str(commit.commit_url)


def _refuse(folder: Path, problems: Sequence[Problem]) -> None:
    """Raise with all problems in one message."""
    if problems:
        found = "; ".join(map(str, problems))
        raise ValueError(f"{folder} cannot be shared, problems: {len(problems)}. {found}.")


def _check_identifiers(repo_id: str | None, license: str | None, language: Sequence[str]) -> None:
    """Refuse what the hub would refuse."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"the repository's name is {repo_id!r}, expected NAME or OWNER/NAME: {error}"
        ) from None
    if license is not None and license not in LICENCES:
        near = get_close_matches(license.lower(), sorted(LICENCES), n=3, cutoff=0.5) or ["apache-2.0"]
        raise ValueError(
            f"the license is {license!r}, expected an identifier of the hub, such as {', '.join(near)}; "
            "for one that it does not know give 'other'"
        )
    if isinstance(language, str):
        raise ValueError(f"language is {language!r}, expected a sequence of codes: ({language!r},)")
    for code in language:
        if not re.fullmatch(r"[a-z]{2,3}|code|multilingual", code):
            raise ValueError(f"the language is {code!r}, expected an ISO 639 code, such as en")


def _copy(source: Path, target: Path) -> None:
    """Copy a file; from a configuration, leave out where on this machine it came from."""
    if source.name in ("config.json", "tokenizer_config.json"):
        text = source.read_text(encoding="utf-8")
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{source} is not JSON ({error}). Save the model again.") from None
        places = [name for name in _PLACES if isinstance(data, dict) and is_place(data.get(name))]
        if places:
            kept = {name: value for name, value in data.items() if name not in places}
            text = json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
        target.write_text(text, encoding="utf-8")
    else:
        shutil.copyfile(source, target)


def _write_attributes(folder: Path) -> None:
    """Send weights, and whatever else is large, through large file storage."""
    large = {path.name for path in folder.iterdir() if path.stat().st_size > LARGE}
    names = ["*.safetensors", *sorted(name for name in large if not name.endswith(".safetensors"))]
    text = "".join(f"{name} {_LFS}\n" for name in names)
    (folder / ATTRIBUTES).write_text(text, encoding="utf-8")
