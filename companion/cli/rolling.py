"""The commands that steer the rollout of a running server: `rollout status`, `load`, `canary` and so on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from companion.cli.options import Json

__all__ = ["rollout"]

rollout = typer.Typer(help="Exchange the model of a running server.", rich_markup_mode=None)

_TIMEOUT_S = 120
"""A server that says nothing for so long is not waited for."""
_PATIENCE_MS = 60_000
"""What the server is told: loading takes seconds, and longer on a busy machine."""
_LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})

Url = Annotated[str, typer.Option("--url", help="The server, such as http://127.0.0.1:8000.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--admin-key", "--key-file", help="A file with the admin key. Default: COMPANION_ADMIN_KEY."
    ),
]
Share = Annotated[float, typer.Argument(min=0, max=1, help="0 to 1, such as 0.05; 0 ends it.")]

_DEFAULT_URL = "http://127.0.0.1:8000"


@rollout.command()
def status(key_file: KeyFile = None, url: Url = _DEFAULT_URL, as_json: Json = False) -> None:
    """Show the versions, who is asked, and what was seen of the one on trial."""
    _show(_call(url, key_file, "GET", ""), as_json)


@rollout.command()
def load(
    folder: Annotated[str, typer.Argument(help="An ONNX folder, by its full path on the server.")],
    key_file: KeyFile = None,
    url: Url = _DEFAULT_URL,
    other_tokenizer: Annotated[
        bool,
        typer.Option("--other-tokenizer", help="Its tokenizer differs from the live version's on purpose."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Load a candidate. It is asked nothing before canary or shadow says so."""
    body = {"folder": folder, "other_tokenizer": other_tokenizer}
    _show(_call(url, key_file, "POST", "/load", body), as_json)


@rollout.command()
def unload(key_file: KeyFile = None, url: Url = _DEFAULT_URL, as_json: Json = False) -> None:
    """Let the candidate go, or, without one, the version kept for a rollback."""
    _show(_call(url, key_file, "POST", "/unload"), as_json)


