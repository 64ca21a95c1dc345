"""The workers of `plamo2 synth` to launch, and the command line of one of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

# Exit statuses of `plamo2 synth`. The launchers use them to decide whether to restart a worker.
INCOMPLETE = 1
"""All stages are finished, but some entries failed. The same command retries them."""
REFUSED = 2
"""The configuration is wrong, or a budget is spent. A restart would end in the same way."""
FAILING = 75
"""The server failed one request after another. A later start may succeed."""
TERMINATED = 128 + 15
"""The worker was stopped by SIGTERM, and stored all paid responses. The same command resumes it."""


@dataclasses.dataclass(frozen=True)
class SynthJob:
    """Workers of one run folder."""

    config: Path
    """Config file."""
    name: str
    """Name of the run, which is the name of its folder."""
    output: Path
    """Run folder, as in the config."""
    api_keys: tuple[str, ...] = ()
    """Names of environment variables with API keys."""

    def command(self, program: str, index: str) -> list[str]:
        """Return the command line of a worker. `index` is the number of the worker, or a placeholder that the launcher replaces."""
        return [program, "synth", str(self.config), "--worker-index", index]
