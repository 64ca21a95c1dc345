"""Silence the stack traces that other libraries write to stderr for errors that the command reports in one line."""

from __future__ import annotations

import logging
import sys


def silence_library_logs() -> None:
    """Silence the stack traces that Orbax and TensorStore log with an error, for the rest of this process.

    Orbax raises an error and its threads also log the stack trace. The first error of a save closes the event loop that the other writes of
    the save use, and TensorStore logs another error for each of them.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if getattr(sys.unraisablehook, "quiet", False):
        return  # A pipeline runs several verbs in one process. Each would add another hook around the previous one.
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        reports_to_closed_loop = unraisable.object is None and str(unraisable.exc_value) == "Event loop is closed"
        if not reports_to_closed_loop:
            before(unraisable)

    hook.quiet = True
    sys.unraisablehook = hook
