# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The planner: its programs are those that run; its reports; its errors."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import forks
import jax
import jax.numpy as jnp
import oracle_pipeline as oracle
import pytest
import tiny

from uso_jax.common.errors import InputError
from uso_jax.data.loader import batches
from uso_jax.data.sources import open_source
from uso_jax.hardware import chips
from uso_jax.inference.sampler import Sampler
from uso_jax.models.uso import USO
from uso_jax.planning import memory, planner, programs
from uso_jax.planning import report as plan_words
from uso_jax.training.config import override
from uso_jax.training.policy import PolicyConfig
from uso_jax.training.validation import pipeline_options

pytestmark = pytest.mark.slow  # compiles or runs whole programs

REWARD = {
    "weights": {"csd_style": 1.0}, "start": 0, "scale": 1.0, "num_steps": 4, "first": 1, "last": 2,
    "gradient_steps": 1, "guidance": 4.0, "shift": "flux", "phi": "negative", "margin": 2.0, "anchor": 0.0,
    "blocks": 1, "remat_decoder": True, "tile": 0, "judges": (), "patience": 0, "tolerance": 0.02, "max_skipped": 10,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


@pytest.fixture(scope="module")
def config():
    return tiny.config("disentanglement", changes={"mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 2})


@pytest.fixture(scope="module")
def eight():
    return chips.find_slice("cpu:8")


# ---------------------------------------------------------------------------------------------------- what runs


def described(tree):
    return jax.tree.map(lambda x: (tuple(x.shape), str(jnp.dtype(x.dtype))), tree)


def test_batches_are_what_the_data_pipeline_makes(config, eight):
    (stage,) = config.run_stages
    stream = batches(
        open_source(config.data.train, stage.data), batch_size=8, seed=0, **pipeline_options(config, stage)
    )
    _, (program,) = programs.build_programs(config, eight.devices, programs.Choices("train"))
    assert described(program.arguments[2]) == described(next(iter(stream)))


def test_a_train_step_runs_on_what_was_described(config, eight):
    _, (program,) = programs.build_programs(config, eight.devices, programs.Choices("train"))
    arrays = jax.tree.map(lambda x: jax.device_put(jnp.zeros(x.shape, x.dtype), x.sharding), program.arguments)
    mesh = jax.tree.leaves(arrays)[0].sharding.mesh
    with jax.set_mesh(mesh):
        state, metrics = program.lower().compile()(*arrays)
    assert int(state.step) == 1
    assert float(metrics["loss"]) > 0  # the noise, which a network of zeros does not see


def test_sampling_describes_the_samplers_arguments(tmp_path, monkeypatch):
    pipe = oracle.open_pipeline(oracle.write(tmp_path / "tiny"))
    seen = []

    class Stop(Exception):
        pass

    def stop(self, arguments, *_):
        seen.append(described(arguments))
        raise Stop

    monkeypatch.setattr(Sampler, "_step", stop)
    with pytest.raises(Stop):
        pipe("a fox", seed=1, content=oracle.photo(1, 50, 50), styles=[oracle.photo(2, 20, 20)])
    with pytest.raises(Stop):
        pipe("a fox", seed=1)
    side, defaults = pipe.system.config.pixels_per_token, pipe.pretrained.defaults
    rows = round(seen[0][1]["ref_img"][0][1] ** 0.5)
    sizes = dict(target_size=(defaults.height, defaults.width), content_size=(rows * side,) * 2)
    config = tiny.config("disentanglement", changes={"mesh.data": 1})
    for conditions, want in zip((("content", "style"), ()), seen, strict=True):
        stage = dataclasses.replace(config.run_stages[0], conditions=conditions, **sizes)
        networks = {part.name for part in dataclasses.fields(config.model)} & vars(pipe.system.config).keys()
        model = {f"model.{name}": getattr(pipe.system.config, name) for name in networks}
        model["model.transformer"] = dataclasses.replace(model["model.transformer"], lora_rank=4)  # which is merged
        same = programs.with_stage(override(config, model), stage)
        _, (program,) = programs.build_programs(same, jax.devices()[:1], programs.Choices("sample"))
        assert described(program.arguments) == want


def test_merged_adapters_and_products_in_8_bits_are_planned(config, eight):
    choices = lambda **more: programs.Choices("sample", batch=8, quantization="int8", **more)
    beside, merged = (planner._count(config, eight, choices(merge=merge)) for merge in (None, True))
    assert merged["sampling step"] < beside["sampling step"]
    _, (program,) = programs.build_programs(config, eight.devices, choices(quantize_activations=True))
    assert program.function.__wrapped__.__self__.system.quantize_activations
    with pytest.raises(InputError, match="this one is not quantised"):
        programs.build_programs(config, eight.devices, programs.Choices("sample", quantize_activations=True))


def test_quantised_weights_are_described_as_they_lie_on_a_device():
    structs = {"transformer/img_in/kernel": (64, 32), "transformer/big/kernel": (2, 512, 1024)}
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    structs = {path: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place) for path, shape in structs.items()}
    small = {"transformer/img_in/kernel": ((64, 32), "bfloat16")}
    quantised = lambda mode: described(programs._quantised(structs, mode))
    scale = "transformer/big/kernel_scale"
    kernel = lambda dtype: small | {"transformer/big/kernel": ((2, 512, 1024), dtype)}
    assert quantised("") == kernel("bfloat16")
    assert quantised("int8") == kernel("int8") | {scale: ((2, 1, 1024), "float32")}
    assert quantised("fp8") == kernel("float8_e4m3fn") | {scale: ((2, 1, 1024), "float32")}
    assert quantised("int4") == kernel("int8") | {scale: ((2, 4, 1024), "float32")}
    with pytest.raises(InputError, match="int8, fp8, int4, not 'int3'"):
        quantised("int3")


# ---------------------------------------------------------------------------------------------------- what is said


def test_a_training_report(config, eight):
    (report,) = planner.plan_programs(config, eight, programs.Choices("train"))
    _, (program,) = programs.build_programs(config, eight.devices, programs.Choices("train"))
    held = programs.device_bytes(program.arguments)
    assert report["argument_bytes"] + report["idle_bytes"] == pytest.approx(held, rel=0.02)
    assert report["idle_bytes"] > 0  # the decoder, which training does not read
    assert 0 < report["reused_bytes"] <= report["output_bytes"]  # the state is updated in place
    assert report["temporary_bytes"] > 0
    assert report["fits"] and not report["suggestions"]
    assert report["tokens"] == 6 + 5 + 16 + 16
    # Three passes, and nothing is recomputed.
    assert report["executed_flops"] == report["model_flops"]
    assert report["collectives"]["all-gather"]["sent_bytes"] > 0
    assert not report["roofline"]  # of a CPU nothing is known
    assert json.loads(json.dumps(report)) == report
    text = plan_words.describe(report)
    assert "fits" in text and "all-gather" in text
    row = plan_words.table([report]).splitlines()[2]
    assert row.startswith("| train step | cpu:8 | fsdp 4 tensor 2 | 8 | 43 | bf16 | 0.00 |")


def test_rematerialised_steps_do_more_than_they_need(config, eight):
    remat = config.with_numerics(remat="full")
    assert remat.system.transformer.remat == remat.system.text.t5.remat == "full"
    count = lambda config: planner._count(config, eight, programs.Choices("train"))["train step"]
    assert 1.1 < count(remat) / count(config) < 4 / 3  # a fourth pass through the blocks, of three


def test_a_roll_out_counts_by_its_mean_length(eight):
    config = tiny.config("disentanglement", reward=REWARD)
    choices = programs.Choices("reward", batch=8)
    _, (program,) = programs.build_programs(config, eight.devices, choices)
    assert program.loops == 4 - 1.5
    longer = tiny.config("disentanglement", reward=REWARD | {"num_steps": 14})
    count = lambda config: planner._count(config, eight, choices)["reward step"]
    train = planner._count(config, eight, programs.Choices("sample", batch=8, merge=False))["sampling step"]
    assert count(longer) - count(config) == pytest.approx(10 * train, rel=0.02)


class TestSearch:
    @pytest.fixture
    def tried(self, monkeypatch):
        tried = []

        def compile_(config, where, choices, *_):
            each = choices.batch // 4
            tried.append(each)
            assert {stage.batch_size for stage in config.run_stages} == {choices.batch}
            total = int(self.fixed + self.slope * each + self.bend * each**2)
            return [{"total_bytes": total, "fits": total <= where.chip.usable_bytes}]

        monkeypatch.setattr(planner, "plan_programs", compile_)
        return tried

    @pytest.mark.parametrize("largest", [0, 1, 2, 3, 7, 40, 129])
    @pytest.mark.parametrize("bend", [0, 3, -3])
    def test_finds_the_largest(self, config, tried, largest, bend):
        self.fixed, self.slope, self.bend = 10_000, 1000, bend
        total = lambda each: self.fixed + self.slope * each + bend * each**2
        chip = dataclasses.replace(chips.CHIPS["v5e"], usable_bytes=total(largest) + 100)
        where = dataclasses.replace(chips.find_slice("cpu:8"), chip=chip)
        report, batch = planner.find_largest_batch(config, where, programs.Choices("train"))
        assert batch == 4 * largest
        assert report["fits"] == bool(largest)
        assert len(tried) == len(set(tried)) <= 12


def test_what_might_fit(config, eight):
    report = {"temporary_bytes": 8_000_000}
    choices = programs.Choices("train", batch=64)
    _, (program,) = programs.build_programs(config, eight.devices, choices)
    found = {one["change"]: one["estimated_bytes"] for one in planner.suggest(config, eight, choices, program, report)}
    held = programs.device_bytes(program.arguments)
    assert found["--config.stages.disentanglement.accumulate=16"] == held + 500_000
    assert found["--batch 4"] < held + 500_000  # fewer images are held, too
    assert "--config.mesh.data=1 --config.mesh.fsdp=8 --config.mesh.sequence=1 --config.mesh.tensor=1" in found
    choices = programs.Choices("sample")
    _, (program,) = programs.build_programs(config, eight.devices, choices)
    found = {one["change"] for one in planner.suggest(config, eight, choices, program, report)}
    assert {"--offload", "--quantization int8", "--offload --quantization int4"} < found


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (240.00G) exceeds"
         " available HBM (15.75G).", 241.0),
        ("RESOURCE_EXHAUSTED: Used 23.81G of 15.75G hbm. Exceeded hbm capacity by 8.06G.", 23.81),
        ("RESOURCE_EXHAUSTED: something else", 15.75),
    ],
)  # fmt: skip
def test_what_the_compiler_says_does_not_fit(message, gib):
    found = memory._overflow(message, chips.GIB, chips.CHIPS["v5e"])
    assert not found["fits"]
    assert found["total_bytes"] / chips.GIB == pytest.approx(gib, abs=0.01)


