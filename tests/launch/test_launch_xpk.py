"""The JobSet manifest against the schemas of what takes it, and XPK's command."""

import shlex

import pytest
import yaml

from plamo2_jax.launch.job import AUTO
from plamo2_jax.launch.slices import GENERATIONS, parse_slice
from support.scripts import AWKWARD, check_bash

IMAGE = ("--image", "us-docker.pkg.dev/project/images/plamo2:1")
BUCKET = ("--output", "gs://bucket/runs")
SLICE = ("--accelerator", "v5p-128", *IMAGE)

# The parts of a JobSet beside the Jobs in it, written from the field list of jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2.
JOBSET = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
                "namespace": {"type": "string"},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
            },
        },
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["replicatedJobs"],
            "properties": {
                "failurePolicy": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "maxRestarts": {"type": "integer", "minimum": 0},
                        "rules": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "additionalProperties": False,
                                "required": ["action", "name"],
                                "properties": {
                                    "name": {"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
                                    "action": {
                                        "enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
                                    },
                                    "onJobFailureReasons": {
                                        "type": "array",
                                        "items": {
                                            "enum": [
                                                "BackoffLimitExceeded",
                                                "DeadlineExceeded",
                                                "FailedIndexes",
                                                "MaxFailedIndexesExceeded",
                                                "PodFailurePolicy",
                                            ]
                                        },
                                    },
                                    "targetReplicatedJobs": {"type": "array", "items": {"type": "string"}},
                                },
                            },
                        },
                    },
                },
                "replicatedJobs": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["name", "template"],
                        "properties": {
                            "name": {"type": "string"},
                            "replicas": {"type": "integer", "minimum": 1},
                            "template": {"type": "object", "required": ["spec"]},
                        },
                    },
                },
            },
        },
    },
}


