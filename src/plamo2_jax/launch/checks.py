"""What must be there before a launch: names that the service takes, programs on PATH, a project, a zone, an account."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping

# RFC 1123 and the rule of Compute Engine in one: a letter first, then letters, digits and hyphens, no hyphen last.
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")

TOOLS = {
    "gcloud": "install the Google Cloud CLI (cloud.google.com/sdk/docs/install)",
    "kubectl": "gcloud components install kubectl gke-gcloud-auth-plugin",
    "xpk": "pip install xpk",
    "git": "install git",
    "sbatch": "run this on a login node of the SLURM cluster",
}


def resource_name(given: str | None, run: str, longest: int) -> str:
    """A name for what is created: the one given, or the run's in lower case with hyphens.

    Raises:
        ValueError: Google Cloud and Kubernetes would not take it.
    """
    name = re.sub(r"[._]+", "-", run.lower()) if given is None else given
    if not _NAME.fullmatch(name) or len(name) > longest:
        raise ValueError(
            f"--job-name {name!r} is not allowed: it must be a lower-case letter followed by lower-case letters, digits and "
            f"hyphens between them, {longest} characters at most"
        )
    return name


def require(values: Mapping[str, tuple[str | None, str]]) -> None:
    """Refuse where values are missing.

    Args:
        values: By what it is: the value or None, and how to give it.

    Raises:
        ValueError: values are missing; the message names all of them and how to give each.
    """
    missing = [f"the {what} is missing: give {how}" for what, (value, how) in values.items() if not value]
    if missing:
        raise ValueError("; ".join(missing))


def require_tool(name: str) -> None:
    """Refuse where a program is not on PATH.

    Raises:
        ValueError: it is not; the message says how to get it.
    """
    if shutil.which(name) is None:
        raise ValueError(f"{name} is not on PATH: {TOOLS[name]} (--dry-run prints what would be run)")


def project_and_zone(project: str | None, zone: str | None) -> tuple[str, str]:
    """Project and zone as gcloud would take them: the option, its environment variable, its property.

    Raises:
        ValueError: one or both are to be had from none of these, or are no such names.
    """
    project = project or os.environ.get("CLOUDSDK_CORE_PROJECT") or _property("core/project")
    zone = zone or os.environ.get("CLOUDSDK_COMPUTE_ZONE") or _property("compute/zone")
    require(
        {
            "project": (project, "--project, CLOUDSDK_CORE_PROJECT or `gcloud config set project ID`"),
            "zone": (zone, "--zone, CLOUDSDK_COMPUTE_ZONE or `gcloud config set compute/zone ZONE`"),
        }
    )
    # A project of a domain is written example.com:project.
    if not re.fullmatch(r"([a-z0-9.-]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]", project):
        raise ValueError(f"--project {project!r} is not a project id: 6 to 30 lower-case letters, digits and hyphens")
    if not re.fullmatch(r"[a-z]+-[a-z]+[0-9]+-[a-z][a-z0-9]*", zone):
        raise ValueError(f"--zone {zone!r} is not a zone; one looks like us-east5-a")
    return project, zone


def _property(name: str) -> str | None:
    """A property of the gcloud configuration, where there is gcloud."""
    if shutil.which("gcloud") is None:
        return None
    done = subprocess.run(["gcloud", "config", "get-value", name, "--quiet"], capture_output=True, text=True)
    return done.stdout.strip() or None


def require_account() -> None:
    """Refuse where gcloud has no account to act for.

    Raises:
        ValueError: it has none.
    """
    listing = ["gcloud", "auth", "list", "--filter=status:ACTIVE", "--format=value(account)", "--quiet"]
    if not subprocess.run(listing, capture_output=True, text=True).stdout.strip():
        raise ValueError(
            "gcloud has no active account: run `gcloud auth login`, or on a machine of Google Cloud give it one"
        )