# ---------------------------------------------------------------------------------------------------- TPU


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU's compiler, of the extra tpu")
def test_compiles_for_a_tpu():
    one = chips.find_slice("v5e:1x1")
    assert [device.platform for device in one.devices] == ["tpu"]
    config = tiny.config("disentanglement")
    (report,) = planner.plan_programs(config, one, programs.Choices("sample"))
    assert report["fits"] and report["argument_bytes"] > 0 and not report["collectives"]
    assert report["roofline"]["seconds"] == report["roofline"][f"{report['roofline']['bound']}_seconds"] > 0
    assert report["roofline_ms"] == 1000 * report["roofline"]["seconds"]
    assert report["estimated_ms_high"] >= report["estimated_ms_low"] > report["roofline_ms"]
    assert report["kinds"]["products"]["count"] > 10 and report["kinds"]["products"]["ms_high"] > 0
    sources = {one["source"].partition(":")[0] for one in report["dearest"]}
    assert "uso_jax/models/layers/joint_blocks.py" in sources
    assert "estimated time" in plan_words.describe(report)
    assert plan_words.compare([report], [report]).startswith("| sampling step, v5e:1x1 |")


# ---------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e", "'v5e' must be .*, such as v5e:4x4"),
        ("v5e:0x4", "'v5e:0x4' must be"),
        ("v9:2x2", "unknown chip 'v9'; .* v4, v5e, v5p, v6e, tpu7x, cpu"),
        ("v5e:4", "v5e sizes have 2 numbers, such as v5e:2x2"),
        ("cpu:99", "8 CPU devices; .* XLA_FLAGS"),
    ],
)
def test_topologies_that_make_no_sense(monkeypatch, name, message):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(InputError, match=message):
        chips.find_slice(name)


