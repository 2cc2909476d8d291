"""``python -m gradbench``: the command line."""

from .cli import main

main()
