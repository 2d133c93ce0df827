"""Puts this folder on the path: tests of every folder may use `fake_server`."""

import signal

# A shell starts what it runs in the background with Ctrl-C ignored, and children inherit that: then programs that tests
# interrupt would go on for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