def test_without_libtpu(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"libtpu.*pip install 'uso_jax\[tpu\]'"):
        chips.find_slice("v5e:4x4")


def test_plans_that_make_no_sense(config, eight):
    build = lambda *arguments, config=config: programs.build_programs(
        config, eight.devices, programs.Choices(*arguments)
    )
    with pytest.raises(InputError, match="does not divide 8 devices"):
        build("train", config=dataclasses.replace(config, mesh={"data": 3, "fsdp": -1, "tensor": 1}))
    with pytest.raises(InputError, match="--batch 6 in 1 micro-batches does not divide over 4"):
        build("train", "", 6)
    with pytest.raises(InputError, match="--batch 6 does not divide over 4"):
        build("sample", "", 6)
    with pytest.raises(InputError, match="--stage 'joint' is not in the run"):
        build("train", "joint")
    with pytest.raises(InputError, match="has no reward"):
        build("reward")
    with pytest.raises(InputError, match="needs one program"):
        planner.find_largest_batch(config, eight, programs.Choices("encode-parts"))


def test_the_command_ends_in_a_sentence(tmp_path):
    command = ["scripts/plan.py", "--config", "configs/uso.py:mini", "--topology", "v9:4x4"]
    wrong = subprocess.run([sys.executable, *command], cwd=tiny.ROOT, capture_output=True, text=True, timeout=120)
    assert wrong.returncode == 2
    (line,) = wrong.stderr.strip().splitlines()
    assert line.startswith("error: topology 'v9:4x4': unknown chip 'v9'; ")
    assert line.endswith(" v4, v5e, v5p, v6e, tpu7x, cpu")
    (tmp_path / "not.json").write_text("{}")
    wrong = forks.command("scripts/plan.py", "--table", str(tmp_path / "not.json"))
    assert wrong.returncode == 2
    assert "is not a file that plan.py --json has written" in wrong.stderr


def test_systems_need_no_tokenizer(config):
    assert {k: v.shape for k, v in USO(config.system).null_tokens.items()} == {
        k: v.shape for k, v in programs._Untokenised(config.system).null_tokens.items()
    }


@pytest.mark.parametrize("method", ("nft", "grpo"))
def test_a_policy_has_a_roll_out_and_a_step(method):
    policy = PolicyConfig(
        method=method, prompts=4, group=4, epochs=2, num_steps=4, weights={}, black_boxes={"true_style": 1.0}
    )
    config = tiny.config("joint", reward=None, policy=policy)
    _, (roll_out, step) = programs.build_programs(config, jax.devices()[:1], programs.Choices("train"))
    assert (roll_out.name, step.name) == ("roll-out", "policy step")
    assert roll_out.per_step == 2 / 4  # two batches of images for four steps
    state, frozen, batch = step.arguments
    made = jax.eval_shape(roll_out.function, *roll_out.arguments)
    assert {name: batch[name].shape[1:] for name in made if name in batch} == {
        name: struct.shape[1:] for name, struct in made.items() if name != "images"
    }
    after, metrics = jax.eval_shape(step.function, state, frozen, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert "loss_policy" in metrics and after.old.keys() == state.params.keys()
