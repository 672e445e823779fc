"""Opens a folder with the predictor that fits it."""

from __future__ import annotations

from pathlib import Path

from companion.inference.manifest import MANIFEST, MODEL
from companion.inference.predictor import OnnxPredictor, Predictor
from companion.settings import get_settings

__all__ = ["load_predictor"]


def load_predictor(folder: Path, *, threads: int | None = None) -> Predictor:
    """Open an ONNX folder with onnxruntime, a model folder with torch.

    Parameters
    ----------
    folder : Path
    threads : int, optional
        Threads to compute with. Default: the settings' threads.

    Returns
    -------
    Predictor

    Raises
    ------
    FileNotFoundError
        When there is no such folder.
    ValueError
        When it is neither kind of folder, or damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "is a file" if folder.is_file() else "does not exist"
        raise FileNotFoundError(
            f"{folder} {found}, expected a model folder or an ONNX folder. Check the path."
        )
    threads = threads or get_settings().threads
    if (folder / MANIFEST).is_file() or (folder / MODEL).is_file():
        return OnnxPredictor(folder, threads=threads)
    import torch  # ONNX folders must open without it

    from companion.inference.torch_predictor import TorchPredictor

    torch.set_num_threads(threads)
    return TorchPredictor(folder)
