"""The user's setup command inside a generated script."""

from __future__ import annotations

import shlex

# The command runs in this shell, not in a subshell, because its variables, functions and modules must remain. With `eval`, a syntax error
# in it does not affect the lines below. The command may set shell options, redirect standard error, change the folder (`cd env && source
# bin/activate`), or exit the shell. If it exits the shell, the trap prints the reason, and the job counts as failed.
_SETUP = """launch_setup={setup}
launch_ready=
launch_folder=$PWD
exec {{launch_log}}>&2
trap 'launch_status=$?
if [ -z "$launch_ready" ]; then
  echo "launch: the setup command ended the shell" >&"$launch_log"
  exit "$((launch_status ? launch_status : 1))"
fi' EXIT
eval "$launch_setup"
launch_status=$?
launch_ready=yes
set +e
if [ "$launch_status" -ne 0 ]; then
  echo "launch: the setup command failed with status $launch_status; nothing was started" >&"$launch_log"
  exit "$launch_status"
fi
cd "$launch_folder" || exit 1
"""


def setup_lines(command: str) -> str:
    """Return bash lines that run a setup command, and end the script with its status if it fails.

    The calling shell must not have strict options (`set -e`, `-u`, `pipefail`) at this point, because activation scripts read variables
    that may be unset.

    Args:
        command: Shell code of the user; "" for none.
    """
    return _SETUP.format(setup=shlex.quote(command)) if command.strip() else ""