def jobset(text):
    """The only document of a text, and the pod in it."""
    (document,) = yaml.safe_load_all(text)
    return document, document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def test_one_pod_a_host_with_its_chips(printed):
    document, pod = jobset(printed("xpk", *SLICE, "--slices", "2", "--spot", "--queue", "multislice-queue"))
    (job,) = document["spec"]["replicatedJobs"]
    assert job["replicas"] == 2
    assert (job["template"]["spec"]["parallelism"], job["template"]["spec"]["completions"]) == (16, 16)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["volumes"] == [{"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}}]
    assert document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "multislice-queue"


def test_a_wrong_configuration_ends_the_jobset_and_all_else_restarts_it(printed):
    document, pod = jobset(printed("xpk", *SLICE, "--restarts", "7", "--grace", "90"))
    policy = document["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    assert [(rule["action"], rule["onJobFailureReasons"]) for rule in policy["rules"]] == [
        ("FailJobSet", ["PodFailurePolicy"])
    ]
    job = document["spec"]["replicatedJobs"][0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {"containerName": pod["containers"][0]["name"], "operator": "In", "values": [2]}
    assert job["backoffLimit"] == 0
    assert pod["terminationGracePeriodSeconds"] == 90


def test_arguments_reach_the_container_as_they_are(printed):
    _, pod = jobset(printed("xpk", *SLICE, "--job-name", "x", overrides=AWKWARD))
    assert pod["containers"][0]["command"] == ["plamo2", "pretrain", "configs/demo.py", *AWKWARD, *AUTO]


@pytest.mark.parametrize("accelerator", ["v5litepod-16", "v5p-128", "v6e-256", "tpu7x-128"])
def test_the_schemas_hold(printed, accelerator):
    kubernetes = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed (test extra)")
    jsonschema = pytest.importorskip("jsonschema")
    options = ("--spot", "--queue", "q", "--service-account", "trainer", "--job-name", "x")
    document, _ = jobset(printed("xpk", "--accelerator", accelerator, *IMAGE, *options, overrides=AWKWARD))
    jsonschema.validate(document, JOBSET)
    # A Job in a JobSet is a Job of Kubernetes without its head.
    (entry,) = document["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **entry["template"]}
    kubernetes.validate(job, kubernetes.latest_version(), strict=True)


def test_every_slice_gives_a_manifest_whose_pods_have_all_of_its_chips(printed):
    for generation, each in GENERATIONS.items():
        for shape in (each.shapes[0], each.shapes[-1]):
            document, pod = jobset(printed("xpk", "--accelerator", f"{generation}:{shape}", *IMAGE))
            hosts = document["spec"]["replicatedJobs"][0]["template"]["spec"]["parallelism"]
            chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
            assert hosts * chips == parse_slice(f"{generation}:{shape}").chips


def test_the_manifest_carries_nothing_of_the_environment(printed, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2-token")
    text = printed("xpk", *SLICE)
    assert "hunter2" not in text
    assert "env:" not in text


@pytest.mark.parametrize("image", ["plamo2:latest", "host:5000/a/plamo2:1", "plamo2@sha256:" + "0" * 64])
def test_an_image_has_a_tag_or_a_digest(printed, image):
    _, pod = jobset(printed("xpk", "--accelerator", "v5p-128", "--image", image))
    assert pod["containers"][0]["image"] == image


def test_xpk_is_given_the_same_job(printed):
    where = ("--cluster", "my-cluster", "--project", "my-project", "--zone", "us-east5-a")
    text = printed("xpk", *SLICE, "--by", "xpk", *where, "--job-name", "x", overrides=AWKWARD)
    check_bash(text)
    words = shlex.split(text.replace("\\\n", ""))
    assert words[:3] == ["xpk", "workload", "create"]
    options = dict(word.removeprefix("--").split("=", 1) for word in words[3:])
    assert options.pop("command") == shlex.join(["plamo2", "pretrain", "configs/demo.py", *AWKWARD, *AUTO])
    assert options == {
        "workload": "x",
        "cluster": "my-cluster",
        "project": "my-project",
        "zone": "us-east5-a",
        "tpu-type": "v5p-128",
        "num-slices": "1",
        "docker-image": IMAGE[1],
        "max-restarts": "100",
        "termination-grace-period-seconds": "120",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--accelerator", "v5p-8"), "the container image is missing: give --image"),
        ((*SLICE, "--by", "xpk"), "the cluster is missing: give --cluster"),
        ((*SLICE, "--by", "xpk", "--cluster", "c"), "the project is missing: give --project"),
        ((*SLICE, "--job-name", "a" * 41), "at most 40 characters"),
        ((*SLICE, "--namespace", "No"), "--namespace 'No' is not a Kubernetes name"),
        ((*SLICE, "--slices", "0"), "--slices 0 is not allowed"),
        ((*SLICE, "--cluster", "c"), "--cluster has no effect with --by jobset: it needs --by xpk"),
        (
            (*SLICE, "--by", "xpk", "--cluster", "c", "--queue", "q"),
            "--queue has no effect with --by xpk: it needs --by jobset",
        ),
        (("--accelerator", "v5p-8", "--image", "a b"), "--image 'a b' is not an image name"),
        (("--accelerator", "v5p-8", "--image", "localhost:5000/plamo2"), "localhost:5000/plamo2 has no tag"),
    ],
)
def test_refusals_name_what_is_missing(refused, arguments, message):
    assert message in refused("xpk", *arguments)


def test_missing_programs_and_clusters_are_named(refused, monkeypatch, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    assert "kubectl is not on PATH: gcloud components install kubectl" in refused("xpk", *SLICE, overrides=BUCKET)
    where = ("--cluster", "c", "--project", "my-project", "--zone", "us-east5-a")
    assert "xpk is not on PATH: pip install xpk" in refused("xpk", *SLICE, "--by", "xpk", *where, overrides=BUCKET)
    (tools / "kubectl").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    (tools / "kubectl").chmod(0o755)
    assert "kubectl has no cluster: run `gcloud container clusters get-credentials" in refused(
        "xpk", *SLICE, overrides=BUCKET
    )
