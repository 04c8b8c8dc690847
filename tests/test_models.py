# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the networks must hold to beyond parity: full-size facts, absent conditions, memory policies, sharding."""

import functools
import re

import golden_files as golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import MANIFESTS, arrays, nhwc
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_golden import error

from convert.autoencoder import AUTOENCODER
from convert.flux import LORA, PROJECTOR, TRANSFORMER
from convert.siglip import VISION
from convert.table import expand
from uso_jax import flow, params
from uso_jax.errors import InputError
from uso_jax.models import stack
from uso_jax.models.autoencoder import AutoEncoder, AutoEncoderConfig
from uso_jax.models.flux import PRESETS, Flux, FluxConfig
from uso_jax.models.siglip import SiglipConfig, SiglipVision
from uso_jax.models.style import ProjectorConfig

# ---------------------------------------------------------------------------------------------- full size


@functools.cache
def uso_shapes():
    return params.shapes(lambda rngs: Flux(PRESETS["flux-dev"].with_uso(), rngs=rngs))


def part(name: str):
    """Give the shapes of USO's adapters or projector, or of the transformer alone."""
    owner = lambda path: "lora" if "/processor/" in path else "projector" if "feature_embedder/" in path else "flux"
    return {path: struct for path, struct in uso_shapes().items() if owner(path) == name}


@pytest.mark.parametrize("name, count", (("flux", 11_901_408_320), ("lora", 239_075_328), ("projector", 10_773_120)))
def test_parameter_counts(name, count):
    assert params.count(part(name)) == count


def test_presets():
    plain, uso = PRESETS["flux-dev"], uso_shapes()
    dev, schnell = (params.shapes(lambda rngs, c=c: Flux(c, rngs=rngs)) for c in (plain, PRESETS["flux-schnell"]))
    assert dev == part("flux")
    assert dev.keys() - schnell.keys() == {path for path in uso if path.startswith("guidance_in/")} != set()
    assert schnell.items() <= dev.items()


@pytest.mark.parametrize(
    "file, rows, shapes",
    (
        ("flux1-dev.safetensors", TRANSFORMER, lambda: part("flux")),
        ("uso_flux_v1.0/dit_lora.safetensors", LORA, lambda: part("lora")),
        ("uso_flux_v1.0/projector.safetensors", PROJECTOR, lambda: part("projector")),
        (
            "ae.safetensors",
            AUTOENCODER,
            lambda: params.shapes(lambda rngs: AutoEncoder(AutoEncoderConfig(), rngs=rngs)),
        ),
        (
            "siglip-so400m-patch14-384/model.safetensors (vision tower only)",
            VISION,
            lambda: params.shapes(lambda rngs: SiglipVision(SiglipConfig(), rngs=rngs)),
        ),
    ),
    ids=lambda value: value.split("/")[-1].split(".")[0] if isinstance(value, str) else "",
)
def test_checkpoint_manifest(file, rows, shapes):
    want = {key.removeprefix("vision_model."): tuple(shape) for key, (shape, _) in MANIFESTS[file].items()}
    assert {key: entry.shape for key, entry in expand(rows, shapes()).items()} == want


@pytest.mark.parametrize(
    "make, message",
    (
        (lambda: FluxConfig(num_heads=7), "does not divide into 7 heads"),
        (lambda: FluxConfig(axes_dim=(16, 56, 58)), "must add up to the head width, 128"),
        (lambda: FluxConfig(axes_dim=(17, 55, 56)), "must be even"),
        (lambda: FluxConfig(remat="some"), "remat must be one of full, attention, dots, none"),
        (lambda: FluxConfig(lora_rank=-1), "lora_rank must be 0"),
        (lambda: ProjectorConfig(layers=(-2, -11)), "one SigLIP layer for each of"),
        (lambda: SiglipConfig(num_attention_heads=7), "does not divide into 7 heads"),
        (lambda: SiglipConfig(image_size=13), "smaller than one patch"),
        (lambda: AutoEncoderConfig(ch=100), "does not divide into 32 normalisation groups"),
    ),
)
def test_config_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ------------------------------------------------------------------------- one batch, different conditions

# Samples by (style, reference); the last two also hold a number of references between none and all.
MIXED = ((True, True), (True, False), (False, True), (False, False))
GRID, REF_GRIDS = (2, 3), ((2, 2), (1, 3))


@functools.cache
def weights():
    return golden.flux_params()


@functools.cache
def structure(**changes):
    return params.Structure(lambda rngs: Flux(golden.flux_config(**changes), rngs=rngs))


@functools.cache
def batch(size: int = len(MIXED)):
    c = golden.flux_config()
    keys = iter(jax.random.split(jax.random.key(0), 10))
    draw = lambda *shape: jax.random.normal(next(keys), (size, *shape))
    projector = c.projector
    return dict(
        img=draw(GRID[0] * GRID[1], c.in_channels),
        txt=draw(5, c.context_in_dim),
        y=draw(c.vec_in_dim),
        timesteps=jnp.linspace(0.1, 0.9, size),
        guidance=jnp.linspace(1.0, 4.0, size),
        features=draw(2, 3, projector.siglip_tokens, projector.siglip_dim),
        ref_img=draw(sum(h * w for h, w in REF_GRIDS), c.in_channels),
    )


