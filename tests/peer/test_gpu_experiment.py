"""The measurements of experiments/gpu on a CPU, with tiny sizes: every part runs, and the summary has its figures."""

import json

import pytest

from support.gpu_experiment import importing

pytestmark = pytest.mark.peer


@pytest.fixture
def module():
    with importing() as load:
        yield load


def run(module, name, tmp_path, *options):
    path = tmp_path / f"{name}.json"
    assert module(name).main(["--dry-run", "--output", str(path), *options]) == 0
    part = json.loads(path.read_text())
    assert part["complete"]
    assert part["dry_run"]
    assert str(tmp_path) not in path.read_text()
    return part["figures"]


def test_kernels_are_right_and_a_wrong_one_is_found(module, tmp_path, monkeypatch):
    figures = run(module, "kernels", tmp_path)
    checked = {(each["kernel"], each["implementation"], each["dtype"]) for each in figures if each["passed"]}
    assert {("scan", "pallas_gpu", "bfloat16"), ("scan", "pallas_gpu", "float32")} <= checked
    assert {("attention", "xla", "float32"), ("convolution", "xla", "float32")} <= checked
    assert {each["implementation"] for each in figures if each["passed"] is None} == {"cudnn"}
    kernels = module("kernels")
    right = kernels.ssd
    first = next(kernels.cases(True))
    monkeypatch.setattr(kernels, "cases", lambda dry_run: [first])

    def wrong(**arguments):
        y, state = right(**arguments)
        return (y * 1.1 if arguments["implementation"] == "xla" else y), state

    monkeypatch.setattr(kernels, "ssd", wrong)
    assert kernels.main(["--dry-run", "--output", str(tmp_path / "wrong.json")]) == 1
    figures = json.loads((tmp_path / "wrong.json").read_text())["figures"]
    assert [each["passed"] for each in figures] == [False, True]


def test_scan_train_step_and_decoding_are_measured_and_merged(module, tmp_path):
    scans = run(module, "scan", tmp_path)
    assert {(each["implementation"], each["kind"]) for each in scans} == {
        (implementation, kind) for implementation in ("xla", "pallas_gpu") for kind in ("forward", "both")
    }
    (step,) = run(module, "train_step", tmp_path)
    assert step["losses"][0] == pytest.approx(5.77, abs=0.3)  # ln 320: random tokens, a model that knows nothing
    (decoded,) = run(module, "decode", tmp_path)
    assert decoded["tokens_per_second"] == pytest.approx(decoded["rows"] / decoded["step_seconds"]["median"], rel=1e-3)
    summarize = module("summarize")
    ended = ["--ended", "train_step_pallas=124:95", "--ended", "decode=0:9"]
    assert summarize.main(["--parts", str(tmp_path), *ended]) == 0
    merged = json.loads((tmp_path / "results_dry_run.json").read_text())
    assert set(merged["parts"]) == {"scan", "train_step", "train_step_pallas", "decode"}
    text = summarize.page("# Title\n<!-- tables -->\nend\n", [merged])
    assert f"| xla | 2 × 32, remat dots | {1e3 * step['seconds']['median']:.1f} (" in text
    assert "| pallas_gpu | not measured: stopped after 95 s |" in text
    assert "| mamba_ssm (Triton) | not measured |" in text
    assert f"| 2 | {decoded['tokens_per_second']:,.0f} |" in text
