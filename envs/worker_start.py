"""What the server imports from which worker processes are forked: first of all, to be left alone.

Ctrl-C and a closed terminal reach every process of the group. Workers ignore both, and one that is
being forked at that moment must do so from its first instruction on.
"""

import signal

for _name in ("SIGINT", "SIGHUP"):  # Windows has no SIGHUP
    if hasattr(signal, _name):
        signal.signal(getattr(signal, _name), signal.SIG_IGN)

import gumbelrl.envs.make  # noqa: E402, F401  (torch and all: once, and not in every worker)
