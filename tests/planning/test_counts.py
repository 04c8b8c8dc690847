# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""FLOPs of jaxprs and communication of compiled programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from uso_jax.hardware import collectives, flops
from uso_jax.models.flux import Flux, FluxConfig
from uso_jax.params import ModelDef

# ---------------------------------------------------------------------------------------------------- operations


def struct(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_products_equal_what_xla_counts():
    def loss(w1, w2, x):
        return jnp.sum((x @ w1) @ w2)  # XLA also counts what is elementwise, so there is next to nothing of it

    arguments = struct(64, 128), struct(128, 32), struct(256, 64)
    for function in (loss, jax.value_and_grad(loss, (0, 1))):
        compiled = jax.jit(function).lower(*arguments).compile()
        assert flops.count_flops(function, *arguments) == pytest.approx(compiled.cost_analysis()["flops"], rel=0.01)


def test_loops_conditionals_and_recomputation():
    step = lambda x, w: (x @ w, None)
    x, ws, product = struct(8, 16), struct(5, 16, 16), 2 * 8 * 16 * 16
    assert flops.count_flops(lambda x, ws: jax.lax.scan(step, x, ws)[0], x, ws) == 5 * product
    loop = lambda x, w, n: jax.lax.fori_loop(0, n, lambda i, x: x @ w, x)
    assert flops.count_flops(loop, x, struct(16, 16), jax.ShapeDtypeStruct((), jnp.int32), loops=7.5) == 7.5 * product
    either = lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)
    assert flops.count_flops(either, x, struct(16, 16)) == 2 * product
    layer = lambda x, w: jnp.sin(x @ w) @ w
    gradient = lambda layer: jax.grad(lambda x, w: jnp.sum(layer(x, w)))
    again = jax.checkpoint(layer, policy=jax.checkpoint_policies.nothing_saveable)
    plain = flops.count_flops(gradient(layer), x, struct(16, 16))
    assert flops.count_flops(gradient(again), x, struct(16, 16)) == plain + product


def test_convolutions_by_hand():
    def convolve(x, w, **options):
        return jax.lax.conv_general_dilated(x, w, padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)

    x, w = struct(2, 8, 8, 3), struct(3, 3, 3, 5)
    assert flops.count_flops(lambda x, w: convolve(x, w, window_strides=(1, 1)), x, w) == 2 * 2 * 64 * 27 * 5
    assert flops.count_flops(lambda x, w: convolve(x, w, window_strides=(2, 2)), x, w) == 2 * 2 * 16 * 27 * 5
    # Either gradient of a convolution takes as many operations as the convolution.
    both = jax.grad(lambda x, w: jnp.sum(convolve(x, w, window_strides=(2, 2))), (0, 1))
    forward = 2 * 2 * 16 * 27 * 5
    assert flops.count_flops(both, x, w) == pytest.approx(3 * forward, rel=0.35)  # borders count as if they were inside
    grouped = lambda x, w: convolve(x, w, window_strides=(1, 1), feature_group_count=3)
    assert flops.count_flops(grouped, x, struct(3, 3, 1, 6)) == 2 * 2 * 64 * 9 * 6


def test_the_full_transformer_by_hand():
    config = FluxConfig(attention="xla")
    model, b, text, image = ModelDef(lambda rngs: Flux(config, rngs=rngs)), 2, 512, 4096
    call = lambda params, *arguments: model(params)(*arguments)
    arguments = struct(b, image, 64), struct(1, image, 3), struct(b, text, 4096), struct(b), struct(b, 768), struct(b)
    counted = flops.count_flops(call, model.shapes, *arguments)
    d, length = 3072, text + image
    linear = 57 * 12 * d * d * length  # each block has 12 d^2 weights a token, whichever stream it is in
    attention = 57 * 2 * d * length**2
    modulation = (19 * 12 + 38 * 3) * d * d + 2 * d * d
    vectors = 2 * (256 * d + d * d) + 768 * d + d * d
    ends = image * 2 * 64 * d + text * 4096 * d
    assert counted == 2 * b * (linear + attention + modulation + vectors + ends)
    assert counted / b == pytest.approx(74.4e12, rel=0.002)  # the usual figure for 1024 x 1024 pixels