def forward(model, batch, style_valid=None, ref_valid=None):
    batch = dict(batch)
    features = batch.pop("features", None)
    if "ref_img" in batch:
        batch["ref_ids"] = jnp.concatenate(flow.reference_ids(GRID, REF_GRIDS))[None, : batch["ref_img"].shape[1]]
    style = None if features is None else model.feature_embedder(features)
    if style_valid is not None:
        per_image = model.config.projector.tokens_per_image
        style_valid = jnp.repeat(style_valid, per_image, axis=1)
    return model(
        **batch, img_ids=flow.position_ids(*GRID)[None], style=style, style_valid=style_valid, ref_valid=ref_valid
    )


def validity():
    """Give the style images and the reference tokens that each sample of `batch` has."""
    styles = jnp.asarray([[True, True], [False, True], [False, False], [False, False]])
    references = jnp.asarray([[True] * 7, [False] * 7, [True] * 4 + [False] * 3, [False] * 7])
    return styles, references


def test_masked_conditions_equal_omitted_ones():
    model, (styles, references) = structure()(weights()), validity()
    # Run op by op: the samples' shapes all differ, and compiling each costs more than running them.
    with jax.disable_jit():
        got = forward(model, batch(), styles, references)
        for i in range(len(MIXED)):
            sample = {name: x[i : i + 1] for name, x in batch().items()}
            sample["features"] = sample["features"][:, np.asarray(styles[i])]
            sample["ref_img"] = sample["ref_img"][:, np.asarray(references[i])]
            sample = {name: x for name, x in sample.items() if x.size}
            assert error(got[i : i + 1], forward(model, sample)) < 1e-5, i


def test_masked_conditions_get_no_gradient():
    styles, references = validity()

    def loss(features, ref_img):
        changed = batch() | dict(features=features, ref_img=ref_img)
        return jnp.square(forward(structure()(weights()), changed, styles, references)).sum()

    with jax.disable_jit():
        gradients = jax.grad(loss, argnums=(0, 1))(batch()["features"], batch()["ref_img"])
    for gradient, valid in zip(gradients, (styles, references), strict=True):
        np.testing.assert_array_equal(gradient[~valid], 0)
        assert (jnp.abs(gradient[valid]).reshape(int(valid.sum()), -1).max(axis=1) > 0).all()


def test_masked_style_leaves_the_projector_alone():
    styles = jnp.zeros((4, 2), bool)

    def loss(trained):
        return jnp.square(forward(structure()(weights() | trained), batch(), styles)).sum()

    with jax.disable_jit():
        gradients = jax.grad(loss)({k: v for k, v in weights().items() if k.startswith("feature_embedder/")})
    assert all(not gradient.any() for gradient in gradients.values())


def test_arguments_that_do_not_go_together():
    model = structure()(weights())
    inputs = {name: x for name, x in batch().items() if name != "features"}
    with pytest.raises(ValueError, match="guidance must be given"):
        forward(model, inputs | dict(guidance=None))
    with pytest.raises(ValueError, match="ref_img and ref_ids belong together"):
        model(**inputs, img_ids=flow.position_ids(*GRID)[None])


# ------------------------------------------------------------------------------------ numerics and devices


@functools.cache
def value_and_gradients(remat: str):
    styles, references = validity()
    adapters = {k: v for k, v in weights().items() if "/processor/" in k or "feature_embedder/" in k}

    @jax.jit
    def run(adapters):
        def loss(adapters):
            out = forward(structure(remat=remat)(weights() | adapters), batch(), styles, references)
            return jnp.square(out).mean(), out

        return jax.grad(loss, has_aux=True)(adapters)

    return run(adapters)


@pytest.mark.parametrize("remat", [policy for policy in stack.REMAT_POLICIES if policy != "none"])
def test_remat_changes_nothing(remat):
    got, want = value_and_gradients(remat), value_and_gradients("none")
    assert error(got[1], want[1]) < 1e-6
    largest = max(float(jnp.abs(x).max()) for x in want[0].values())
    for path, gradient in want[0].items():
        np.testing.assert_allclose(got[0][path], gradient, atol=1e-6 * largest, rtol=0, err_msg=path)


def test_bfloat16():
    """Hold it loosely: a bfloat16 has 8 bits, 0.4 %, and five blocks round dozens of times, at random."""
    low = structure(dtype="bfloat16")(params.cast(weights(), jnp.bfloat16))
    got = jax.jit(forward)(low, batch())
    assert got.dtype == jnp.float32
    assert 1e-4 < error(got, sharded(None)) < 0.1


