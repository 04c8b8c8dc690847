# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Command lines and the values they result in, mistakes in them, and --help."""

import dataclasses

import forks
import pytest
import tiny
from absl import flags

from uso_jax.common import config_flag, config_help, schema

USO, FLUX = "configs/uso.py:mini32", "configs/uso.py:flux_dev"
FEATURES = ("data.source=features", "data.features.train.path=f", "data.features.heldout.path=g")


def parsed(file: str, *settings: str):
    flag = config_flag.ConfigFlag(__name__)
    flag.parse(["program", "--config", file, *(f"--config.{setting}" for setting in settings)])
    return flag.value


@pytest.fixture(autouse=True)
def own_flags(monkeypatch):
    """Let each test parse a command line without the flags that another one defined."""
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    monkeypatch.chdir(tiny.ROOT)
    flags.DEFINE_string("verbosity", "", "", flag_values=values)


@pytest.mark.parametrize(
    ("file", "settings", "path", "value"),
    [
        (USO, ["stages.disentanglement.learning_rate=1e-4"], "stages.disentanglement.learning_rate", 1e-4),
        (USO, ["seed=7", "evaluation.num_triplets=256"], "evaluation.num_triplets", 256),
        (USO, ["data.source=emoji", "data.emoji.looks.drawn=1.0"], "data.train.looks", {"artists": 1.0, "drawn": 1.0}),
        (USO, ["data.source=json", "data.json.train.path=x"], "data.train", {"name": "json", "root": "", "path": "x"}),
        (USO, ["data.procedural.train.length=6", "data.procedural.size=16"], "data.train.length", 6),
        (USO, ["model.quantization=int8"], "model.quantization", "int8"),
        (USO, ["model.weights="], "model.weights", ""),
        (USO, ["model.fresh=()"], "model.fresh", ()),
        (USO, ["model.fresh=lora"], "model.fresh", ("lora",)),
        (
            USO,
            [
                "model.transformer.hidden_size=32",
                "model.transformer.num_heads=2",
                "model.transformer.axes_dim=(4, 6, 6)",
            ],
            "system.transformer.axes_dim",
            (4, 6, 6),
        ),
        (USO, ["run=disentanglement"], "run", ("disentanglement",)),
        (FLUX, ["run=('disentanglement',)"], "run", ("disentanglement",)),
        (USO, ["mesh.fsdp=8", "mesh.data=1"], "mesh", {"data": 1, "fsdp": 8, "sequence": 1, "tensor": 1}),
        (USO, ["heldout.guidance=3"], "heldout.guidance", 3.0),
        (USO, ["stages.disentanglement.shift_mu=0.7"], "stages.disentanglement.shift_mu", 0.7),
        (USO, ["stages.disentanglement.betas=(0.9,0.95)"], "stages.disentanglement.betas", (0.9, 0.95)),
        (USO, ["stages.disentanglement.data.tasks.style=0.3"], "stages.disentanglement.data.tasks.style", 0.3),
        (
            USO,
            ["stages.disentanglement.reward.weights={'csd_style': 0.5}"],
            "stages.disentanglement.reward.weights",
            {"csd_style": 0.5},
        ),
        (
            USO,
            ["stages.disentanglement.reward.remat_decoder=false"],
            "stages.disentanglement.reward.remat_decoder",
            False,
        ),
        (
            USO,
            ["stages.disentanglement.train=(('transformer/.*',1.0),('.*',None))"],
            "stages.disentanglement.train",
            (("transformer/.*", 1.0), (".*", None)),
        ),
        (
            FLUX,
            ["stages.disentanglement.target_aspects=((512,512),(384,640),(640,384))"],
            "stages.disentanglement.target_aspects",
            ((512, 512), (384, 640), (640, 384)),
        ),
        (FLUX, ["model.transformer.remat=offload", *FEATURES], "data.train", {"name": "features", "path": "f"}),
        (FLUX, ["model.rewards.csd.hidden_size=512"], "system.networks.csd.hidden_size", 512),
        (
            FLUX,
            ["data.source=mixture", "data.mixture.weights.uno_1m=0.7", "data.mixture.weights.folder=0.3"],
            "data.heldout.parts",
            [
                {"name": "folder", "layout": "shifted", "caption": "", "path": "", "weight": 0.3},
                {"name": "uno_1m", "min_score": 3.5, "both": True, "path": "", "weight": 0.7},
            ],
        ),
        ("configs/uso.py:flux_dev_joint", [], "run", ("joint",)),
        ("configs/uso.py", [], "model.weights", "mini"),
        ("configs/mini_ablations.py:full", ["seed=3"], "seed", 3),
        ("configs/mini_experts.py:destylize", ["seed=3"], "variant", "mini_destylize"),
        ("configs/mini_foundation.py:base", ["model.weights=w"], "model.weights", "w"),
        ("configs/curation.py", ["curation.keep.subject=0.45"], "curation.keep.subject", 0.45),
        ("configs/curation.py:flux", ["curation.keep.judge=-1"], "curation.keep.judge", None),
    ],
)
def test_values(file, settings, path, value):
    found = parsed(file, *settings)
    for name in path.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    assert found == value and type(found) is type(value)


