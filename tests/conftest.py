"""Puts this folder on the path: tests of every folder may use `fake_server`; what holds for all tests."""

import signal

from hypothesis import Phase, settings

# A shell starts what it runs in the background with Ctrl-C ignored, and children inherit that: then programs that tests
# interrupt would go on for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A property that fails is tried on hundreds of variations to explain it, whose failures keep their tensors: a process
# grew to 20 GB that way. The smallest failing example is enough. Nor has an example a deadline: busy
# machines are slow.
settings.register_profile("small", phases=set(Phase) - {Phase.explain}, deadline=None)
settings.load_profile("small")
