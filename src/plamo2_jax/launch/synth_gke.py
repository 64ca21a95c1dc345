"""Run the workers of `plamo2 synth` as an indexed Job of Kubernetes, on a volume that all pods share.

Fields of a Job: kubernetes.io/docs/concepts/workloads/controllers/job (batch/v1). A retry limit for each index needs Kubernetes 1.29.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import PurePosixPath
from typing import Any

from plamo2_jax.errors import PlamoError
from plamo2_jax.launch import kubernetes
from plamo2_jax.launch.checks import require, resource_name
from plamo2_jax.launch.synth_job import INCOMPLETE, REFUSED, SynthJob
from plamo2_jax.validation import require_at_least

# A pod is named JOB-INDEX-RANDOM, in 63 characters.
_LONGEST_NAME = 50
_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


@dataclasses.dataclass(frozen=True)
class SynthGke:
    """Make synthetic data with an indexed Job in a GKE cluster. Needs kubectl, a container image with the project, and a shared volume."""

    image: str | None = None
    """Container image with a tag or digest, with the project installed (docs/launch.md)."""
    volume_claim: str | None = None
    """PersistentVolumeClaim with the access mode ReadWriteMany, for the run folder: Filestore, NFS or Lustre, not a bucket."""
    mount_path: str = "/shared"
    """Folder where the pods mount the volume. The `output` of the config must be in it."""
    workers: int = 4
    """Number of workers. Worker 0 also runs the stages after generation."""
    cpus_per_worker: int = 2
    """CPU cores that each pod requests."""
    memory_per_worker: str = "8Gi"
    """Memory request and limit of each pod."""
    restarts: int = 20
    """Limit on restarts of each worker. A preempted pod does not count."""
    grace: int = 180
    """Time between SIGTERM and SIGKILL in which a worker finishes its requests, in seconds. It must be larger than generator.timeout."""
    spot: bool = False
    """Run on spot nodes."""
    api_key_secret: str | None = None
    """Kubernetes Secret with the API keys; its keys are the names of the environment variables (api_key_env in the config)."""
    namespace: str = "default"
    """Namespace of the Job."""
    service_account: str | None = None
    """Kubernetes service account of the pods."""
    job_name: str | None = None
    """Name of the Job. Default: the name of the run folder."""

    def check(self, job: SynthJob) -> None:
        """Check that values are given and allowed; raise PlamoError otherwise."""
        require(
            {
                "container image": (self.image, "--image (docs/launch.md explains how to build one)"),
                "volume claim": (
                    self.volume_claim,
                    "--volume-claim (docs/synthetic_cluster.md lists the volumes that work)",
                ),
                **({"API key": (self.api_key_secret, "--api-key-secret")} if job.api_keys else {}),
            }
        )
        require_at_least(1, workers=self.workers, cpus_per_worker=self.cpus_per_worker, grace=self.grace)
        require_at_least(0, restarts=self.restarts)
        kubernetes.require_image(self.image)
        names = ("volume_claim", "namespace", "service_account", "api_key_secret")
        kubernetes.require_names({name: getattr(self, name) for name in names})
        if not re.fullmatch(r"[1-9]\d*(Mi|Gi)", self.memory_per_worker):
            raise PlamoError(
                f"--memory-per-worker {self.memory_per_worker!r} is not allowed: it must be an amount such as 8Gi"
            )
        output = PurePosixPath(job.output)
        if ".." in output.parts or not output.is_relative_to(self.mount_path):
            raise PlamoError(
                f"output {job.output} is not on the shared volume, so it would be lost with the pod: it must be a folder in "
                f"{self.mount_path} (--mount-path)"
            )


def script(job: SynthJob, options: SynthGke) -> str:
    """Return the manifest as YAML.

    Raises:
        PlamoError: A value is missing or not allowed.
    """
    import yaml

    return yaml.safe_dump(manifest(job, options), sort_keys=False, width=120)


def manifest(job: SynthJob, options: SynthGke) -> dict[str, Any]:
    """Return the Job, with one pod for each worker.

    Raises:
        PlamoError: A value is missing or not allowed.
    """
    options.check(job)
    labels = {"app.kubernetes.io/name": "plamo2-jax"}

    def on_statuses(action: str, *statuses: int) -> dict[str, Any]:
        codes = {"containerName": "synth", "operator": "In", "values": list(statuses)}
        return {"action": action, "onExitCodes": codes}

    disrupted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": resource_name(options.job_name, job.name, _LONGEST_NAME),
            "namespace": options.namespace,
            "labels": labels,
        },
        "spec": {
            "completionMode": "Indexed",
            "parallelism": options.workers,
            "completions": options.workers,
            "backoffLimitPerIndex": options.restarts,
            "podFailurePolicy": {
                # A wrong configuration or a spent budget ends all workers; failed entries end worker 0, which has finished all stages.
                "rules": [disrupted, on_statuses("FailJob", REFUSED), on_statuses("FailIndex", INCOMPLETE)]
            },
            "template": {"metadata": {"labels": labels}, "spec": _pod(job, options)},
        },
    }


def _pod(job: SynthJob, options: SynthGke) -> dict[str, Any]:
    spot = {"cloud.google.com/gke-spot": "true"}
    tolerations = [{"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}]
    keys = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": options.api_key_secret, "key": name}}}
        for name in job.api_keys
    ]
    # Kubernetes replaces $(NAME) in arguments. Paths must not contain it.
    command = [word.replace("$(", "$$(") for word in job.command("plamo2", "INDEX")[:-1]]
    return {
        "restartPolicy": "Never",
        **({"serviceAccountName": options.service_account} if options.service_account else {}),
        "terminationGracePeriodSeconds": options.grace,
        **({"nodeSelector": spot, "tolerations": tolerations} if options.spot else {}),
        "containers": [
            {
                "name": "synth",
                "image": options.image,
                "command": [*command, "$(WORKER_INDEX)"],
                "env": [{"name": "WORKER_INDEX", "valueFrom": {"fieldRef": {"fieldPath": _INDEX}}}, *keys],
                "resources": {
                    "requests": {"cpu": str(options.cpus_per_worker), "memory": options.memory_per_worker},
                    "limits": {"memory": options.memory_per_worker},
                },
                "volumeMounts": [{"name": "shared", "mountPath": options.mount_path}],
            }
        ],
        "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": options.volume_claim}}],
    }


def launch(job: SynthJob, options: SynthGke) -> int:
    """Apply the manifest with kubectl, and return the exit status.

    Raises:
        PlamoError: A program, a cluster or a value is missing.
    """
    return kubernetes.apply(script(job, options))