def test_forms_of_a_setting():
    flag = config_flag.ConfigFlag(__name__)
    assert flag.parse(["program", "--config", USO, "--config.seed", "9", "rest"]) == ["program", "rest"]
    assert flag.value.seed == 9


def test_a_scale_of_0_is_no_reward():
    align, both = parsed(USO, "stages.disentanglement.reward.scale=0").run_stages
    assert align.reward is not None and both.reward is None


@pytest.mark.parametrize(
    ("settings", "fragments"),
    [
        (["data.source_=emoji"], ["config.data.source_", "did you mean --config.data.source?"]),
        (["stages.disentanglement.lr=1"], ["did you mean --config.stages.disentanglement.learning_rate?"]),
        (["lr=1"], ["stages.style_alignment.learning_rate or --config.stages.disentanglement.learning_rate?"]),
        (["stages.disentanglement.bs=8"], ["did you mean --config.stages.disentanglement.batch_size?"]),
        (["epochs=3"], ["no epochs", "--config.stages.style_alignment.steps"]),
        (["heldout.step=3"], ["did you mean --config.heldout.num_steps?"]),
        (["stages.style_alignment=3"], ["config.stages.style_alignment is a section"]),
        (["seed=abc"], ["config.seed", "'abc'", "a whole number"]),
        (["stages.disentanglement.reward.remat_decoder=maybe"], ["remat_decoder", "'maybe'", "true or false"]),
        (["stages.disentanglement.target_size=(3,4,5)"], ["target_size", "(3, 4, 5)", "whole number, whole number"]),
        (["heldout.shift=foo"], ["config.heldout.shift", "'foo'", "flux, upstream, none"]),
        (["model.transformer.num_heads=7"], ["config.model.transformer", "7 heads"]),
        (["guard.max_rollbacks=-1"], ["config.guard", "max_rollbacks"]),
        (["evaluation.tables.main.task=film"], ["config.evaluation.tables.main", "'film'"]),
    ],
)
def test_mistakes(settings, fragments):
    with pytest.raises(config_flag.InputError) as caught:
        parsed(USO, *settings)
    assert all(fragment in str(caught.value) for fragment in fragments) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flag", "meant"),
    [("lr", "learning_rate"), ("batch-size", "batch_size"), ("epochs", "steps"), ("learning_rate", "learning_rate")],
)
def test_settings_given_as_flags(flag, meant):
    with pytest.raises(config_flag.InputError, match=f"there is no flag --{flag}.*did you mean --config.*{meant}"):
        config_flag.ConfigFlag(__name__).parse(["program", "--config", USO, f"--{flag}=3"])


@pytest.mark.parametrize("name", ["lr", "optim.lr", "batch", "epochs", "save_every"])
def test_hints_name_stages_that_run(name):
    with pytest.raises(config_flag.InputError) as caught:
        parsed(FLUX + "_joint", f"{name}=1")
    assert "stages.joint." in str(caught.value) or "checkpoint.every" in str(caught.value)
    assert "disentanglement" not in str(caught.value)


@pytest.mark.parametrize("file", ["configs/uso.py", "configs/mini_ablations.py", "configs/curation.py:flux"])
def test_help_lists_variants_and_settings(file):
    config = config_flag.load_config(file)
    page = config_help.text(file, config, __name__)
    assert max(map(len, page.splitlines())) <= 100 and sum(len(line) > 80 for line in page.splitlines()) < 5
    for field in schema.fields(config):
        assert field.path.rpartition(".")[2] in page or "weights.*" in page, field.path
    assert "stages.*.learning_rate" in page and "peak learning rate" in page


def test_help_of_a_command():
    run = forks.command("scripts/train.py", "--help")
    assert run.returncode == 0 and "--workdir" in run.stdout
    assert "--config = " in run.stdout and "--config.SETTING=VALUE" in run.stdout and "--verify" in run.stdout
    for variant in ("mini", "mini32", "flux_dev", "flux_dev_joint", "klein", "klein_joint", "klein_lora"):
        assert f"\n  {variant} " in run.stdout


@pytest.mark.parametrize("file", ["configs/uso.py:flux_dev", "configs/curation.py"])
def test_every_field_has_a_document(file):
    def classes(value):
        if dataclasses.is_dataclass(value):
            yield type(value)
        if schema.is_section(value):
            for item, _ in schema.children(value).values():
                yield from classes(item)

    lacking = {
        f"{kind.__name__}.{name}"
        for kind in classes(config_flag.load_config(str(tiny.ROOT / file)))
        for name, doc in schema.docs(kind).items()
        if not doc
    }
    assert not lacking
