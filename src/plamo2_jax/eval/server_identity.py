"""Detect that a server answers with a different model than at the start of an evaluation.

A server is known by its address and the name of a model, and both may stay the same when other weights are loaded. Therefore
`OpenAIClient.identify` asks for a short greedy text first, and OUTPUT/server.json stores its hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plamo2_jax.checkpoint import write_json
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval import request_json
from plamo2_jax.json_input import read_json_object

FILE = "server.json"


def server_description(description: Mapping[str, Any], found: Mapping[str, str]) -> dict[str, Any]:
    """Return the description of a server's model with the fields of `OpenAIClient.identify`, and a fingerprint of all of them."""
    fields = {**description, **found}
    return {**fields, "fingerprint": request_json.digest(fields)}


def check_servers(folder: Path, servers: Mapping[str, Mapping[str, Any] | None]) -> None:
    """Compare servers with the servers of an earlier evaluation in the same folder, and store them in FOLDER/server.json.

    Args:
        folder: folder of the results.
        servers: descriptions by "model" and "judge". A local model or None is skipped.

    Raises:
        PlamoError: a server has another model behind the same address and name, or the file cannot be read.
    """
    file = folder / FILE
    stored = read_json_object(file) if file.is_file() else {}
    new = {role: dict(one) for role, one in servers.items() if one is not None and "url" in one}
    for role, now in new.items():
        before = stored.get(role)
        if not isinstance(before, dict) or any(before.get(name) != now[name] for name in ("url", "model")):
            continue
        if before.get("fingerprint") != now["fingerprint"]:
            raise PlamoError(
                f"the server {now['url']} answers with a different {role} than at the start of this evaluation "
                f"({file}): all answers must come from one model. Choose another --output, or delete {file} to "
                "send all requests again"
            )
    if any(stored.get(role) != one for role, one in new.items()):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, {**stored, **new})
