"""Pipeline files: the order of stages, and errors."""

from pathlib import Path

import pytest

from plamo2_jax.cli.pipeline import describe
from plamo2_jax.pipeline.graph import Description, Graph, absolute
from plamo2_jax.pipeline.stage import Pipeline, Stage
from support.pipelines import CONFIG, INPUTS, OUTPUTS, STAGES, write


def graph(*stages, home="runs", described=None):
    return Graph(Pipeline(Path(home), stages), lambda argv: described or Description(None))


def test_the_order_follows_from_declared_inputs(folder):
    found = graph(
        Stage("merged", "merge runs/a@60 runs/a@120 runs/m", outputs=(Path("runs/m"),), inputs=("runs/a@60", "runs/a")),
        Stage(
            "figures",
            "evaluate runs/m --heldout ja=runs/d/ja en=runs/d/en > runs/figures.json",
            inputs=("runs/m", "runs/d/ja", "runs/d/en"),
        ),
        Stage("ja", "data prepare --output runs/d/ja", outputs=(Path("runs/d/ja"),)),
        Stage("en", "data prepare --output runs/d/en", outputs=(Path("runs/d/en"),)),
        Stage("a", "pretrain a.py", outputs=(Path("runs/a"),), inputs=(Path("runs/d"),)),
    )
    assert found.before("a") == ["ja", "en"]
    assert found.before("merged") == ["a"]
    assert found.before("figures") == ["merged", "ja", "en"]
    assert list(found.stages) == ["ja", "en", "a", "merged", "figures"]
    assert found.ancestors("merged") == {"merged", "a", "ja", "en"}


def test_a_path_belongs_to_the_stage_with_the_longest_output(folder):
    """A run folder may contain outputs of other stages."""
    found = graph(
        Stage("run", "pretrain a.py", outputs=(Path("runs"),)),
        Stage("cut", "prune runs runs runs/cut", outputs=(Path("runs/cut"),), inputs=(Path("runs"),)),
    )
    assert found.before("cut") == ["run"]
    assert found.before("run") == []
    for name in ("config.json", "checkpoints/4/x", "cut/config.json", ".pipeline/run.json"):
        path = folder / "runs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    left = [absolute(folder / "runs" / name) for name in ("checkpoints", "config.json")]
    assert found.left_by("run") == left
    assert found.left_by("cut") == [absolute(folder / "runs" / "cut")]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            (("a", "x > runs/a", "runs/b"), ("b", "x > runs/b", "runs/a")),
            "the stages have a cyclic dependency: a <- b <- a",
        ),
        (
            (("a", "x > runs/f"), ("b", "x > runs/f")),
            "stages a and b both write runs/f: only one stage may write an output",
        ),
        (
            (("a", "x runs/nothing > runs/f"),),
            "stage a names runs/nothing, which is not declared as an input or output, does not exist, and is "
            "not an output of any stage: correct the path, or add it to Stage.inputs or Stage.outputs",
        ),
        (
            (("a", "x > runs/a"), ("b", "x ja=runs/a@60 > runs/b")),
            "stage b names runs/a, which is not declared as an input or output: correct the path, or add it "
            "to Stage.inputs or Stage.outputs",
        ),
        (
            (("a", "x > runs/a"), ("b", "x > runs/b", "runs/mistyped")),
            "stage b reads runs/mistyped, which does not exist and is not an output of any stage: correct the path",
        ),
        (
            (("a", "x > elsewhere/f"),),
            "stage a writes elsewhere/f, which is outside of the pipeline's home runs: all outputs must be in home",
        ),
        (
            (("a", "x > runs/.pipeline/f"),),
            "stage a writes runs/.pipeline/f, where the pipeline stores its records: choose another path",
        ),
        ((("a", "x"), ("a", "y")), "Pipeline.stages is not allowed: a is the name of 2 of them"),
        ((("a/b", "x"),), "Stage.name='a/b' is not allowed: it must be letters, digits, _, - and ."),
        ((("a", "plamo2 merge"),), "stage a: the command must start with the name of a plamo2 command, such as merge"),
        ((("a", "generate 'x"),), 'stage a: the command "generate \'x" cannot be read: No closing quotation'),
        ((("a", "generate > f x"),), "stage a: > FILE is allowed only once, at the end of the command"),
        ((), "Pipeline.stages=() is not allowed: there must be at least one stage"),
    ],
)
def test_refusals(folder, refused, stages, message):
    lines = "".join(
        f"    Stage({name!r}, {command!r}, inputs={tuple(inputs)!r}),\n" for name, command, *inputs in stages
    )
    source = f"from pathlib import Path\nfrom plamo2_jax.pipeline.stage import *\npipeline = Pipeline(Path('runs'), (\n{lines}))\n"
    Path("p.py").write_text(source)
    assert refused() == f"plamo2 pipeline: {message}\n"
    assert [path.name for path in folder.iterdir()] == ["p.py"]