@rollout.command()
def canary(
    share: Share,
    key_file: KeyFile = None,
    url: Url = _DEFAULT_URL,
    by_header: Annotated[
        bool, typer.Option("--by-header", help="Also requests with the header X-Rollout: candidate.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Let the candidate answer a share of the callers."""
    _show(_call(url, key_file, "POST", "/canary", {"share": share, "by_header": by_header}), as_json)


@rollout.command()
def shadow(share: Share, key_file: KeyFile = None, url: Url = _DEFAULT_URL, as_json: Json = False) -> None:
    """Send the candidate copies of a share of the questions; clients do not notice."""
    _show(_call(url, key_file, "POST", "/shadow", {"share": share}), as_json)


@rollout.command()
def promote(key_file: KeyFile = None, url: Url = _DEFAULT_URL, as_json: Json = False) -> None:
    """Make the candidate live, and keep the version before for a rollback."""
    _show(_call(url, key_file, "POST", "/promote"), as_json)


@rollout.command()
def rollback(key_file: KeyFile = None, url: Url = _DEFAULT_URL, as_json: Json = False) -> None:
    """Drop the candidate, or go back to the version before the promotion."""
    _show(_call(url, key_file, "POST", "/rollback"), as_json)


def _call(
    url: str, key_file: Path | None, method: str, path: str, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Put one request to the server; return its status document."""
    import http.client
    from urllib.error import HTTPError, URLError
    from urllib.request import HTTPRedirectHandler, Request, build_opener

    from companion.deployment.rollout.admin_key import read_admin_key

    class StayHere(HTTPRedirectHandler):
        """Follows no redirection: the key is for this server alone."""

        def redirect_request(self, *arguments: Any) -> None:
            return None

    address = f"{_checked(url)}/admin/rollout{path}"
    data = None if body is None else json.dumps(body).encode()
    headers = {
        "X-Admin-Key": read_admin_key(key_file),
        "X-Request-Timeout-Ms": str(_PATIENCE_MS),
        "Accept": "application/json",
    }
    if data is not None:
        headers["Content-Type"] = "application/json"
    request = Request(address, data, headers, method=method)
    try:
        with build_opener(StayHere).open(request, timeout=_TIMEOUT_S) as answer:
            found = json.loads(answer.read())
    except HTTPError as error:
        with error:
            raise ValueError(_refusal(address, error.code, error.read(1 << 16))) from None
    except URLError as error:
        raise ValueError(
            f"{url} does not answer ({error.reason}): is the server there? Give --url."
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(f"{url} broke off ({error or type(error).__name__}): look at its log.") from None
    except ValueError:
        found = None
    if not isinstance(found, dict) or "stage" not in found:
        raise ValueError(
            f"{address} gave no status of a rollout: expected a server of companion, look at --url."
        )
    return found


def _checked(url: str) -> str:
    """Refuse what is no address of a server; warn where others could read the key."""
    from urllib.parse import urlsplit

    wrong = f"--url is {url!r}, expected an address such as {_DEFAULT_URL}"
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        raise ValueError(wrong) from None
    if not known or parts.query or parts.fragment or parts.username is not None:
        raise ValueError(wrong)
    if parts.scheme == "http" and parts.hostname not in _LOCAL:
        print(f"companion: warning: the key goes to {parts.hostname} unencrypted: use https", file=sys.stderr)
    return url.rstrip("/")


def _refusal(address: str, code: int, body: bytes) -> str:
    """Say what the server said."""
    try:
        problem = json.loads(body)
        detail, kind = str(problem["detail"]), str(problem["code"])
    except (KeyError, TypeError, ValueError):
        return f"{address} answered {code}: expected a server of companion with an admin key, look at --url."
    if code == 404:
        return f"{address} is not there: start the server with --rollout STATE_FILE."
    return f"the server said {kind}: {detail}"


def _show(status: dict[str, Any], as_json: bool) -> None:
    """Print the status: one JSON object, or a line for each thing that is known."""
    if as_json:
        typer.echo(json.dumps(status, ensure_ascii=False))
        return
    for name, text in _lines(status):
        typer.echo(f"{name:20} {text}")


def _lines(status: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [("stage", status["stage"])]
    if status["loading"]:
        lines.append(("loading", status["loading"]))
    for name in ("live", "candidate", "previous"):
        if version := status[name]:
            lines.append((name, f"{version['version']} ({version['folder']})"))
            lines.append((f"{name} latency", _latency(version["latency"])))
    if status["candidate"]:
        header = ", and by header" if status["by_header"] else ""
        lines.append(("canary", f"{status['canary']:.3%} of the callers{header}"))
        lines.append(("shadow", f"{status['shadow']:.3%} of the questions"))
    if trial := status["trial"]:
        lines += _trial_lines(trial)
    for event in status["events"][-5:]:
        words = (
            event["at"],
            event["version"],
            event["what"],
            "by itself" * event["automatic"],
            event["detail"],
        )
        lines.append(("event", " ".join(filter(None, words))))
    return lines + [("warning", text) for text in status["warnings"]]


def _trial_lines(trial: dict[str, Any]) -> list[tuple[str, str]]:
    agreement = trial["agreement"]
    names = ("answered", "replaced", "excused", "held_back", "shadowed", "dropped")
    lines = [("on trial", ", ".join(f"{name.replace('_', ' ')} {trial[name]}" for name in names))]
    for name in ("errors", "disagreements"):
        test = trial[name]
        lines.append(
            (name, f"{test['bad']} bad of {test['answers']}, tolerated {test['tolerated']:.3g} of all")
        )
    if compared := agreement["compared"]:
        share = f"{agreement['share']:.2%} ({agreement['low']:.2%} to {agreement['high']:.2%}) of {compared}"
        lines.append(("agreement", f"{share}, largest difference {agreement['largest_difference']:.3g}"))
    if trial["shadow_latency"]["count"]:
        lines.append(("shadow latency", _latency(trial["shadow_latency"])))
    return lines


def _latency(report: dict[str, Any]) -> str:
    found = [
        f"{part['name']} {part['ms']:.3g} ms ({part['low_ms']:.3g} to {part['high_ms']:.3g})"
        for part in report["percentiles"]
        if part["ms"] is not None
    ]
    return ", ".join(found) or f"too few answers to tell: {report['count']}"
