"""`python -m respool`: the same as the command `respool`."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="respool")
