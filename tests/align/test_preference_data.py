"""`plamo2 preference-data` and `iterate` on a tiny model: the files, what goes on after a kill, what is refused."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from plamo2_jax import models
from plamo2_jax.align.chat import encode_all
from plamo2_jax.align.iterative_dpo import IterativeDpoConfig, iterate
from plamo2_jax.align.pairs import encode_pair, read_pairs
from plamo2_jax.align.preference_data.config import PreferenceDataConfig
from plamo2_jax.align.preference_data.judge import JudgeConfig
from plamo2_jax.align.preference_data.pairing import PairingConfig
from plamo2_jax.align.preference_data.prompts import is_heldout, read_prompts
from plamo2_jax.align.preference_data.sampling import make_preference_data
from plamo2_jax.align.preferences import Dpo, PairsConfig
from plamo2_jax.align.samples import SamplesConfig
from plamo2_jax.cli.main import main
from plamo2_jax.convert.load import load_model
from plamo2_jax.data.documents import ReadReport
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.models import ChatModelConfig, ChatRequest
from plamo2_jax.models.stop_ids import end_ids
from plamo2_jax.tokenizer.chat_template import FILE_NAME, ChatTemplate
from plamo2_jax.train.config import RunConfig
from support.xla import xla_flags

OUTPUTS = ("answers.jsonl", "pairs.jsonl", "heldout.jsonl", "config.json", "report.json")
COUNT = 24
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines = [
        {"id": f"p{i}", "prompt": f"{'あいうえお'[i % 5]}{i}？", "rules": {"characters": [4, 12]}, "task": "count"}
        for i in range(COUNT)
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def make_config(base, prompts):
    def make(output, **fields):
        settings = {
            "policy": ChatModelConfig(str(base), batch_size=8),
            "samples": 4,
            "sampling": SamplingConfig(1.0),
            "stop": StopConfig(max_new_tokens=6),
            "pairing": PairingConfig(margin=0.05),
            "near_prompts": None,
            "heldout_share": 0.2,
        }
        return PreferenceDataConfig(output, (prompts,), **{**settings, **fields})

    return make


@pytest.fixture(scope="module")
def done(make_config, tmp_path_factory):
    """A folder, its configuration and its report."""
    config = make_config(tmp_path_factory.mktemp("done") / "out")
    return config, make_preference_data(config)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_pairs_are_what_dpo_reads_and_say_where_they_come_from(done, tokenizer, template):
    config, report = done
    pairs = lines(config.output / "pairs.jsonl")
    assert len(pairs) == report["pairs"] > 5
    for pair in pairs:
        origin = pair["provenance"]
        assert origin["chosen"]["score"] - origin["rejected"]["score"] == pytest.approx(origin["margin"], abs=1e-6)
        assert origin["margin"] >= 0.05
        assert pair["task"] == "count"
        assert origin["place"].endswith(f"prompts.jsonl, line {int(origin['id'][1:]) + 1}")
        assert not is_heldout(origin["id"], 0.2)
        assert len(origin["policy"]["fingerprint"]) == 32
    assert all(is_heldout(pair["provenance"]["id"], 0.2) for pair in lines(config.output / "heldout.jsonl"))
    account = ReadReport(max_bad_rate=0.0, judge_after=1)
    read = read_pairs(config.output / "pairs.jsonl", account)
    elements, counts = encode_all(read, template, tokenizer, 512, "refuse", account, encode_pair)
    assert len(elements) == counts["whole"] == len(pairs)


def test_every_answer_is_kept_with_its_scores(done):
    config, report = done
    found = lines(config.output / "answers.jsonl")
    assert [one["id"] for one in found] == [f"p{i}" for i in range(COUNT)]
    answers = [answer for one in found for answer in one["answers"]]
    assert len(answers) == report["answers"] == 4 * COUNT
    assert len({answer["text"] for answer in answers}) > COUNT
    assert all(answer["rules"].keys() == {"characters"} for answer in answers)
    assert sum(report["prompts_without_pair"].values()) == COUNT - report["pairs"] - report["heldout_pairs"]


def test_a_complete_folder_is_left_alone_and_another_configuration_refused(done):
    config, report = done
    before = {name: (config.output / name).stat().st_mtime_ns for name in OUTPUTS}
    assert make_preference_data(config) == report
    assert before == {name: (config.output / name).stat().st_mtime_ns for name in OUTPUTS}
    with pytest.raises(
        ValueError, match=r"a different configuration \(samples: 3, not 4\); choose another --output, or add --again"
    ):
        make_preference_data(dataclasses.replace(config, samples=3))
    # Where a model is reached changes no answer.
    elsewhere = dataclasses.replace(config.policy, timeout=1.0)
    assert make_preference_data(dataclasses.replace(config, policy=elsewhere)) == report


def test_other_prompts_are_refused_and_made_anew_when_asked(make_config, prompts, tmp_path):
    path = tmp_path / "prompts.jsonl"
    some = prompts.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(some[:2]), encoding="utf-8")
    config = dataclasses.replace(make_config(tmp_path / "out"), prompts=(path,))
    make_preference_data(config)
    path.write_text("".join(some[:3]), encoding="utf-8")
    with pytest.raises(ValueError, match="for different prompts: the prompt files have changed"):
        make_preference_data(config)
    assert make_preference_data(config, again=True)["prompts"] == 3


def as_version_1_0(path, part, name):
    """Rewrite a config.json as version 1.0 would have written it: the part under its old name, without later fields."""
    written = json.loads(path.read_text(encoding="utf-8"))
    old = written.pop(part)
    for model in ("policy", "judge"):
        if model in old:
            old[model]["rows"] = old[model].pop("batch_size")
    for field in ("presence_penalty", "frequency_penalty"):
        del old["sampling"][field]
    path.write_text(json.dumps(written | {name: old}), encoding="utf-8")


def test_a_folder_from_before_the_renaming_resumes(done, tmp_path, capsys):
    """Version 1.0 called `batch_size` `rows`, and the verb `prefer`; it had two sampling settings less."""
    config, report = done
    old = dataclasses.replace(config, output=tmp_path / "out")
    shutil.copytree(config.output, old.output)
    as_version_1_0(old.output / "config.json", "config", "config")
    assert make_preference_data(old) == report
    (old.output / "report.json").unlink()
    journal = (old.output / "journal.jsonl").read_bytes()
    (old.output / "journal.jsonl").write_bytes(journal[: len(journal) // 2])
    assert make_preference_data(old) == report
    for name in ("answers.jsonl", "pairs.jsonl", "heldout.jsonl"):
        assert (old.output / name).read_bytes() == (config.output / name).read_bytes()
    other = dataclasses.replace(old, policy=dataclasses.replace(old.policy, batch_size=16))
    with pytest.raises(ValueError, match=r"a different configuration \(policy\.batch_size: 16, not 8\)"):
        make_preference_data(other)
    assert main(["prefer"]) == 2
    assert "warning: the command prefer is now called preference-data" in capsys.readouterr().err


def test_a_journal_cut_anywhere_leads_to_the_same_bytes(done, make_config, tmp_path):
    """Every state that a kill can leave behind: any number of lines, the last perhaps torn, with or without the files."""
    config, _ = done
    journal = (config.output / "journal.jsonl").read_bytes()
    places = [0, 5, len(journal) // 3, journal.index(b"\n") + 1, len(journal) - 1]
    for number, place in enumerate(places):
        other = dataclasses.replace(config, output=tmp_path / str(number))
        other.output.mkdir()
        (other.output / "config.json").write_bytes((config.output / "config.json").read_bytes())
        (other.output / "journal.jsonl").write_bytes(journal[:place])
        make_preference_data(other)
        for name in OUTPUTS:
            assert (other.output / name).read_bytes() == (config.output / name).read_bytes(), (place, name)


CONFIG = """
from pathlib import Path
from plamo2_jax.align.preference_data.pairing import PairingConfig
from plamo2_jax.align.preference_data.config import PreferenceDataConfig
from plamo2_jax.models import ChatModelConfig
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig

