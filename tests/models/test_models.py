# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Properties of the networks beyond parity: full sizes, absent conditions, remat policies, sharding."""

import functools
import re

import golden_files as golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import error
from golden_files import MANIFESTS, arrays, nhwc
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from convert.tables.autoencoder import AUTOENCODER
from convert.tables.siglip import VISION
from uso_jax import flow, params
from uso_jax.common.errors import InputError
from uso_jax.models.autoencoder import AutoEncoder, AutoEncoderConfig
from uso_jax.models.flux import PRESETS, Flux, FluxConfig
from uso_jax.models.layers import scan
from uso_jax.models.layers.embeddings import rotary_embedding
from uso_jax.models.layers.joint_blocks import Joint, SingleStreamBlock
from uso_jax.models.siglip import SiglipConfig, SiglipVision
from uso_jax.weights.tables.flux import LORA, PROJECTOR, TRANSFORMER
from uso_jax.weights.tables.table import expand

pytestmark = pytest.mark.usefixtures("cheap_compilation")

# ---------------------------------------------------------------------------------------------- full size


@functools.cache
def uso_shapes():
    return params.shapes(lambda rngs: Flux(PRESETS["flux-dev"].with_uso(), rngs=rngs))


def part(name: str):
    """Return the shapes of USO's adapters or projector, or of the transformer alone."""
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
        (lambda: FluxConfig(num_heads=7), "is not divisible by 7 heads"),
        (lambda: FluxConfig(axes_dim=(16, 56, 58)), "must add up to the head width, 128"),
        (lambda: FluxConfig(axes_dim=(17, 55, 56)), "must be even"),
        (lambda: FluxConfig(remat="some"), "remat must be one of full, offload, attention, dots, none"),
        (lambda: FluxConfig(lora_rank=-1), "lora_rank must be 0"),
        (lambda: SiglipConfig(num_attention_heads=7), "is not divisible by 7 heads"),
        (lambda: SiglipConfig(image_size=13), "smaller than one patch"),
        (lambda: AutoEncoderConfig(ch=100), "ch 100 is not divisible by norm_groups 32"),
    ),
)
def test_config_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ------------------------------------------------------------------------- one batch, different conditions

GRID, REF_GRIDS = (2, 3), ((2, 2), (1, 3))


@functools.cache
def weights():
    return golden.flux_params()


@functools.cache
def structure(**changes):
    return params.ModelDef(lambda rngs: Flux(golden.flux_config(**changes), rngs=rngs))


@functools.cache
def batch(size: int = 4):
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
    """Return the numbers of style images and reference tokens of each sample of `batch`."""
    styles = jnp.asarray([[True, True], [False, True], [False, False], [False, False]])
    references = jnp.asarray([[True] * 7, [False] * 7, [True] * 4 + [False] * 3, [False] * 7])
    return styles, references


@functools.cache
def outputs_and_gradients():
    """Run `batch` with conditions masked by `validity`; return the output and the gradients of its square."""

    @jax.jit
    def run(features, ref_img):
        def loss(features, ref_img):
            conditions = dict(features=features, ref_img=ref_img)
            out = forward(structure()(weights()), batch() | conditions, *validity())
            return jnp.square(out).sum(), out

        gradients, out = jax.grad(loss, argnums=(0, 1), has_aux=True)(features, ref_img)
        return out, gradients

    return run(batch()["features"], batch()["ref_img"])


@pytest.mark.parametrize("sample", range(4))
def test_masked_conditions_equal_omitted_ones(sample):
    styles, references = (np.asarray(valid[sample]) for valid in validity())
    alone = {name: x[sample : sample + 1] for name, x in batch().items()}
    alone["features"] = alone["features"][:, styles]
    alone["ref_img"] = alone["ref_img"][:, references]
    want = jax.jit(forward)(structure()(weights()), {name: x for name, x in alone.items() if x.size})
    assert error(outputs_and_gradients()[0][sample : sample + 1], want) < 1e-5


def test_masked_conditions_get_no_gradient():
    for gradient, valid in zip(outputs_and_gradients()[1], validity(), strict=True):
        np.testing.assert_array_equal(gradient[~valid], 0)
        assert (jnp.abs(gradient[valid]).reshape(int(valid.sum()), -1).max(axis=1) > 0).all()


def test_arguments_that_do_not_go_together():
    model = structure()(weights())
    inputs = {name: x for name, x in batch().items() if name != "features"}
    with pytest.raises(ValueError, match="guidance must be passed"):
        forward(model, inputs | dict(guidance=None))
    with pytest.raises(ValueError, match="ref_img and ref_ids"):
        model(**inputs, img_ids=flow.position_ids(*GRID)[None])


# ------------------------------------------------------------------------------------ numerics and devices


@functools.cache
def blocks():
    """Return a stack of three adapted blocks with random parameters, including the adapters'."""
    make = lambda rngs: scan.stack(lambda rngs: SingleStreamBlock(FluxConfig.tiny(), rngs=rngs), 3, rngs)
    structure = params.ModelDef(make)
    return structure, jax.jit(structure.init)(jax.random.key(1))


