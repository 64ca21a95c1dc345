"""The user's setup command inside a script of ours."""

from __future__ import annotations

import shlex

# In the shell itself, not in a subshell: variables, functions and modules that the command sets last. `eval` keeps a syntax error in it
# from swallowing the lines below. The command may set shell options, redirect standard error, change the folder (`cd env && source
# bin/activate`), or end the shell: the trap then says why, and the job does not count as done.
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
    """Bash lines that run a setup command and end the script with its status where it fails.

    The caller's shell must have no strict options (`set -e`, `-u`, `pipefail`) at this point: activation scripts read variables that may
    not be set.

    Args:
        command: Shell code of the user's; "" for none.
    """
    return _SETUP.format(setup=shlex.quote(command)) if command.strip() else ""
