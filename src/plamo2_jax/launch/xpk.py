"""Train on TPU slices of a GKE cluster: a JobSet manifest for kubectl, or a command for XPK.

Fields of a JobSet: jobset.sigs.k8s.io (v1alpha2). Labels and resources of TPU nodes:
cloud.google.com/kubernetes-engine/docs/how-to/tpus. The image contains the installed project and the config file. The cluster gives pods
access to data and buckets (workload identity), so a manifest contains no credentials.
"""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
from typing import Any, Literal

from plamo2_jax.errors import PlamoError
from plamo2_jax.launch import kubernetes
from plamo2_jax.launch.checks import project_and_zone, require, require_account, require_tool, resource_name
from plamo2_jax.launch.job import AUTO, REFUSED, Job, wrapped
from plamo2_jax.launch.slices import Slice, parse_slice
from plamo2_jax.validation import changed_fields, require_at_least

# A pod is named JOBSET-slice-REPLICA-INDEX-RANDOM, in 63 characters.
_LONGEST_NAME = 40
_SHARED_MEMORY = "16Gi"
"""Limit of /dev/shm in a pod. Without a limit it may take half of the host's memory."""


@dataclasses.dataclass(frozen=True)
class Xpk:
    """Train on TPU slices of a GKE cluster with JobSet installed. Needs a container image with the project, and kubectl or xpk."""

    accelerator: str
    """TPU slice: an accelerator type such as v5litepod-16, v5p-128, v6e-256 or tpu7x-128, or generation and shape such as v5p:4x4x4."""
    image: str | None = None
    """Container image with a tag or digest, with the project installed and the config file in its working directory (docs/launch.md)."""
    by: Literal["jobset", "xpk"] = "jobset"
    """jobset: apply a JobSet manifest with kubectl. xpk: run `xpk workload create`."""
    slices: int = 1
    """Number of slices, connected by the data centre's network."""
    spot: bool = False
    """Run on spot nodes."""
    job_name: str | None = None
    """Name of the JobSet or workload. Default: the run's name."""
    namespace: str = "default"
    """Namespace of the JobSet."""
    queue: str | None = None
    """LocalQueue of Kueue, if the cluster has Kueue (in clusters made by XPK: multislice-queue)."""
    service_account: str | None = None
    """Kubernetes service account of the pods; with workload identity, the pods can use the bucket."""
    restarts: int = 100
    """Limit on restarts of all pods after a preemption or a failure. A wrong configuration ends the job at once."""
    grace: int = 120
    """Time between SIGTERM and SIGKILL in which a pod saves its checkpoint, in seconds. Preempted spot nodes may get less time."""
    cluster: str | None = None
    """With --by xpk: the GKE cluster."""
    project: str | None = None
    """With --by xpk: the project. Default: CLOUDSDK_CORE_PROJECT or gcloud's property core/project."""
    zone: str | None = None
    """With --by xpk: the cluster's zone. Default: CLOUDSDK_COMPUTE_ZONE or gcloud's property compute/zone."""

    def check(self) -> None:
        """Check that an image is given and that values are allowed; raise PlamoError otherwise."""
        require({"container image": (self.image, "--image (docs/launch.md explains how to build one)")})
        require_at_least(1, slices=self.slices, grace=self.grace)
        require_at_least(0, restarts=self.restarts)
        others = {"xpk": {"namespace", "queue", "service_account"}, "jobset": {"cluster", "project", "zone"}}[self.by]
        for name in sorted(changed_fields(self) & others):
            needed = "jobset" if self.by == "xpk" else "xpk"
            raise PlamoError(f"--{name.replace('_', '-')} has no effect with --by {self.by}: it needs --by {needed}")
        kubernetes.require_names({name: getattr(self, name) for name in ("namespace", "queue", "service_account")})
        kubernetes.require_image(self.image)


def script(job: Job, options: Xpk) -> str:
    """Return the manifest as YAML, or the XPK command as a shell command.

    Raises:
        PlamoError: A value is missing or not allowed.
    """
    import yaml

    if options.by == "xpk":
        return wrapped(xpk_command(job, options)) + "\n"
    return yaml.safe_dump(manifest(job, options), sort_keys=False, width=120)


def manifest(job: Job, options: Xpk) -> dict[str, Any]:
    """Return the JobSet, with one Job per slice and one pod per host.

    Raises:
        PlamoError: The image is missing, or there is no such slice.
    """
    options.check()
    chosen = parse_slice(options.accelerator)
    labels = {"app.kubernetes.io/name": "plamo2-jax"}
    refused = {"containerName": "pretrain", "operator": "In", "values": [REFUSED]}
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
                "rules": [{"name": "refused", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
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
                            # A restarted host alone would find no others. The JobSet restarts all hosts.
                            "backoffLimit": 0,
                            "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": refused}]},
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
        # The network of the host is faster between slices. The DNS policy keeps the names of other pods.
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
        # The default of a container, 64 MB, is too small for the processes that read data ahead.
        "volumes": [{"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": _SHARED_MEMORY}}],
    }


def xpk_command(job: Job, options: Xpk) -> list[str]:
    """Return the command `xpk workload create`. XPK restarts the job after exit statuses of 127 and above only.

    Raises:
        PlamoError: Image, cluster, project or zone are missing, or there is no such slice.
    """
    options.check()
    chosen = parse_slice(options.accelerator)
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
    """Apply the manifest with kubectl, or run XPK, and return the exit status.

    Raises:
        PlamoError: A program, an account, a cluster or a value is missing.
    """
    if options.by == "xpk":
        command = xpk_command(job, options)
        for tool in ("xpk", "gcloud", "kubectl"):
            require_tool(tool)
        require_account()
        return subprocess.run(command).returncode
    return kubernetes.apply(script(job, options))
