"""Every field of a run is compiled into its plan, known to leave the train step alone, or refused."""

import dataclasses
from pathlib import Path
from typing import get_args, get_type_hints

import jax
import pytest

from plamo2_jax.adapters.config import LoraConfig
from plamo2_jax.align.preferences import DpoConfig
from plamo2_jax.align.samples import SamplesConfig
from plamo2_jax.align.sft import SftConfig
from plamo2_jax.cli.main import main
from plamo2_jax.config import preset
from plamo2_jax.data.pipeline import DataConfig, MixtureItem
from plamo2_jax.plan import program
from plamo2_jax.plan.fields import FREE, PRICED, not_counted, refuse_unpriced, unpriced
from plamo2_jax.plan.request import Request
from plamo2_jax.train.config import PretrainConfig
from plamo2_jax.train.distillation import DistillationConfig

KINDS = (PretrainConfig, SftConfig, DpoConfig)
MODEL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "mamba_num_heads": 2, "vocab_size": 320}
DEMO = str(Path(__file__).parent.parent.parent / "configs" / "demo.py")


def run(kind=PretrainConfig, **fields):
    """A run of the smallest model; its files need not exist."""
    made = {
        "name": "run",
        "model": preset("tiny", **MODEL),
        "tokenizer": Path("tokenizer"),
        "data": DataConfig((MixtureItem(Path("data")),), sequence_length=32, batch_size=16),
        "steps": 10,
        "z_loss": 0.0,
        "init_from": None if kind is PretrainConfig else Path("model"),
    }
    return kind(**made | fields)


REFUSED = {
    "ema_decay": (PretrainConfig, 0.999),
    "distillation": (PretrainConfig, DistillationConfig(Path("teacher"))),
    "lora": (SftConfig, LoraConfig()),
}


def dotted(kind):
    """Names of the fields of a configuration, and of those of its parts."""
    for name, hint in get_type_hints(kind).items():
        yield name
        for part in filter(dataclasses.is_dataclass, (hint, *get_args(hint))):
            yield from (f"{name}.{inner}" for inner in dotted(part))


def test_every_field_is_compiled_in_or_free_or_refused():
    """A new field must be listed in plan/fields.py once it is known what it does to the train step; until then it is refused where it is
    set, and stands in REFUSED.
    """
    assert {name for kind in KINDS for name, *_ in unpriced(run(kind))} == REFUSED.keys()
    assert not PRICED & FREE
    # Nor is a name listed that no run has.
    assert {name for kind in KINDS for name in dotted(kind)} >= PRICED | FREE


def recording(config, read, prefix=""):
    """The configuration, and its parts of which a plan knows single fields, noting each field that is read."""
    names = {field.name for field in dataclasses.fields(config)}

    class Recording(type(config)):
        def __getattribute__(self, name):
            if name in names:
                read.add(prefix + name)
            return super().__getattribute__(name)

    values = {name: getattr(config, name) for name in names}
    for name in {name.split(".")[0] for name in PRICED | FREE if "." in name} & names:
        values[name] = recording(values[name], read, f"{name}.")
    made = Recording(**values)
    read.clear()
    return made


def test_a_plan_reads_what_is_priced_and_nothing_else(monkeypatch):
    """A field that is listed as free but decides what is compiled would be found here, and one that is listed as priced but does not."""
    monkeypatch.setattr(program, "refuse_unpriced", lambda config: None)  # It looks at every field.
    found = set()
    for kind in KINDS:
        read = set()
        config = recording(run(kind), read)
        program.train_program(config, jax.devices(), "xla")
        found |= read
    parts = {name.split(".")[0] for name in PRICED if "." in name}
    assert found - parts == PRICED


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_plan_would_leave_out_is_refused_by_name(name):
    kind, value = REFUSED[name]
    config = run(kind, **{name: value})
    for make in (lambda: program.train_program(config, jax.devices(), "xla"), lambda: Request(config, "v5p:2x2x1")):
        with pytest.raises(ValueError, match=rf"^{name}(=0\.999)? is not allowed in a plan.* it must be None"):
            make()
    # A model is served the same however it was trained.
    assert Request(config, "v5p:2x2x1", "decode").kind == "decode"


def test_a_field_of_tomorrow_is_refused_where_it_is_set():
    @dataclasses.dataclass(frozen=True)
    class Tomorrow(PretrainConfig):
        experts: int = 1
        routes: tuple[int, ...] = dataclasses.field(default_factory=lambda: (1, 2))

    refuse_unpriced(run(Tomorrow))
    with pytest.raises(ValueError, match=r"experts=8 is not allowed in a plan.* it must be 1"):
        refuse_unpriced(run(Tomorrow, experts=8))
    with pytest.raises(ValueError, match=r"routes is not allowed in a plan.* it must be \(1, 2\)"):
        refuse_unpriced(run(Tomorrow, routes=()))


@pytest.mark.parametrize(
    "options", [["--topology", "v5p:2x2x1"], ["--topology", "v5p:2x2x1", "--sweep"], ["--gpu", "h100x8"]]
)
def test_the_command_refuses_before_it_compiles(options, capsys):
    assert main(["plan", DEMO, *options, "--ema-decay", "0.99"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("plamo2 plan: ema_decay=0.99 is not allowed in a plan")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_what_runs_between_the_steps_is_named():
    assert not_counted(run()) == []
    assert not_counted(run(heldout={"ja": Path("x")})) == ["heldout"]
    assert not_counted(run(SftConfig, samples=SamplesConfig(prompts=("猫",)))) == ["samples.prompts"]
