"""From what people have to a subject.

`subjects` puts together what the others find out: `models` (modules, factories, optimizers), `huggingface`
(folders, encoder-decoders), `batches` (whatever a loader yields), `calls` (functions with parameters of any
name and order), `losses`, `sizes` (vocabulary, length, classes), `locating` (``module:name``).
"""

from __future__ import annotations

from companion.debugging.adapters.subjects import KINDS, Extras, subject_from, subjects_from

__all__ = ["KINDS", "Extras", "subject_from", "subjects_from"]