# ---------------------------------------------------------------------------------------------------- traffic

MODULE = """\
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (p: f32[8,4]) -> f32[2,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %all-reduce.9 = f32[8,4]{1,0} all-reduce(%p), channel_id=3, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %piece = f32[2,4]{1,0} dynamic-slice(%all-reduce.9, %c, %z), dynamic_slice_sizes={2,4}
}

%body (arg: (s32[], bf16[16,8])) -> (s32[], bf16[16,8]) {
  %ag = (bf16[4,8]{1,0}, bf16[16,8]{1,0:T(8,128)(2,1)}) all-gather-start(%x), dimensions={0}, replica_groups=[2,4]<=[8]
  %agd = bf16[16,8]{1,0} all-gather-done(%ag)
  ROOT %t = (s32[], bf16[16,8]{1,0}) tuple(%i, %agd)
}

%condition (arg: (s32[], bf16[16,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(19)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%endless (arg: (s32[], s32[])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%exchange (arg: f32[64]) -> f32[64] {
  %sent = (f32[64]{0}, f32[64]{0}, u32[], u32[]) collective-permute-start(%arg), source_target_pairs={{0,1},{1,0}}
  ROOT %got = f32[64]{0} collective-permute-done(%sent)
}

%rest (arg: f32[64]) -> f32[64] {
  ROOT %arg = f32[64]{0} parameter(0)
}

ENTRY %main (p0: bf16[4,8]) -> f32[64] {
  %w = (s32[], bf16[16,8]{1,0}) while(%init), condition=%condition, body=%body, backend_config={}
  %v = (s32[], f32[64]{0}) while(%other), condition=%endless, body=%exchange
  %u = (s32[], f32[64]) while(%w3), condition=%endless, body=%exchange, backend_config={"known_trip_count":{"n":"3"}}
  %scattered = f32[2,4]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
  %pair = (f32[10]{0}, f32[6]{0}) all-reduce(%q, %r), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %c = f32[64]{0} conditional(%flag, %k, %k), true_computation=%exchange, false_computation=%rest
}
"""


def traffic(*numbers):
    return collectives.Traffic(*map(float, numbers))


def test_traffic_is_counted_with_loops_and_branches():
    found = collectives.find_collectives(MODULE, loops=2.5)
    # 19 times a gathered 16 x 8 in two bytes, three quarters of which come through each device of a ring of four.
    assert found.pop("all-gather") == traffic(19, 19 * 256, 19 * 192)
    assert found.pop("reduce-scatter") == traffic(1, 128, 96)
    assert found.pop("all-reduce") == traffic(1, 64, 64)
    assert found.pop("collective-permute") == traffic(2.5 + 3 + 1, 6.5 * 256, 6.5 * 256)
    assert not found
    with pytest.raises(ValueError, match="no entry computation"):
        collectives.find_collectives("nothing")


def test_traffic_of_a_compiled_program():
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    placed = lambda shape, *spec: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))
    keep = lambda x, *spec: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec)))

    def layer(x, w):
        return keep(x @ keep(w), "fsdp"), None

    function = jax.jit(lambda x, ws: jnp.sum(jax.lax.scan(layer, x, ws)[0]))
    compiled = function.lower(placed((8, 64), "fsdp"), placed((6, 64, 64), None, "fsdp")).compile()
    found = collectives.find_collectives(compiled.as_text())
    size = 64 * 64 * 4
    assert found["all-gather"] == traffic(6, 6 * size, 6 * size * 3 / 4)
    assert found["all-reduce"].bytes == 4  # the sum
    assert np.isfinite(compiled(np.ones((8, 64), np.float32), np.ones((6, 64, 64), np.float32)))
