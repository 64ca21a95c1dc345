"""What the launchers for Kubernetes share: checks of names and images, and kubectl."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping

from plamo2_jax.errors import PlamoError
from plamo2_jax.launch.checks import require_tool

# DNS labels and subdomains (kubernetes.io/docs/concepts/overview/working-with-objects/names). Only a namespace must be a label.
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?")


def require_names(values: Mapping[str, str | None]) -> None:
    """Check names of Kubernetes objects.

    Args:
        values: Field of the options → the name, or None.

    Raises:
        PlamoError: A name is not allowed.
    """
    for field, value in values.items():
        pattern = _LABEL if field == "namespace" else _SUBDOMAIN
        if value is not None and not pattern.fullmatch(value):
            raise PlamoError(
                f"--{field.replace('_', '-')} {value!r} is not a Kubernetes name: it must be lower-case letters, digits and hyphens"
            )


def require_image(image: str) -> None:
    """Check that a container image has a valid name and a tag or digest; raise PlamoError otherwise."""
    if not re.fullmatch(r"[\w.:/@-]+", image, re.ASCII):
        raise PlamoError(f"--image {image!r} is not an image name: it must be like REGISTRY/PATH/NAME:TAG")
    if "@" not in image and ":" not in image.rpartition("/")[2]:
        raise PlamoError(
            f"--image {image} has no tag, so a restart might use a different image. Add a tag such as "
            f"{image}:1, or a digest"
        )


def apply(manifest: str) -> int:
    """Apply a manifest with kubectl, and return the exit status.

    Raises:
        PlamoError: kubectl is missing, or it has no cluster.
    """
    require_tool("kubectl")
    if subprocess.run(["kubectl", "config", "current-context"], capture_output=True).returncode != 0:
        raise PlamoError(
            "kubectl has no cluster: run `gcloud container clusters get-credentials CLUSTER --location ZONE`"
        )
    return subprocess.run(["kubectl", "apply", "-f", "-"], input=manifest, text=True).returncode
