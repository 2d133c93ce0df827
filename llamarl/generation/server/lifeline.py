"""Serves as a module of the server's environment does, until its standard input ends. Imports nothing of llamarl.

    python lifeline.py MODULE ARGUMENTS ...

It ends with all its processes, however whoever started it died.
"""

import os
import runpy
import signal
import sys
import threading


def follow() -> None:
    """Ends this group of processes with the standard input."""

    def wait() -> None:
        while os.read(0, 1024):
            pass  # nobody writes anything: the end of the input is the news
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


# Processes of the server's take this file for their main program too, under another name: they need nothing of it.
if __name__ == "__main__":
    follow()
    del sys.path[0]  # this file's folder, whose modules are not the server's
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=False)
