"""Lets a node take minutes to start, as on a busy host: Ray itself gives up after 30 s.

Run as a script it is the command `ray`, with that patience.
"""

import time

from ray._private import services

START_S = 300.0

_ask = services.get_node


def _get_node(*whom):
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        try:
            return _ask(*whom)
        except RuntimeError:  # not yet
            time.sleep(0.2)
    return _ask(*whom)


services.get_node = _get_node

if __name__ == "__main__":
    from ray.scripts.scripts import main

    main()
