"""`plamo2 plan`: one-line errors, and tables and JSON of plans made by hand."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest

from plamo2_jax.cli.main import main
from plamo2_jax.errors import PlamoError
from plamo2_jax.plan import compiler, report, steps
from plamo2_jax.plan.chips import CHIPS, chip_of
from plamo2_jax.plan.compiler import unverified
from plamo2_jax.plan.roofline import Operation
from plamo2_jax.plan.schedule import table
from plamo2_jax.plan.schedule.cost import Cost, Kernel
from plamo2_jax.plan.schedule.kernel_plan import KernelPlan
from plamo2_jax.plan.schedule.ssd import SsdProgram
from plamo2_jax.plan.step import StepPlan
from plamo2_jax.plan.worker import Worker
from plamo2_jax.train.flops import PEAK_FLOPS

DEMO = str(Path(__file__).parent.parent.parent / "configs" / "demo.py")
SSD = ["plan", "kernel", "ssd", "--topology", "v5p:2x2x1"]


def refused(argv, capsys):
    """Return the line on stderr of a command that must be refused."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "plamo-3"], "--preset plamo-3 is not allowed: it must be one of tiny, plamo-2-1b"),
        (["--chunk", "256", "0"], "--chunk 0 is not allowed: it must be at least 1"),
        (["--tokens", "0"], "--tokens 0 is not allowed"),
        (["--output", "nowhere/plan.json"], "the folder nowhere does not exist"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_compiled(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused([*SSD, *options], capsys)


def test_without_libtpu_the_package_is_named(capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "libtpu" else found(name, *rest)
    )
    assert "pip install '.[plan]'" in refused(SSD, capsys)


@pytest.mark.parametrize("version", ["0.0.42.1", "0.0.42", "0.0.50.1", "0.0.50.7"])
def test_a_verified_libtpu_gives_no_warning(version):
    assert unverified(version) is None


@pytest.mark.parametrize("version", ["0.0.43", "0.0.420.1", "0.0.60.1", "1.0.42"])
def test_figures_of_another_libtpu_come_with_a_warning(version, capsys, monkeypatch):
    """Both commands warn before they compile anything."""
    monkeypatch.setattr(compiler, "libtpu_version", lambda: version)
    monkeypatch.setattr(steps, "libtpu_version", lambda: version)

    def stop(*_):
        raise PlamoError("here it would compile")

    monkeypatch.setattr(Worker, "__enter__", stop)
    for argv in (SSD, ["plan", DEMO, "--topology", "v5p:2x2x1"]):
        assert main(argv) == 2
        # The plan of a train step also says that it compiles.
        warning, *_, error = capsys.readouterr().err.splitlines()
        assert warning.startswith(f"plamo2 plan: warning: libtpu {version} has not been verified")
        assert "0.0.42 and 0.0.50" in warning
        assert error == "plamo2 plan: here it would compile"


@pytest.mark.parametrize("argv", [["plan", "--help"], ["plan", "kernel", "--help"]])
def test_help_teaches_the_command(argv, capsys):
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "plamo2 plan kernel ssd --topology" in text
    assert "not measured time" in text


def test_help_of_the_kernel_explains_its_options(capsys):
    with pytest.raises(SystemExit) as end:
        main(["plan", "kernel", "ssd", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "--topology" in text
    assert "v5p:2x2x1" in text


def test_an_unknown_plan_is_refused(capsys):
    assert "unknown plan 'kernel attention'" in refused(["plan", "kernel", "attention"], capsys)


def test_chips_have_the_peaks_that_training_uses_and_plausible_clocks():
    assert all(chip.peak_flops == PEAK_FLOPS[kind] for kind, chip in CHIPS.items())
    clocks = {kind: round(chip.clock / 1e9, 2) for kind, chip in CHIPS.items()}
    assert clocks == {"TPU v5 lite": 1.5, "TPU v5": 1.75, "TPU v6 lite": 1.75, "TPU7x": 2.2}
    # A product 256×256×1024 pushes 256 rows through each of 2·8 arrays of weights 128×128; v5e has four units.
    assert CHIPS["TPU v5 lite"].mxu_cycles(256 * 2 * 8) == 1024
    with pytest.raises(ValueError, match="no published figures for the device kind 'TPU v2'"):
        chip_of("TPU v2")


@pytest.fixture
def results():
    program = SsdProgram("plamo-2-8b", "pallas_tpu", 256, "forward", tokens=1000)
    operations = (
        Operation("ssd.1", "kernel", "jit(f)/ssd/pallas_call", 1, None, 40_000, 50_000.0, 2_000_000),
        Operation("copy.1", "copy", "jit(f)/transpose", 2, 10_000, 1_000, 0.0, 500_000),
    )
    kernel = Kernel("ssd", (1, 2, 4), 40_000, 5000.0, 0, 50_000.0, 2_000_000, 2_000_000, 2**20, {"MXU": 0.5})
    cost = Cost(CHIPS["TPU v5"], operations, (kernel,), temp_bytes=2**20, vmem_bytes=2**21)
    refusal = KernelPlan(
        dataclasses.replace(program, implementation="xla"), "auto", "0.0.42.1", None, "does not compile: no room"
    )
    return [KernelPlan(program, "default", "0.0.42.1", cost), refusal]


def test_a_program_is_bound_by_bundles_matrix_units_or_memory(results):
    cost = results[0].cost
    assert cost.cycles == 40_000 + 2 * 10_000
    assert cost.bundles == 42_000
    assert cost.bound == 50_000 + 2 * 1_000
    slower = dataclasses.replace(cost, operations=(dataclasses.replace(cost.operations[0], hbm_bytes=10**9),))
    assert slower.bound == slower.hbm_cycles == 10**9 / cost.chip.hbm_bytes_per_cycle


def test_the_table_has_a_row_for_each_result(results):
    lines = table.table(results).splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[:7] == ["pallas_tpu", "256", "forward", "default", "60.0", "42.0", "50.0"]
    assert len(cells) == len(table.COLUMNS)
    assert lines[3].endswith("| does not compile: no room |")


def test_what_runs_on_the_sparsecore_is_named_as_not_counted(results):
    cost = results[0].cost
    offloaded = Operation("gather_offload.3", "sparsecore", "jit(f)/gather", 3, None, None, 0.0, 2**20)
    result = dataclasses.replace(results[0], cost=dataclasses.replace(cost, operations=(*cost.operations, offloaded)))
    assert result.cost.cycles == cost.cycles
    assert "gather_offload.3: on the SparseCore, 3.0 MiB moved, cycles unknown and not counted" in table.kernels(result)
    assert not any("SparseCore" in line for line in table.kernels(results[0]))


def test_the_breakdown_names_what_takes_most(results):
    lines = list(table.breakdown(results[0]))
    assert lines[0] == "kernel 67%, copy 33%"
    assert "kernel ssd.1" in lines[1]
    assert "copy copy.1 ×2" in lines[2]
    assert list(table.breakdown(results[1])) == []


def test_json_has_figures_a_token_and_the_reason_of_a_refusal(results):
    compiled, refusal = json.loads(json.dumps([table.to_json(result) for result in results]))
    assert compiled["cycles_per_token"] == 60
    assert compiled["kernels"][0]["grid"] == [1, 2, 4]
    assert refusal["error"] == "does not compile: no room"
    assert {each["libtpu"] for each in (compiled, refusal)} == {"0.0.42.1"}


@pytest.mark.parametrize(("version", "verified"), [("0.0.50.1", True), ("0.0.51.1", False)])
def test_every_report_names_the_libtpu_and_warns_of_one_that_is_not_verified(results, version, verified):
    kernel = table.to_json(dataclasses.replace(results[0], libtpu=version))
    refused = StepPlan("TPU v5", 4, {"fsdp": 4}, 8, 1.0, {"batch": 1}, 10, 20, 0.0, 0.0, 0.0, version)
    for data in (kernel, report.to_json(refused)):
        assert (data["libtpu"], data["libtpu_verified"]) == (version, verified)
    head, *rest = report.lines(refused)
    assert f"libtpu {version}" in head
    assert any("has not been verified" in line for line in rest) != verified
