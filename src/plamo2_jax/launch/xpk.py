"""TPU slices of a GKE cluster: a JobSet manifest for kubectl, or a command for XPK.

Fields of a JobSet: jobset.sigs.k8s.io (v1alpha2). Labels and resources of TPU nodes:
cloud.google.com/kubernetes-engine/docs/how-to/tpus. The image contains the installed project and the config file. The cluster gives pods
access to data and buckets (workload identity), so a manifest contains no credentials.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
from typing import Any, Literal

from plamo2_jax.errors import PlamoError
from plamo2_jax.launch.checks import project_and_zone, require, require_account, require_tool, resource_name
from plamo2_jax.launch.job import AUTO, REFUSED, Job, wrapped
from plamo2_jax.launch.slices import Slice, parse_slice

# A pod is named JOBSET-slice-REPLICA-INDEX-RANDOM, in 63 characters.
_LONGEST_NAME = 40
_SHARED_MEMORY = "16Gi"
"""Limit of /dev/shm in a pod. Without one it may take half of the host's memory."""


@dataclasses.dataclass(frozen=True)
class Xpk:
    """Options of `plamo2 launch xpk`."""

    accelerator: str
    """The slice: v5litepod-16, v5p-128, v6e-256, tpu7x-128, ...; or its generation and shape, v5p:4x4x4."""
    image: str | None = None
    """Container image with a tag or digest, with the project installed and the config file in its working directory; see docs/launch.md."""
    by: Literal["jobset", "xpk"] = "jobset"
    """jobset: apply a JobSet manifest with kubectl. xpk: run `xpk workload create`."""
    slices: int = 1
    """Number of slices, connected by the data centre's network."""
    spot: bool = False
    """Run on spot nodes."""
    job_name: str | None = None
    """Name of the JobSet or workload; left out, the run's name."""
    namespace: str = "default"
    """Namespace of the JobSet."""
    queue: str | None = None
    """LocalQueue of Kueue, if the cluster has Kueue (in clusters made by XPK: multislice-queue)."""
    service_account: str | None = None
    """Kubernetes service account of the pods; with workload identity it gives them access to the bucket."""
    restarts: int = 100
    """Limit on restarts of all pods after a preemption or a failure. A wrong configuration ends the job at once."""
    grace: int = 120
    """Seconds between SIGTERM and SIGKILL, in which a pod saves its checkpoint. (A preempted spot node gives less.)"""
    cluster: str | None = None
    """With --by xpk: the GKE cluster."""
    project: str | None = None
    """With --by xpk: the project; left out, CLOUDSDK_CORE_PROJECT or gcloud's property core/project."""
    zone: str | None = None
    """With --by xpk: the cluster's zone; left out, CLOUDSDK_COMPUTE_ZONE or gcloud's property compute/zone."""

    def check(self) -> None:
        """Check that values are in range.

        Raises:
            ValueError: A value is not allowed.
        """
        for field, least in (("slices", 1), ("restarts", 0), ("grace", 1)):
            if getattr(self, field) < least:
                raise PlamoError(f"--{field} {getattr(self, field)} is not allowed: it must be at least {least}")
        for field in ("namespace", "queue", "service_account"):
            value = getattr(self, field)
            if value is not None and not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", value):
                option = field.replace("_", "-")
                raise PlamoError(
                    f"--{option} {value!r} is not a Kubernetes name: it must be lower-case letters, digits and hyphens"
                )
        if self.image is not None and not re.fullmatch(r"[\w.:/@-]+", self.image, re.ASCII):
            raise PlamoError(f"--image {self.image!r} is not an image name: it must be like REGISTRY/PATH/NAME:TAG")
        if self.image is not None and "@" not in self.image and ":" not in self.image.rpartition("/")[2]:
            raise PlamoError(
                f"--image {self.image} has no tag, so a restart might run another image than the first start. Add a tag such as "
                f"{self.image}:1, or a digest"
            )


def text(job: Job, options: Xpk) -> str:
    """Return the text that --dry-run prints: the manifest, or the XPK command.

    Raises:
        ValueError: A value is missing or not allowed.
    """
    return manifest_text(job, options) if options.by == "jobset" else wrapped(xpk_command(job, options)) + "\n"


def manifest_text(job: Job, options: Xpk) -> str:
    """Return the JobSet as YAML."""
    import yaml

    return yaml.safe_dump(manifest(job, options), sort_keys=False, width=120)


