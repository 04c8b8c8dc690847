# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The one list of generation options, and every place that derives from it."""

import argparse
import dataclasses
import inspect
import json
import pathlib
import types

import gradio as gr
import numpy as np
import pytest

from uso_jax.app import form
from uso_jax.commands.option_flags import add_option_flags, given_options
from uso_jax.common.errors import InputError
from uso_jax.images.reference import Reference
from uso_jax.inference import batch_jobs, records, request
from uso_jax.inference.about import About
from uso_jax.inference.options import SPECS, GenerationOptions, check_options
from uso_jax.inference.pipeline import USOPipeline
from uso_jax.inference.request import Request
from uso_jax.weights.pretrained import Defaults

# An allowed value of each option that is not its default. A new option needs a line here.
OTHER = dict(
    width=48, height=40, keep_size=True, num_steps=7, guidance=2.5, seed=5, shift="none", pe="w", content_ref=24,
    content_strength=2.0, style_strength=0.5, style_fit="crop", reference_mode="upstream",
    negative_prompt="a photo", isolated="all", true_guidance=2.0, guidance_steps=(0.25, 0.5), strength=0.5,
    outpaint=(8, 0, 16, 0), upscale=2.0, upscale_strength=0.5, variation=0.1, variation_seed=7,
    step_cache=0.1, solver="adams",
)  # fmt: skip
DEFAULTS = {field.name: field.default for field in dataclasses.fields(GenerationOptions)}


def test_every_option_has_another_value_and_a_doc():
    assert set(OTHER) == set(SPECS)
    assert all(OTHER[name] != default for name, default in DEFAULTS.items())
    assert all(spec.doc for spec in SPECS.values())


def test_none_is_filled_in_by_the_weights_directory():
    names = {field.name for field in dataclasses.fields(Defaults)}
    unset = {name for name, default in DEFAULTS.items() if default is None}
    assert unset <= names
    filled = GenerationOptions().with_defaults(Defaults())
    assert all(getattr(filled, name) == getattr(Defaults(), name) for name in unset)
    kept = GenerationOptions(**OTHER)
    assert kept.with_defaults(Defaults()) == kept


# ---------------------------------------------------------------------------------------------------- places


def called(**arguments) -> list[GenerationOptions]:
    """Call a pipeline that only collects the options of its requests."""
    pipe = types.SimpleNamespace(request=lambda *_, options, **__: options, generate=lambda requests, **_: requests)
    return inspect.unwrap(USOPipeline.__call__)(pipe, "a fox", **arguments)


def test_the_pipeline_takes_every_option_by_keyword():
    parameters = inspect.signature(USOPipeline.__call__).parameters
    others = {
        "self",
        "prompt",
        "content",
        "contents",
        "styles",
        *request.IMAGES,
        "style_masks",
        "batch_size",
        "progress",
    }
    assert set(parameters) - others == set(SPECS)
    assert {name: parameters[name].default for name in SPECS} == DEFAULTS
    assert called() == [GenerationOptions()]
    for name, value in OTHER.items():
        assert called(**{name: value}) == [GenerationOptions(**{name: value})]
        lists = [[value], [value]] if SPECS[name].kind.several and not isinstance(value, tuple) else [value, value]
        assert called(**{name: lists}) == [GenerationOptions(**{name: lists[0]})] * 2


def test_every_option_has_a_flag():
    parser = argparse.ArgumentParser()
    add_option_flags(parser)
    assert given_options(parser.parse_args([])) == {}
    for name, value in OTHER.items():
        flag = f"--{SPECS[name].flag or name}"
        several = isinstance(value, tuple)
        given = given_options(parser.parse_args([flag, *map(str, value if several else [value])]))
        assert given == {name: list(value) if several else value}
        assert getattr(GenerationOptions(**given), name) == value
    given = given_options(parser.parse_args(["--style_strength", "0.5", "0.25", "--instruct_edit"]))
    assert given == {"style_strength": [0.5, 0.25], "keep_size": True}
    assert all(spec.doc.split()[0] in parser.format_help() for spec in SPECS.values())


def test_every_option_is_a_key_of_batch_jobs():
    for name, value in OTHER.items():
        assert batch_jobs.parse_item({"prompt": "a fox", name: value}).options == {name: value}
    with pytest.raises(InputError, match=r"item 3: num_steps must be a whole number"):
        batch_jobs.parse_item({"prompt": "a fox", "num_steps": "many"}, 3)
    with pytest.raises(InputError, match=r"item 0: unknown key 'steps'"):
        batch_jobs.parse_item({"prompt": "a fox", "steps": 3})


@pytest.mark.parametrize("classifier_free", [False, True])
def test_every_option_has_a_control_or_is_left_out(classifier_free):
    defaults = {name: getattr(Defaults(), name) for name in ("width", "height", "content_ref", "num_steps", "guidance")}
    facts = dict(pixels_per_token=16, embeds_guidance=not classifier_free, classifier_free=classifier_free)
    about = About("weights", "float32", **defaults, **facts)
    with gr.Blocks():
        made = object.__new__(form.Form)
        inspect.unwrap(form.Form.__init__)(made, about, ["ink"])
    assert not set(form.WITHOUT_CONTROL) & set(made.controls)
    assert set(form.WITHOUT_CONTROL) | set(made.controls) >= set(SPECS)
    assert made.controls["guidance"].visible
    assert made.controls["negative_prompt"].visible
    assert made.controls["true_guidance"].visible is not classifier_free
    values = {name: control.value for name, control in made.controls.items()}
    read = form.read_options(values, [0.5])
    assert 0 <= read.seed < 2**31
    unset = {name: getattr(Defaults(), name) for name, default in DEFAULTS.items() if default is None}
    del unset["shift"]
    assert read == GenerationOptions(**unset, seed=read.seed, style_strength=(0.5,))
    for name in set(SPECS) - set(form.WITHOUT_CONTROL) - {"style_strength"}:
        assert getattr(form.read_options(values | {name: OTHER[name]}, [0.5]), name) == OTHER[name]


