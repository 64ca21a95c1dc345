"""Checks before a launch: valid names, programs on PATH, a project, a zone and an account."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping

from plamo2_jax.errors import PlamoError

# Satisfies both RFC 1123 and Compute Engine: a letter first, then letters, digits and hyphens, and no hyphen at the end.
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")

TOOLS = {
    "gcloud": "install the Google Cloud CLI (cloud.google.com/sdk/docs/install)",
    "kubectl": "gcloud components install kubectl gke-gcloud-auth-plugin",
    "xpk": "pip install xpk",
    "git": "install git",
    "sbatch": "run this on a login node of the SLURM cluster",
}


def resource_name(given: str | None, run: str, longest: int) -> str:
    """Return the name of the resource to create: the given name, or the run's name in lower case with hyphens.

    Raises:
        PlamoError: Google Cloud and Kubernetes do not allow the name.
    """
    name = re.sub(r"[._]+", "-", run.lower()) if given is None else given
    if not _NAME.fullmatch(name) or len(name) > longest:
        raise PlamoError(
            f"--job-name {name!r} is not allowed: it must start with a lower-case letter, contain only "
            f"lower-case letters, digits and hyphens, not end with a hyphen, and have at most {longest} "
            "characters"
        )
    return name


def require(values: Mapping[str, tuple[str | None, str]]) -> None:
    """Check that all values are given.

    Args:
        values: Name → the value or None, and how to give it.

    Raises:
        PlamoError: Values are missing. The message names all of them and how to give them.
    """
    missing = [f"the {what} is missing: give {how}" for what, (value, how) in values.items() if not value]
    if missing:
        raise PlamoError("; ".join(missing))


def require_tool(name: str) -> None:
    """Check that a program is on PATH. Otherwise raise a PlamoError that tells how to install it."""
    if shutil.which(name) is None:
        raise PlamoError(f"{name} is not on PATH: {TOOLS[name]} (--dry-run prints the script without running it)")


def project_and_zone(project: str | None, zone: str | None) -> tuple[str, str]:
    """Return project and zone in gcloud's order of precedence: the option, the environment variable, the property.

    Raises:
        PlamoError: One of them is missing or has an invalid form.
    """
    project = project or os.environ.get("CLOUDSDK_CORE_PROJECT") or _property("core/project")
    zone = zone or os.environ.get("CLOUDSDK_COMPUTE_ZONE") or _property("compute/zone")
    require(
        {
            "project": (project, "--project, CLOUDSDK_CORE_PROJECT or `gcloud config set project ID`"),
            "zone": (zone, "--zone, CLOUDSDK_COMPUTE_ZONE or `gcloud config set compute/zone ZONE`"),
        }
    )
    # A project of a domain has the form example.com:project.
    if not re.fullmatch(r"([a-z0-9.-]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]", project):
        raise PlamoError(
            f"--project {project!r} is not a project id: it must be 6 to 30 lower-case letters, digits and hyphens"
        )
    if not re.fullmatch(r"[a-z]+-[a-z]+[0-9]+-[a-z][a-z0-9]*", zone):
        raise PlamoError(f"--zone {zone!r} is not a zone: it must be like us-east5-a")
    return project, zone


def _property(name: str) -> str | None:
    """Return a property of the gcloud configuration, or None if gcloud is not installed."""
    if shutil.which("gcloud") is None:
        return None
    done = subprocess.run(["gcloud", "config", "get-value", name, "--quiet"], capture_output=True, text=True)
    return done.stdout.strip() or None


def require_account() -> None:
    """Check that gcloud has an active account; raise PlamoError otherwise."""
    listing = ["gcloud", "auth", "list", "--filter=status:ACTIVE", "--format=value(account)", "--quiet"]
    if not subprocess.run(listing, capture_output=True, text=True).stdout.strip():
        raise PlamoError(
            "gcloud has no active account. Run `gcloud auth login`, or give the Google Cloud machine a service account"
        )
