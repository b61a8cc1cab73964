"""`python -m twotower` is the command `twotower`."""

from twotower.cli.main import main

main(prog_name="twotower")
