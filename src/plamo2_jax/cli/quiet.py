"""Keeping off stderr what other libraries write about an error that we say in one line."""

from __future__ import annotations

import logging
import sys


def quieten() -> None:
    """Silence, for the rest of this process, the stacks that come with an error of Orbax's or TensorStore's.

    Orbax logs the stack of an error in its threads, which it also raises. The first error of a save closes the event loop that the
    save's other writes report to, and TensorStore then complains of that for each of them.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if getattr(sys.unraisablehook, "quiet", False):
        return  # A pipeline runs several verbs in one process: hooks that wrap each other would grow with its stages.
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        reports_to_closed_loop = unraisable.object is None and str(unraisable.exc_value) == "Event loop is closed"
        if not reports_to_closed_loop:
            before(unraisable)

    hook.quiet = True
    sys.unraisablehook = hook
