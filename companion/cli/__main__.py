"""Lets ``torchrun`` start the command: ``torchrun --nproc-per-node 2 -m companion.cli train ...``."""

from companion.cli import main

main()
