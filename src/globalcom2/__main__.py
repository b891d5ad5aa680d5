"""`python -m globalcom2`."""

from globalcom2.cli import main

main()
