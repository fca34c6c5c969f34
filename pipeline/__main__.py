"""`python -m pipeline` is `advprune`."""

from pipeline.cli import main

main()