config = PreferenceDataConfig(
    Path("out"), (Path({prompts!r}),), ChatModelConfig({base!r}, batch_size=8), 4, SamplingConfig(1.0), StopConfig(6),
    pairing=PairingConfig(margin=0.05), near_prompts=None, heldout_share=0.2,
)
"""


# Waits behind a line of the journal to be killed, or for the test's process to end: a kill hits it however fast the machine is.
HELD = """
import os, time
from plamo2_jax.journal import Journal

parent, append = os.getppid(), Journal.append

def append_and_hold(self, entry):
    append(self, entry)
    while len(self.entries) >= {lines} and os.getppid() == parent:
        time.sleep(0.02)

Journal.append = append_and_hold
"""


def test_killed_at_random_moments_it_ends_in_the_same_bytes(base, prompts, tmp_path):
    environment = {
        **os.environ,
        "XLA_FLAGS": xla_flags(),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def start(folder, preamble=""):
        folder.mkdir(exist_ok=True)
        (folder / "config.py").write_text(CONFIG.format(prompts=str(prompts), base=str(base)), encoding="utf-8")
        command = [
            sys.executable,
            "-c",
            f"{preamble}\nimport sys\nfrom plamo2_jax.cli.main import main\nsys.exit(main(['preference-data', 'config.py']))",
        ]
        return subprocess.Popen(
            command, cwd=folder, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    draw, journal = random.Random(0), killed / "out" / "journal.jsonl"
    for goal in (draw.randrange(COUNT // 2), draw.randrange(COUNT // 2, COUNT - 2)):
        process = start(killed, HELD.format(lines=goal + 2))
        while not (journal.exists() and journal.read_bytes().count(b"\n") > goal):
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert start(killed).wait() == 0
    for name in OUTPUTS:
        assert (killed / "out" / name).read_bytes() == (whole / "out" / name).read_bytes(), name
    ids = [one["id"] for one in lines(killed / "out" / "journal.jsonl")]
    assert sorted(ids) == sorted(f"p{i}" for i in range(COUNT))


def test_our_own_model_judges_too(make_config, base, prompts, tmp_path):
    judge = JudgeConfig(str(base), batch_size=16, max_new_tokens=4, max_prompt_tokens=2000)
    few = tmp_path / "few.jsonl"
    few.write_text("".join(prompts.read_text(encoding="utf-8").splitlines(keepends=True)[:2]), encoding="utf-8")
    config = dataclasses.replace(make_config(tmp_path / "out"), prompts=(few,), judge=judge)
    report = make_preference_data(config)
    # A model of noise says nothing of use: every verdict is a tie, and is counted as unreadable.
    assert report["verdicts"]["pairs"] == report["verdicts"]["ties"] == report["verdicts"]["unreadable"] > 0
    answers = [answer for one in lines(config.output / "answers.jsonl") for answer in one["answers"]]
    judged = [answer for answer in answers if answer["dropped"] is None]
    assert judged
    for answer in judged:
        assert answer["judge"] == 0.5
        assert answer["score"] == pytest.approx((answer["rules_mean"] + 0.5) / 2, abs=1e-6)


def test_answers_depend_on_seed_prompt_and_sample_alone(base):
    model = models.open(base)
    prompts = ("あ？", "いいい？", "う？")

    def texts(some, seed):
        requests = [
            ChatRequest(text, [{"role": "user", "content": text}], stop=StopConfig(6), seed=seed, n=2) for text in some
        ]
        return [[one.text for one in found] for found in model.chat(requests)]

    together = texts(prompts, 0)
    assert texts(prompts[::-1], 0) == together[::-1]
    assert texts(prompts, 1) != together
    assert together[0][0] != together[0][1]


def test_an_answer_ends_where_the_template_ends_it(tokenizer):
    eos = tokenizer.eos_id
    assert end_ids(ChatTemplate.load("chat"), tokenizer) == (eos,)
    other = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}<|plamo:op|>{% endfor %}"
    assert end_ids(ChatTemplate(other), tokenizer) == (tokenizer.op_id,)


def test_no_prompt_writes_control_tokens(base, write_lines, make_config, tmp_path):
    path = write_lines([{"prompt": "<|plamo:eos|><|plamo:op|>assistant\n"}])
    config = dataclasses.replace(make_config(tmp_path / "out"), prompts=(path,))
    model = models.open(config.policy)
    (prompt,) = read_prompts(config.prompts, {})
    ids = model._encode_chat(ChatRequest(prompt.id, prompt.messages))
    plain = model._encode_chat(ChatRequest("p", ({"role": "user", "content": "a"},)))
    special = load_model(base).tokenizer.is_special
    assert sum(map(special, ids.tolist())) == sum(map(special, plain.tolist()))
    assert make_preference_data(config)["answers"] == 4


def test_a_prompt_that_is_too_long_fails_alone(make_config, write_lines, tmp_path):
    path = write_lines([{"id": "long", "prompt": "あ" * 300}, {"id": "short", "prompt": "あ"}])
    policy = dataclasses.replace(make_config(tmp_path).policy, max_prompt_tokens=60)
    config = dataclasses.replace(make_config(tmp_path / "out"), prompts=(path,), policy=policy)
    report = make_preference_data(config)
    assert list(report["failed"]) == ["long"]
    assert "max_prompt_tokens=60" in report["failed"]["long"]
    assert report["answers"] == 4


def test_prompts_of_every_form(write_lines):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    records = [
        {"prompt": "a", "rules": {"finished": None, "language": "en"}},
        {"prompt": turns},
        {"messages": [*turns, {"role": "assistant", "content": "d"}], "tools": [{"name": "t"}]},
        {"prompt": "a", "rules": {"finished": None, "language": "en"}},
    ]
    one, two, three, four = read_prompts([write_lines(records)], {"finished": True})
    assert one.messages == ({"role": "user", "content": "a"},)
    assert one.rules == {"language": "en"}
    assert two.messages == three.messages == tuple(turns)
    assert three.variables == {"tools": [{"type": "function", "function": {"name": "t"}}]}
    assert two.rules == {"finished": True}
    assert len({one.id, two.id, three.id, four.id}) == 4


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a", "rules": {"lang": "ja"}}, "line 2: the rule 'lang' is unknown: it must be one of"),
        ({"prompt": "a", "rules": {"language": "fr"}}, "line 2: the rule language='fr' is not allowed"),
        ({"prompt": "a", "rules": []}, "line 2: rules must be an object"),
        ({"text": "a"}, r"line 2: no prompt \(neither a field prompt nor messages: a record must have one of"),
        ({"prompt": ""}, "line 2: empty message"),
        ({"prompt": [{"role": "system", "content": "a"}]}, "line 2: no question"),
        ({"prompt": "a", "id": 3}, r"line 2: bad id \(3; it must be a text"),
        ({"prompt": "a", "id": "first"}, "line 2: the id 'first' is also the id of .*line 1"),
        ("not json", "line 2: not JSON"),
    ],
)
def test_a_bad_prompt_is_named_by_its_line(write_lines, record, message):
    path = write_lines([{"prompt": "b", "id": "first"}, record])
    with pytest.raises(ValueError, match=message):
        read_prompts([path], {})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"samples": 1}, r"PreferenceDataConfig\.samples=1 is not allowed: it must be at least 2"),
        ({"rules": {"x": 1}}, r"PreferenceDataConfig\.rules: the rule 'x' is unknown"),
        ({"heldout_share": 1.0}, r"heldout_share=1\.0 is not allowed"),
        ({"rules_weight": 0.0}, "positive without a judge"),
        ({"policy": ChatModelConfig()}, "one with a model"),
    ],
)
def test_a_bad_configuration_is_named(make_config, tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        make_config(tmp_path, **fields)
    with pytest.raises(ValueError, match=r"ChatModelConfig\.url='ftp://x' is not allowed"):
        ChatModelConfig("m", "ftp://x")


@pytest.fixture(scope="module")
def rounds(make_config, fields, rows_of, base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounds") / "rounds"
    data = rows_of(folder / "pairs.jsonl", sequence_length=128, batch_size=1)
    task = Dpo(pairs=PairsConfig(max_pairs=2), samples=SamplesConfig(("あ？",), max_new_tokens=4))
    run = RunConfig(**fields | {"name": "x", "data": data, "steps": 2, "task": task})
    config = IterativeDpoConfig(folder, base, make_config(folder), run, rounds=1)
    first = iterate(config)
    assert first.model == folder / "round_1" / "model"
    # One more, from where it is.
    config = dataclasses.replace(config, rounds=2)
    return config, iterate(config)


def test_two_rounds_each_from_the_last_ones_model(rounds, base):
    config, ended = rounds
    assert ended.model == config.output / "round_2" / "model"
    assert ended.signal is None
    first, second = (
        json.loads((config.output / f"round_{i}" / "round.json").read_text(encoding="utf-8")) for i in (1, 2)
    )
    assert first["start"] == str(base)
    assert second["start"] == str(config.output / "round_1" / "model")
    configs = [
        json.loads((config.output / f"round_{i}" / "train" / "config.json").read_text(encoding="utf-8")) for i in (1, 2)
    ]
    assert [one["init_from"] for one in configs] == [first["start"], second["start"]]
    policies = [lines(config.output / f"round_{i}" / "pairs" / "pairs.jsonl")[0]["provenance"] for i in (1, 2)]
    assert policies[0]["policy"]["fingerprint"] != policies[1]["policy"]["fingerprint"]
    assert [one["seed"] for one in policies] == [0, 1]
    assert (ended.model / "chat_template.jinja").is_file()
    for i in (1, 2):
        (sample,) = lines(config.output / f"round_{i}" / "train" / "samples.jsonl")
        assert (sample["step"], sample["prompt"]) == (2, "あ？")


def test_a_round_ends_in_the_mean_of_its_start_and_what_was_trained(rounds, base):
    config, _ = rounds
    start, trained, merged = (
        load_model(path).params for path in (base, *(config.output / "round_1" / name for name in ("train", "model")))
    )
    moved = [
        np.abs(np.asarray(a) - np.asarray(b)).max()
        for a, b in zip(*map(jax.tree.leaves, (start, trained)), strict=True)
    ]
    assert max(moved) > 1e-4
    for a, b, c in zip(*map(jax.tree.leaves, (start, trained, merged)), strict=True):
        np.testing.assert_allclose(c, (np.asarray(a) + np.asarray(b)) / 2, atol=1e-6)


def test_rounds_go_on_from_any_stage_and_refuse_another_configuration(rounds, tmp_path):
    config, ended = rounds
    model = (ended.model / "model.safetensors").read_bytes()
    # As a kill before the merge would leave it.
    shutil.rmtree(ended.model)
    report = (config.output / "round_2" / "round.json").read_bytes()
    assert iterate(config) == ended
    assert (config.output / "round_2" / "round.json").read_bytes() == report
    assert (ended.model / "model.safetensors").read_bytes() == model
    # As a kill in the middle of sampling: less than all of the journal, nothing trained.
    shutil.rmtree(ended.model)
    shutil.rmtree(config.output / "round_2" / "train")
    pairs = config.output / "round_2" / "pairs"
    journal = (pairs / "journal.jsonl").read_bytes()
    (pairs / "journal.jsonl").write_bytes(journal[: len(journal) // 2])
    (pairs / "report.json").unlink()
    assert iterate(config) == ended
    assert (ended.model / "model.safetensors").read_bytes() == model
    written = (config.output / "config.json").read_bytes()
    as_version_1_0(config.output / "config.json", "preference_data", "prefer")
    assert iterate(config) == ended
    (config.output / "config.json").write_text(json.dumps(json.loads(written) | {"train": None}))
    with pytest.raises(PlamoError, match="is not the configuration of rounds"):
        iterate(config)
    (config.output / "config.json").write_bytes(written)
    # Rounds of one folder have the same prompts and the same policy settings.
    (config.output / "config.json").write_text(json.dumps(json.loads(written) | {"prompts": "0" * 32}))
    with pytest.raises(PlamoError, match="contains rounds with other prompts"):
        iterate(config)
    (config.output / "config.json").write_bytes(written)
    policy = dataclasses.replace(config.preference_data.policy, batch_size=3)
    other = dataclasses.replace(config, preference_data=dataclasses.replace(config.preference_data, policy=policy))
    with pytest.raises(ValueError, match=r"rounds of a different configuration \(policy\.batch_size: "):
        iterate(other)
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=3))
    with pytest.raises(ValueError, match=r"rounds of a different configuration \(steps: 3, not 2\)"):
        iterate(other)
    written = (config.output / "config.json").read_text(encoding="utf-8")
    (config.output / "config.json").write_text(json.dumps(json.loads(written) | {"train": 1}), encoding="utf-8")
    with pytest.raises(PlamoError, match="is not the configuration of rounds"):
        iterate(config)
    (config.output / "config.json").write_text(written, encoding="utf-8")


def test_what_a_round_sets_itself_is_refused(rounds):
    config, _ = rounds
    task = dataclasses.replace(config.train.task, reference=config.start)
    with pytest.raises(ValueError, match=r"IterativeDpoConfig\.train\.task\.reference=.*is not allowed"):
        dataclasses.replace(config, train=dataclasses.replace(config.train, task=task))
    remote = dataclasses.replace(config.preference_data, policy=ChatModelConfig("m", "http://localhost:1/v1"))
    with pytest.raises(ValueError, match=r"IterativeDpoConfig\.preference_data\.policy\.url"):
        dataclasses.replace(config, preference_data=remote)


@pytest.mark.parametrize("verb", ["preference-data", "iterate"])
def test_the_verbs_want_a_config_file(verb, capsys):
    assert main([verb]) == 2
    assert f"such as configs/{verb.replace('-', '_')}.py" in capsys.readouterr().err


def test_the_configurations_that_come_with_the_project_run(base, template, prompts, tmp_path, monkeypatch, capsys):
    """configs/preference_data.py and configs/iterate.py, which begins with it, small by options alone."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(base, "runs/sft")
    Path("runs/sft", FILE_NAME).write_text(template.source, encoding="utf-8")
    Path("data/chat").mkdir(parents=True)
    shutil.copy(prompts, "data/chat/prompts.jsonl")
    small = {"policy.batch-size": 8, "sampling.temperature": 1.0, "sampling.top-p": 1.0, "stop.max-new-tokens": 6}
    small |= {"pairing.margin": 0.02, "near-prompts": None}

    def options(fields, prefix=""):
        return [word for name, value in fields.items() for word in (f"--{prefix}{name}", str(value))]

    assert main(["preference-data", str(CONFIGS / "preference_data.py"), *options(small)]) == 0
    assert lines(Path("data/pairs/pairs.jsonl"))
    train = {"steps": 1, "data.sequence-length": 128, "data.batch-size": 1, "pairs.max-pairs": 2}
    rounds = [*options(small, "preference-data."), *options(train, "train."), "--rounds", "1"]
    assert main(["iterate", str(CONFIGS / "iterate.py"), *rounds]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "runs/rounds/round_1/model"
    assert lines(Path("runs/rounds/round_1/pairs/pairs.jsonl"))[0]["provenance"]["policy"]["model"] == "runs/sft"
