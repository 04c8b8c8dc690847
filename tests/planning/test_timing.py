# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Estimated times: the parser of compiled TPU programs, sums by kind, and their tables."""

import json

import pytest

from uso_jax.hardware import chips, operations
from uso_jax.planning import kernels, timing
from uso_jax.planning import report as plan_words

CYCLES = 'backend_config={"flag_configs":[],"window_config":{"estimated_cycles":"%d","iteration_bounds":["1"]}}'
# Shortened from a program that libtpu compiled.
MODULE = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(bf16[16,8]{1,0:T(8,128)(2,1)})->bf16[16,8]}

FileNames
1 "/home/me/uso_jax/uso_jax/models/layers/scan.py"
2 "/home/me/uso_jax/uso_jax/models/layers/joint_blocks.py"
3 "/usr/lib/python3/site-packages/flax/nnx/nn/linear.py"
4 "/home/me/uso_jax/uso_jax/models/layers/linear.py"

FunctionNames
1 "body"
2 "SingleStreamBlock.__call__"

FileLocations
1 {file_name_id=1 function_name_id=1 line=90 end_line=90 column=24 end_column=103}
2 {file_name_id=2 function_name_id=2 line=277 end_line=277 column=14 end_column=40}
3 {file_name_id=3 function_name_id=2 line=8 end_line=8 column=14 end_column=40}
4 {file_name_id=4 function_name_id=2 line=20 end_line=20 column=14 end_column=40}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=5}
4 {file_location_id=4 parent_frame_id=3}

