"""`python -m llamarl` is the command `llamarl`."""

from llamarl.cli.program import run

if __name__ == "__main__":
    run()