def test_inputs_that_nobody_makes_are_refused_wherever_they_are_named(small, refused):
    write(STAGES, OUTPUTS, {**INPUTS, "shards": (*INPUTS["shards"], "texts/more.jsonl")})
    assert "stage shards reads texts/more.jsonl, which does not exist and is not an output of any stage" in refused()
    Path("model.py").write_text(CONFIG.replace("runs/shards", "shards"))
    write({**STAGES, "model": "pretrain model.py"}, OUTPUTS)
    assert "stage model reads shards, which does not exist and is not an output of any stage" in refused()


def test_a_text_of_a_config_that_names_a_path_must_be_declared(folder):
    stages = Stage("a", "x > runs/a"), Stage("b", "prefer b.py", outputs=("runs/b",))
    told = Description(None, words=("runs/a", "Who/what?"))
    with pytest.raises(ValueError, match="stage b names runs/a, which is not declared as an input"):
        graph(stages[0], stages[1], described=told)
    found = graph(stages[0], Stage("b", "prefer b.py", outputs=("runs/b",), inputs=("runs/a",)), described=told)
    assert found.before("b") == ["a"]


def test_folders_of_a_host_are_neither_inputs_nor_outputs(small):
    """They exist or not, and change in every run."""
    Path("tokenizer.jsonl").touch()
    Path("shards").mkdir()
    Path("scratch/local").mkdir(parents=True)
    Path("scratch/local/state").touch()
    Path("model.py").write_text(
        CONFIG.replace("runs/tokenizer.jsonl", "tokenizer.jsonl").replace("runs/shards", "shards")
    )
    options = "--local-checkpoints scratch/local --data.cache scratch/cache --output runs --name a"
    found = Graph(Pipeline(Path("runs"), (Stage("a", f"pretrain model.py {options}"),)), describe)
    assert {path.name for path in found.inputs["a"]} == {"tokenizer.jsonl", "shards"}
    assert [path.name for path in found.outputs("a")] == ["a"]


def test_a_file_that_exists_must_be_declared(folder):
    Path("text").mkdir()
    Path("text/a.txt").touch()
    with pytest.raises(ValueError, match=r"stage a names text/a[.]txt, which is not declared as an input"):
        graph(Stage("a", "x --input text/a.txt > runs/a"))
    # Data sets that are no files of the user are named in the same place.
    found = graph(Stage("a", "x --input bundled:all:all > runs/a", inputs=("bundled:all:all", "tfds:wiki:train")))
    assert found.inputs == {"a": ()}
    # A verb or a word without a slash is no path, even if a file has that name.
    Path("data").mkdir()
    assert graph(Stage("a", "data prepare --input data text/b.txt > runs/a")).inputs == {"a": ()}


def test_unknown_stages_and_bad_files_are_refused(small, refused):
    assert "p.py has no stage 'modle'; it has books, vocabulary, shards, ids" in refused("--until", "modle")
    message = "--force ids has no effect with --until books, which does not depend on it"
    assert message in refused("--until", "books", "--force", "ids")
    Path("p.py").write_text("pipeline = 3\n")
    assert "p.py must set `pipeline` to a Pipeline, but its type is int" in refused()
    Path("p.py").unlink()
    assert "p.py is not a file; the first argument must be a pipeline file" in refused()


def test_a_stage_of_iterative_dpo_resumes_and_reads_what_its_rounds_do_not_set(folder):
    Path("rounds.py").write_text("from plamo2_jax.cli.iterate import example\nconfig = example()\n")
    found = describe(["iterate", "rounds.py", "--rounds", "3", "--output", "runs/three"])
    assert found.resumes
    assert found.outputs == (Path("runs/three"),)
    assert found.paths == ("runs/sft", "prompts.jsonl", "tokenizer.jsonl")
    assert found.words == ()
    assert found.config["rounds"] == 3


def test_a_stage_of_synthetic_data_resumes_and_names_its_files(folder):
    Path("s.yaml").write_text(
        "output: runs/made\nseeds: {inputs: [runs/texts, 'bundled:ja:train']}\nrecipes: [{name: recipes/own.yaml}]\n"
        "generator: {model: runs/model}\nmix: {conversations: [runs/people.jsonl]}\nfilters: {quality: {model: runs/q.safetensors}}\n"
    )
    found = describe(["synth", "s.yaml"])
    assert found.resumes
    assert found.outputs == (Path("runs/made"),)
    assert found.paths == ("runs/q.safetensors",)
    assert set(found.words) == {"runs/texts", "recipes/own.yaml", "runs/model", "runs/people.jsonl"}
    assert found.config["seeds"]["inputs"] == ["runs/texts", "bundled:ja:train"]
    made = [
        Stage(f"m{i}", f"x > {path}")
        for i, path in enumerate(["runs/texts", "runs/people.jsonl", *found.paths, "runs/model"])
    ]
    stages = Stage("s", "synth s.yaml", inputs=("runs/texts", "runs/people.jsonl")), *made
    with pytest.raises(ValueError, match="stage s names runs/model, which is not declared as an input"):
        Graph(Pipeline(Path("runs"), stages), lambda argv: found if argv[0] == "synth" else Description(None))