def manifest(job: Job, options: Xpk) -> dict[str, Any]:
    """Return the JobSet, with one Job per slice and one pod per host.

    Raises:
        ValueError: The image is missing, or there is no such slice.
    """
    options.check()
    chosen = parse_slice(options.accelerator)
    _require_image(options)
    labels = {"app.kubernetes.io/name": "plamo2-jax"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": resource_name(options.job_name, job.name, _LONGEST_NAME),
            "namespace": options.namespace,
            "labels": labels | ({"kueue.x-k8s.io/queue-name": options.queue} if options.queue else {}),
            # The pods of each slice run in one node pool, without pods of other slices.
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": options.restarts,
                # If the configuration is wrong, the Job below fails by its pod failure policy. After any other failure, restart all pods.
                "rules": [
                    {"name": "refused", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
                ],
            },
            "replicatedJobs": [
                {
                    "name": "slice",
                    "replicas": options.slices,
                    "template": {
                        "spec": {
                            "completionMode": "Indexed",
                            "parallelism": chosen.hosts,
                            "completions": chosen.hosts,
                            # A host that comes back alone finds no others: the JobSet restarts all.
                            "backoffLimit": 0,
                            "podFailurePolicy": {
                                "rules": [
                                    {
                                        "action": "FailJob",
                                        "onExitCodes": {
                                            "containerName": "pretrain",
                                            "operator": "In",
                                            "values": [REFUSED],
                                        },
                                    }
                                ]
                            },
                            "template": {"metadata": {"labels": labels}, "spec": _pod(job, options, chosen)},
                        }
                    },
                }
            ],
        },
    }


def _pod(job: Job, options: Xpk, chosen: Slice) -> dict[str, Any]:
    selector = {
        "cloud.google.com/gke-tpu-accelerator": chosen.generation.gke,
        "cloud.google.com/gke-tpu-topology": chosen.shape,
    }
    tolerations = [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
    if options.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        tolerations.append({"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"})
    return {
        "restartPolicy": "Never",
        **({"serviceAccountName": options.service_account} if options.service_account else {}),
        "terminationGracePeriodSeconds": options.grace,
        # The host's own network is faster between slices; names of other pods are then looked up in the cluster all the same.
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "nodeSelector": selector,
        "tolerations": tolerations,
        "containers": [
            {
                "name": "pretrain",
                "image": options.image,
                "command": job.command(("plamo2",), *AUTO),
                "resources": {"limits": {"google.com/tpu": chosen.chips_per_host}},
                "volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}],
            }
        ],
        # A container's 64 MB are too few for the processes that read data ahead.
        "volumes": [{"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": _SHARED_MEMORY}}],
    }


def xpk_command(job: Job, options: Xpk) -> list[str]:
    """`xpk workload create ...`. XPK restarts on statuses of 127 and more; on others, 2 among them, it gives up.

    Raises:
        ValueError: image, cluster, project or zone are missing, or there is no such slice.
    """
    options.check()
    chosen = parse_slice(options.accelerator)
    _require_image(options)
    require({"cluster": (options.cluster, "--cluster (`gcloud container clusters list` shows them)")})
    project, zone = project_and_zone(options.project, options.zone)
    return [
        *("xpk", "workload", "create"),
        f"--workload={resource_name(options.job_name, job.name, _LONGEST_NAME)}",
        f"--cluster={options.cluster}",
        f"--project={project}",
        f"--zone={zone}",
        f"--tpu-type={chosen.accelerator}",
        f"--num-slices={options.slices}",
        f"--docker-image={options.image}",
        f"--max-restarts={options.restarts}",
        f"--termination-grace-period-seconds={options.grace}",
        *["--spot"] * options.spot,
        f"--command={shlex.join(job.command(('plamo2',), *AUTO))}",
    ]


def launch(job: Job, options: Xpk) -> int:
    """Give the manifest to kubectl, or run XPK; returns the exit status.

    Raises:
        ValueError: a program, an account, a cluster or a value is missing.
    """
    if options.by == "xpk":
        command = xpk_command(job, options)
        for tool in ("xpk", "gcloud", "kubectl"):
            require_tool(tool)
        require_account()
        return subprocess.run(command).returncode
    body = manifest_text(job, options)
    require_tool("kubectl")
    if subprocess.run(["kubectl", "config", "current-context"], capture_output=True).returncode != 0:
        raise PlamoError(
            "kubectl has no cluster: run `gcloud container clusters get-credentials CLUSTER --location ZONE`"
        )
    return subprocess.run(["kubectl", "apply", "-f", "-"], input=body, text=True).returncode


def _require_image(options: Xpk) -> None:
    require({"container image": (options.image, "--image (docs/launch.md says how to build one)")})
