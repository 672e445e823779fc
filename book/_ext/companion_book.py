"""The book's own Sphinx extension.

- keys the execution cache on the package's source, so that a changed package runs its pages again;
- writes the API reference from what can be imported;
- renders formulas as MathML, which browsers draw without a script;
- shows the ledger of claims and the zoo of bugs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.domains.python import PyObject

import cache_key
import claims_page
import mathml
import reference
import zoo_page


def _root(app: Sphinx) -> Path:
    """Return the checkout: the folder that holds the package."""
    return Path(app.confdir or app.srcdir).resolve()


def key_cache(app: Sphinx, config: Config) -> None:
    """Give the execution cache a folder of its own for each state of package, versions and settings."""
    root = _root(app)
    caches = Path(app.outdir).parent / ".jupyter_cache"
    folder = caches / cache_key.cache_key(root)
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    cache_key.prune(caches)
    config.nb_execution_cache_path = str(folder)
    os.environ.setdefault("COMPANION_PROGRESS", "0")  # a progress bar is noise on a page


def write_reference(app: Sphinx, config: Config) -> None:
    """Write one page for each top-level module of the package, before the table of contents is read."""
    if config.companion_reference:
        reference.write_pages(config.companion_reference, _root(app) / "book" / "reference" / "api")


def drop_thebe(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Take the scripts of Thebe off the page: it runs cells on a network service, which nothing here uses."""
    for kind in ("script_files", "css_files"):
        context[kind] = [item for item in context[kind] if not _is_thebe(item)]


def _is_thebe(item: Any) -> bool:
    """Tell whether a script or style sheet belongs to Thebe."""
    body = str(getattr(item, "attributes", {}).get("body", ""))
    return "thebe" in f"{getattr(item, 'filename', item) or ''} {body}"


def _name_attributes() -> None:
    """Call a class's attributes by their name; Sphinx says variables."""
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    _name_attributes()
    for extension in ("myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"):
        app.setup_extension(extension)
    app.add_config_value("companion_reference", "", "env")
    app.connect("config-inited", key_cache, priority=100)
    app.connect("config-inited", write_reference, priority=100)
    app.connect("autodoc-skip-member", reference.skip_member)
    app.connect("autodoc-process-docstring", reference.drop_type_docstring, priority=100)
    app.connect("autodoc-process-docstring", reference.split_shared_entries, priority=100)
    app.connect("autodoc-process-docstring", reference.number_references, priority=100)
    app.connect("autodoc-process-signature", reference.hide_command_signature)
    app.connect("missing-reference", reference.resolve_foreign)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.add_html_math_renderer("mathml", (mathml.visit_inline, None), (mathml.visit_block, None))
    app.add_node(claims_page.LedgerPlace)
    app.add_directive("claims-ledger", claims_page.ClaimsLedger)
    for name, directive in zoo_page.DIRECTIVES.items():
        app.add_directive(name, directive)
    app.connect("doctree-resolved", claims_page.fill_tables)
    app.connect("env-updated", claims_page.rewrite_ledger)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
