"""Things that are slow to make, made once: a store of folders, addressed by a hash of all that went in.

``HOME/artifacts/NAME/KEY/`` holds the files of one artifact and a ``meta.json`` that says how they were made.
The key is the SHA-256 of the name, the recipe's version and its inputs. A folder appears under its key in one
rename, complete or not at all; each time it is opened its files are compared with ``meta.json``.
"""

from __future__ import annotations

from companion.artifacts.benchmarks import benchmark_file, benchmark_rows, benchmark_stamp
from companion.artifacts.digests import JSON, digest
from companion.artifacts.hardware import cpu_features, machine
from companion.artifacts.staging import check_folder, staged_file, staged_folder
from companion.artifacts.store import Entry, clear, entries, make, record

__all__ = [
    "JSON",
    "Entry",
    "benchmark_file",
    "benchmark_rows",
    "benchmark_stamp",
    "check_folder",
    "clear",
    "cpu_features",
    "digest",
    "entries",
    "machine",
    "make",
    "record",
    "staged_file",
    "staged_folder",
]