@functools.cache
def sharded(mesh):
    """Run all conditions on one device, or with kernels cut over a mesh."""
    params_, inputs = weights(), batch()
    if mesh is not None:
        rules = ((r".*/kernel", P("fsdp", "tensor")), (".*", P()))
        spec = lambda path, x: P(*[None] * (x.ndim - 2), *rules[0][1]) if re.fullmatch(rules[0][0], path) else P()
        fits = lambda x, s: all(n % mesh.shape[a] == 0 for n, a in zip(x.shape, s, strict=False) if a)
        specs = {path: spec(path, x) for path, x in params_.items()}
        specs = {path: s if fits(params_[path], s) else P() for path, s in specs.items()}
        assert sum(s != P() for s in specs.values()) > 20
        place = lambda x, s: jax.device_put(x, NamedSharding(mesh, s))
        params_ = {path: place(x, specs[path]) for path, x in params_.items()}
        inputs = {name: place(x, P(("data", "fsdp"))) for name, x in inputs.items()}
    run = jax.jit(lambda params_, inputs: forward(structure()(params_), inputs))
    with jax.set_mesh(mesh or jax.make_mesh((1,), ("only",), axis_types=(AxisType.Auto,))):
        return run(params_, inputs)


def test_eight_devices_equal_one():
    mesh = jax.make_mesh((1, 4, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    got = sharded(mesh)
    assert len(got.sharding.device_set) == 8
    assert error(got, sharded(None)) < 1e-5


# ------------------------------------------------------------------------------------- parameters by path


def test_rules_match_in_order():
    paths = ("a/kernel", "a/bias", "b/kernel")
    assert params.match((("a/.*", 1), (".*", 2)), paths) == {"a/kernel": 1, "a/bias": 1, "b/kernel": 2}
    assert params.match(((".*kernel", None), (".*", 0)), paths) == {"a/kernel": None, "a/bias": 0, "b/kernel": None}
    with pytest.raises(InputError, match="freeze: no rule matches a/bias, b/kernel"):
        params.match((("a/k.*", 1),), paths, "freeze")
    with pytest.raises(InputError, match=r"rules: 'c/\.\*' matches no parameter"):
        params.match((("c/.*", 1), (".*", 2)), paths)
    with pytest.raises(InputError, match="no rule matches a/kernel"):  # the whole path, not a beginning
        params.match((("a", 1), (".*bias", 2), ("b/.*", 3)), paths)


def test_structure_round_trip():
    make = lambda rngs: Flux(FluxConfig.tiny(), rngs=rngs)
    tiny = params.Structure(make)
    drawn = jax.jit(tiny.init)(jax.random.key(1))
    assert {k: (v.shape, v.dtype) for k, v in drawn.items()} == {k: (s.shape, s.dtype) for k, s in tiny.shapes.items()}
    again = params.of(tiny(drawn))
    assert again.keys() == drawn.keys() and all(again[path] is drawn[path] for path in drawn)
    assert params.shapes(make) == tiny.shapes
    assert params.count(drawn) == sum(x.size for x in drawn.values())
    with pytest.raises(ValueError, match=r"missing \['img_in/bias'\], stray \['img_in/bais'\]"):
        tiny({"img_in/bais" if k == "img_in/bias" else k: v for k, v in drawn.items()})


def test_adapters_start_as_nothing():
    structures = [params.Structure(lambda rngs, r=r: Flux(FluxConfig.tiny(lora_rank=r), rngs=rngs)) for r in (4, 0)]
    drawn = jax.jit(structures[0].init)(jax.random.key(1))
    ups = [path for path in drawn if path.endswith("up/kernel")]
    assert len(ups) == 6 and not any(drawn[path].any() for path in ups)
    downs = np.concatenate([np.ravel(v) for k, v in drawn.items() if k.endswith("down/kernel")])
    assert downs.std() == pytest.approx(1 / 4, rel=0.05)
    assert structures[1].shapes.keys() == {path for path in drawn if "/processor/" not in path}


def test_layers_of_a_stack_start_differently():
    kernel = jax.jit(params.Structure(lambda rngs: Flux(FluxConfig.tiny(), rngs=rngs)).init)(jax.random.key(1))[
        "single_blocks/linear2/kernel"
    ]
    assert not jnp.array_equal(kernel[0], kernel[1])


def test_errors_of_the_encoders():
    with pytest.raises(ValueError, match="hidden state -23 does not exist"):
        golden.siglip()(nhwc(arrays()["style_pixels_0"]), hidden_states=(-23,))
    ae = params.Structure(lambda rngs: AutoEncoder(AutoEncoderConfig.tiny(), rngs=rngs))
    model = ae({path: jnp.zeros(x.shape) for path, x in ae.shapes.items()})
    with pytest.raises(ValueError, match="image size 5x4 must be a multiple of 2"):
        model.encode(jnp.zeros((1, 5, 4, 3)))