# ---------------------------------------------------------------------------------------------------- records


def made_request(**changes) -> Request:
    """Return a request of two references, as `make_request` completes it."""
    rng = np.random.default_rng(0)
    content, style = (rng.integers(0, 256, shape, np.uint8) for shape in ((40, 30, 3), (20, 20, 3)))
    contents, styles = (Reference.of(content),), (Reference.of(style),)
    options = dict(
        content_ref=24, content_strength=2.0, guidance=2.5, height=32, num_steps=7, pe="w", seed=5, shift="flux",
        style_fit="crop", style_strength=(0.5,), width=48,
    )  # fmt: skip
    return Request("a fox", contents, (content,), styles, GenerationOptions(**options | changes))


def test_records_and_identities_stay():
    """The identities are those of images that were generated before `GenerationOptions` existed."""
    context = {"dtype": "float32", "components": {"transformer": "0"}, "concat_refs": False}
    assert made_request().identity(context) == "443e78dc0c"
    options = GenerationOptions(
        width=32, height=32, num_steps=25, guidance=3.0, shift="flux", content_ref=32, style_strength=()
    )
    assert Request("a fox", (), (), (), options).identity(context) == "ddabdf4847"
    assert list(made_request().record()["style_strength"]) == [0.5]


def test_every_option_is_recorded_or_left_out(tmp_path):
    record = made_request().record()
    recorded = {name for name, spec in SPECS.items() if spec.record == "always"}
    assert set(record) == {"prompt", "contents", "styles", *recorded}
    assert {name for name, spec in SPECS.items() if spec.record == "never"} == {"keep_size"}  # sizes hold its effect
    record |= {"contents": [], "styles": []}
    repeated = records.from_record({"request": record}, pathlib.Path(tmp_path))
    assert GenerationOptions(**repeated["options"]) == made_request().options
    with pytest.raises(InputError, match="record: unknown option 'later'"):
        records.from_record({"request": record | {"later": 1}}, pathlib.Path(tmp_path))
    with pytest.raises(InputError, match="is damaged"):
        records.from_record({"request": {"contents": []}}, pathlib.Path(tmp_path))


def test_an_option_that_is_new_changes_no_identity_by_its_default(monkeypatch):
    before = made_request().identity({})
    new = dataclasses.replace(SPECS["pe"], record="changed")
    monkeypatch.setitem(SPECS, "pe", new)
    assert "pe" in made_request().record() and "pe" not in made_request(pe="d").record()
    assert made_request().identity({}) == before != made_request(pe="d").identity({})


# ---------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(num_steps=0), "num_steps must be a whole number from 1 to 1000, not 0"),
        (dict(num_steps=2.0), "num_steps must be a whole number"),
        (dict(seed=2**64), "seed must be a whole number"),
        (dict(seed=None), "seed must be a whole number"),
        (dict(guidance=float("inf")), "guidance must be a number"),
        (dict(style_strength=[1.0, -1.0]), "style_strength must be a number"),
        (dict(keep_size=1), "keep_size must be true or false, not 1"),
        (dict(shift="fluks"), "shift must be one of flux, upstream, none, not 'fluks'"),
        (dict(strengths=1.0), "unknown option 'strengths'; the options are width, "),
    ],
)
def test_mistakes(values, message):
    with pytest.raises(InputError, match=f"here: {message}"):
        check_options(values, "here: ")
    (name,) = values
    if name in SPECS and type(values[name]) is type(OTHER[name]):  # the tests also check types
        with pytest.raises(InputError, match=f"^{message}"):
            GenerationOptions(**values)


def test_sizes_are_rounded_down_to_whole_tokens():
    options, notes = GenerationOptions(width=39, height=32).rounded(8)
    assert (options.width, options.height) == (32, 32)
    assert notes == ["width 39 is not a multiple of 8: 32 is used"]
    for size, message in (
        ((7, 32), "width must be a whole number from 8"),
        ((9000, 9000), "9000 x 9000 pixels are too many"),
    ):
        with pytest.raises(InputError, match=message):
            GenerationOptions(width=size[0], height=size[1]).rounded(8)


def test_scalars_of_numpy():
    given = dict(width=np.int64(32), guidance=np.float32(2.5), seed=np.uint64(2**64 - 1), keep_size=np.bool_(True))
    options = GenerationOptions(**given, style_strength=np.asarray([0.5, 1.0]))
    assert options == GenerationOptions(
        width=32, guidance=2.5, seed=2**64 - 1, keep_size=True, style_strength=[0.5, 1.0]
    )
    json.dumps(options.record())
    for name, value in (("seed", np.float32(3)), ("seed", np.bool_(True)), ("width", np.int64(-1))):
        with pytest.raises(InputError, match=name):
            check_options({name: value})