@functools.cache
def rematerialised(remat: str):
    """Return output and parameter gradients of the stack."""
    structure, drawn = blocks()
    drawn = {path: x + 0.1 for path, x in drawn.items()}  # `up` starts as 0, which would hide `down`
    x, vec = jax.random.normal(jax.random.key(2), (2, 6, 32)), jax.random.normal(jax.random.key(3), (2, 32))
    joint = Joint(rotary_embedding(flow.position_ids(2, 3)[None], (4, 6, 6), 10_000))

    @jax.jit
    def run(drawn):
        def loss(drawn):
            out = scan.scan(structure(drawn), lambda block, x: block(x, vec, joint)[0], x, remat=remat)
            return jnp.square(out).mean(), out

        return jax.grad(loss, has_aux=True)(drawn)

    return run(drawn)


@pytest.mark.slow  # compiles a gradient for each policy
@pytest.mark.parametrize("remat", [policy for policy in scan.REMAT_POLICIES if policy != "none"])
def test_remat_changes_nothing(remat):
    (got, out), (want, want_out) = rematerialised(remat), rematerialised("none")
    assert error(out, want_out) < 1e-6
    for path, gradient in want.items():
        assert gradient.any()
        np.testing.assert_allclose(
            got[path], gradient, atol=1e-6 * float(jnp.abs(gradient).max()), rtol=0, err_msg=path
        )


def test_remat_reaches_both_stacks():
    """Count checkpoints other than those around GELU and modulation, which are in the blocks under every policy."""
    times = {}
    for remat in ("none", "full"):
        trace = jax.make_jaxpr(lambda inputs, remat=remat: forward(structure(remat=remat)(weights()), inputs))(batch())
        times[remat] = len(re.findall(r"\b(?:remat2?|checkpoint)\[", str(trace)))
    assert times["full"] == times["none"] + 2


def test_bfloat16():
    """Compare loosely: bfloat16 has 8 bits (0.4 %), and five blocks round dozens of times."""
    low = structure(dtype="bfloat16")(params.cast(weights(), jnp.bfloat16))
    got = jax.jit(forward)(low, batch(), *validity())
    assert got.dtype == jnp.float32
    assert 1e-4 < error(got, outputs_and_gradients()[0]) < 0.1


def test_eight_devices_equal_one():
    mesh = jax.make_mesh((1, 4, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    place = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))

    def place_parameter(path, x):
        cut = path.endswith("/kernel") and x.shape[-2] % 4 == 0 and x.shape[-1] % 2 == 0
        return place(x, *[None] * (x.ndim - 2), "fsdp", "tensor") if cut else place(x)

    placed = {path: place_parameter(path, x) for path, x in weights().items()}
    assert sum(not x.sharding.is_fully_replicated for x in placed.values()) > 20
    inputs = {name: place(x, ("data", "fsdp")) for name, x in batch().items()}
    with jax.set_mesh(mesh):
        run = jax.jit(lambda placed, inputs, valid: forward(structure()(placed), inputs, *valid))
        got = run(placed, inputs, validity())
    assert len(got.sharding.device_set) == 8
    assert error(got, outputs_and_gradients()[0]) < 1e-5


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
    structure, drawn = blocks()
    assert {k: (v.shape, v.dtype) for k, v in drawn.items()} == {
        k: (s.shape, s.dtype) for k, s in structure.shapes.items()
    }
    again = params.from_model(structure(drawn))
    assert again.keys() == drawn.keys() and all(again[path] is drawn[path] for path in drawn)
    assert params.count(drawn) == sum(x.size for x in drawn.values())
    with pytest.raises(ValueError, match=r"missing \['linear2/bias'\], unexpected \['linear2/bais'\]"):
        structure({"linear2/bais" if k == "linear2/bias" else k: v for k, v in drawn.items()})


def test_initial_parameters():
    drawn = blocks()[1]
    ups, downs = ([v for k, v in drawn.items() if k.endswith(f"{half}/kernel")] for half in ("up", "down"))
    assert len(ups) == len(downs) == 2
    assert not any(up.any() for up in ups)
    for down in downs:
        assert float(down.std()) == pytest.approx(1 / FluxConfig.tiny().lora_rank, rel=0.15)
    kernel = drawn["linear2/kernel"]
    assert not jnp.array_equal(kernel[0], kernel[1])  # the layers of a stack start differently


def test_errors_of_the_encoders():
    with pytest.raises(ValueError, match="hidden state -23 does not exist"):
        golden.siglip()(nhwc(arrays()["style_pixels_0"]), hidden_states=(-23,))
    ae = params.ModelDef(lambda rngs: AutoEncoder(AutoEncoderConfig.tiny(), rngs=rngs))
    model = ae({path: jnp.zeros(x.shape) for path, x in ae.shapes.items()})
    with pytest.raises(ValueError, match="image size 5x4 must be a multiple of 2"):
        model.encode(jnp.zeros((1, 5, 4, 3)))