%fused_product (param_0: bf16[5,512,256], param_1: bf16[1024,512], param_2: s32[]) -> bf16[1024,256] {
  %param_0 = bf16[5,512,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = bf16[1024,512]{1,0:T(8,128)(2,1)} parameter(1)
  %param_2 = s32[]{:T(128)} parameter(2)
  %view = bf16[5,512,256]{2,1,0:T(8,128)(2,1)} bitcast(%param_0)
  %layer = bf16[1,512,256]{2,1,0:T(8,128)(2,1)} dynamic-slice(%view, %param_2, %param_2), dynamic_slice_sizes={1,512,256}
  %weights = bf16[512,256]{1,0:T(8,128)(2,1)} bitcast(%layer)
  ROOT %dot = bf16[1024,256]{1,0:T(8,128)(2,1)} convolution(%param_1, %weights), dim_labels=bf_io->bf
}

%fused_copy (param_3: bf16[1024,256]) -> bf16[256,1024] {
  %param_3 = bf16[1024,256]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %turned = bf16[256,1024]{1,0:T(8,128)(2,1)} transpose(%param_3), dimensions={1,0}
}

%fused_sum (param_4: bf16[1024,256]) -> f32[1024,3] {
  %param_4 = bf16[1024,256]{1,0:T(8,128)(2,1)} parameter(0)
  %square = bf16[1024,256]{1,0:T(8,128)(2,1)} multiply(%param_4, %param_4)
  ROOT %sum = f32[1024,3]{1,0:T(8,128)} reduce(%square), dimensions={1}, to_apply=%add
}

%body (arg: (s32[], bf16[1024,512])) -> (s32[], bf16[1024,512]) {
  %x = bf16[1024,512]{1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=1
  %stack = bf16[5,512,256]{2,1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=2
  %product = bf16[1024,256]{1,0:T(8,128)(2,1)} fusion(%stack, %x, %i), kind=kOutput, calls=%fused_product, metadata={op_name="jit(step)/while/body/dot_general" stack_frame_id=3}, PRODUCT
  %far = bf16[256,1024]{1,0:T(8,128)(2,1)} fusion(%product), kind=kLoop, calls=%fused_copy, metadata={op_name="jit(step)/while/body/transpose" stack_frame_id=2}, COPY
  %fast = bf16[256,1024]{1,0:T(8,128)(2,1)S(1)} copy(%far), metadata={op_name="jit(step)/while/body/transpose" stack_frame_id=2}, COPY
  %sums = f32[1024,3]{1,0:T(8,128)} fusion(%product), kind=kInput, calls=%fused_sum, metadata={op_name="jit(step)/while/body/reduce_sum" stack_frame_id=1}, SUM
  %kernel = bf16[1024,256]{1,0:T(8,128)(2,1)} custom-call(%product), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="jit(step)/while/body/attention" stack_frame_id=2}, backend_config={"custom_call_config":{"body":"TUzv"}}
  ROOT %t = (s32[], bf16[1024,512]{1,0}) tuple(%i, %x)
}

%condition (arg: (s32[], bf16[1024,512])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (p0: bf16[1024,512]) -> bf16[1024,512] {
  %w = (s32[], bf16[1024,512]) while(%init), condition=%condition, body=%body
  ROOT %out = bf16[1024,512]{1,0:T(8,128)(2,1)} get-tuple-element(%w), index=1
}
"""  # noqa: E501
for name, cycles in (("PRODUCT", 3_000_000), ("COPY", 1_500_000), ("SUM", 750_000)):
    MODULE = MODULE.replace(name, CYCLES % cycles)
WIDE, LAYER, NARROW = 2 * 1024 * 512, 2 * 512 * 256, 2 * 1024 * 256


def test_operations_have_kinds_bytes_and_sources():
    found = operations.find_operations(MODULE)
    assert [(one.kind, one.cycles) for one in found] == [
        ("products", 3_000_000), ("layout", 1_500_000), ("layout", 1_500_000), ("other", 750_000), ("kernels", None),
    ]  # fmt: skip
    assert {one.times for one in found} == {5}
    # One layer of the stack; nothing in on-chip memory; a row of three numbers takes 128 lanes.
    assert [one.bytes for one in found] == [
        WIDE + LAYER + NARROW, 2 * NARROW, NARROW, NARROW + 4 * 1024 * 128, 2 * NARROW,
    ]  # fmt: skip
    block, scan = "uso_jax/models/layers/joint_blocks.py:277", "uso_jax/models/layers/scan.py:90"
    assert [one.source for one in found] == [block, block, block, scan, block]


def report(scale: float = 1.0) -> dict:
    chip = chips.CHIPS["v5e"]
    found = timing.estimate(MODULE, 1.0, chip)
    moved = {kind: scale * one["hbm_bytes"] for kind, one in found["kinds"].items()}
    found["kinds"] = {kind: one | {"hbm_bytes": moved[kind]} for kind, one in found["kinds"].items()}
    facts = {"program": "sampling step", "config": "mini", "topology": "v5e:1x1", "mesh": {"data": 1}, "batch": 1}
    return facts | {"tokens": 43, "roofline_ms": 5.0} | found


def test_times_by_kind():
    found = report()
    kinds, bandwidth = found["kinds"], chips.CHIPS["v5e"].memory_bandwidth
    moving = lambda kind: 1000 * kinds[kind]["hbm_bytes"] / bandwidth
    assert kinds["products"]["ms_high"] == kinds["products"]["ms_low"] == 5 * 2.0
    assert kinds["layout"]["ms_high"] == 5 * 2 * 1.0
    assert kinds["layout"]["ms_low"] == pytest.approx(moving("layout"))
    assert kinds["other"]["ms_high"] == 5 * 0.5
    assert kinds["kernels"]["ms_high"] == kinds["kernels"]["ms_low"] == pytest.approx(moving("kernels"))
    for end in ("high", "low"):
        assert found[f"estimated_ms_{end}"] == pytest.approx(sum(one[f"ms_{end}"] for one in kinds.values()))
    dearest = [(one["kind"], one["operation"], one["ms"]) for one in found["dearest"]]
    assert dearest[:2] == [("products", "dot_general", 10.0), ("layout", "transpose", 10.0)]
    assert json.loads(json.dumps(found)) == found
    assert timing.estimate(MODULE, 1.0, chips.CHIPS["tpu7x"]) == {}  # whose clock is unknown


def test_kernels_take_their_bundles():
    kernel = lambda name, *operands: operations.Operation("kernels", name, "", 1.0, None, 0.0, operands)
    count = lambda name, *operands, chip="v6e": kernels.bundles(kernel(name, *operands), chip)
    heads = lambda length: (2, 24, length, 128)
    short, long = (count("attention.7", (1, 1), heads(1024), heads(n), heads(n)) for n in (1024, 4096))
    assert long == 4 * short > 2 * 24 * 1024
    assert count("attention_backward.7", heads(1024), heads(1024)) > 2 * short
    mask = (1, 6, 3)  # of splash, whose batch is a loop
    assert count("splash_mha_fwd_segmented.2", mask, (24, 1024, 128), (24, 1024, 128)) > short / 2
    streams = (1, 512, 9216), (2, 128), (1, 1024, 9216), (2, 128)
    tokens = count("heads_first.1", *streams, (1, 1536, 128), (1, 1536, 128))
    assert tokens == count("heads_first.1", (1, 1536, 9216), (2, 128), (1, 1536, 128))
    assert count("other.1", heads(8)) is None and count("attention.7", heads(8), heads(8), chip="v4") is None


def test_two_plans_side_by_side():
    table = plan_words.compare([report()], [report(scale=2.0)]).splitlines()
    gib = lambda scale: f"{scale * 5 * (WIDE + LAYER + NARROW) / 2**30:.2f}"
    (products,) = (line for line in table if "products" in line)
    assert products == f"| products | 10.0 - 10.0 | 10.0 - 10.0 | {gib(1)} | {gib(2)} |"
    assert not plan_words.compare([report()], [report() | {"tokens": 44}])
    assert not plan_words.compare([report()], [report() | {"kinds": {}}])  # planned with --quick
