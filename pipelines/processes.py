"""Worker processes that do not outlive the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

__all__ = ["die_with_parent"]


def die_with_parent() -> None:
    """End this process at once when its parent ends, also by ``kill -9``; call it first thing in a worker process.

    Without it a worker of ``concurrent.futures`` waits for ever for work from a parent that is gone.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()
