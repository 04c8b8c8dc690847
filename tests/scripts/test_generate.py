# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`scripts/generate.py` and `scripts/style.py` as a user runs them, and their input and output files."""

import functools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import oracle_pipeline as oracle
import pytest
import tiny
import xla_flags
from PIL import Image

from uso_jax.commands import generate as generate_command
from uso_jax.commands import style as style_command
from uso_jax.common.errors import InputError
from uso_jax.images import decode, files
from uso_jax.images.reference import Reference
from uso_jax.inference import styles

pytestmark = pytest.mark.slow  # compiles or runs whole programs


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with weights, a content image, two style images and a list of items."""
    folder = tmp_path_factory.mktemp("generate")
    oracle.write(folder / "weights")
    oracle.write_references(folder)
    items = [{"prompt": f"a fox {word}", "image_paths": ["fox.png", "ink.png"]} for word in oracle.WORDS[:10]]
    (folder / "items.json").write_text(json.dumps(items))
    return folder


def generate(folder: pathlib.Path, *arguments: str, out: str = "out", steps: str = "2") -> list[pathlib.Path]:
    """Run the command in this process; return the images in its folder."""
    generate_command.main(
        ["--weights", str(folder / "weights"), "--save_path", str(folder / out), "--num_steps", steps,
         "--mesh", "data=1", "--no_compilation_cache", *arguments]
    )  # fmt: skip
    return sorted((folder / out).rglob("*.png"))


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Let the command see one device; the eight of conftest are for other tests."""
    import jax

    monkeypatch.setattr(jax, "devices", functools.partial(lambda all, *_: all[:1], jax.devices()))


def pixels(path: pathlib.Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image, int)


def refused(capsys, folder, *arguments, **options) -> str:
    with pytest.raises(SystemExit) as stop:
        generate(folder, *arguments, **options)
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    return error.removeprefix("error: ")


# ---------------------------------------------------------------------------------------------------- images


def test_the_same_command_twice_and_from_its_image(folder, monkeypatch):
    command = ("--prompt", "a red fox", "--image_paths", str(folder / "fox.png"), str(folder / "ink.png"))
    command += ("--style_masks", str(folder / "felt.png"))
    (first,) = generate(folder, *command, "--seed", "5", "--style_strength", "0.5", out="first")
    (second,) = generate(folder, *command, "--seed", "5", "--style_strength", "0.5", out="second")
    assert first.name == second.name and first.read_bytes() == second.read_bytes()
    (again,) = generate(folder, "--from_image", str(first), out="again")
    assert again.name == first.name and again.read_bytes() == first.read_bytes()
    (other,) = generate(folder, "--from_image", str(first), "--seed", "6", out="other")
    record = files.read_record(other)
    assert (record["request"]["seed"], record["request"]["style_strength"]) == (6, [0.5])
    assert record["request"]["style_masks"][0]["path"] == str(folder / "felt.png")
    assert np.abs(pixels(other) - pixels(first)).max() > 2
    assert json.loads(first.with_suffix(".json").read_text()) == files.read_record(first)


def test_a_changed_reference_cannot_repeat_an_image(folder, capsys):
    moved = folder / "moved.png"
    oracle.photo(7, 20, 20).save(moved)
    (made,) = generate(folder, "--prompt", "", "--image_paths", str(moved), out="moved")
    oracle.photo(8, 20, 20).save(moved)
    assert "no longer the file" in refused(capsys, folder, "--from_image", str(made), out="moved_again")
    assert "has no record" in refused(capsys, folder, "--from_image", str(moved), out="moved_again")


class Killed(Exception):
    pass


def test_killed_after_three_of_ten(folder, monkeypatch, capsys):
    original, made = files.write_image, []

    def write(path, *arguments):
        if len(made) == 3:
            raise Killed
        original(path, *arguments)
        made.append(path)

    items = ("--eval_json_path", str(folder / "items.json"))
    monkeypatch.setattr(files, "write_image", write)
    with pytest.raises(Killed):
        generate(folder, *items, out="killed")
    monkeypatch.setattr(files, "write_image", lambda path, *rest: (original(path, *rest), made.append(path)))
    times = [path.stat().st_mtime_ns for path in made]
    assert len(generate(folder, *items, out="killed")) == len(made) == 10
    assert [path.stat().st_mtime_ns for path in made[:3]] == times
    assert capsys.readouterr().out.count("(was finished)") == 3


def test_processes_share_the_items_and_their_names_never_collide(folder):
    items = ("--eval_json_path", str(folder / "items.json"), "--num_images_per_prompt", "2", "--batch_size", "4")
    names = []
    for index in range(2):
        found = generate(folder, *items, "--num_processes", "2", "--process_index", str(index), out="shared")
        names.append({path.name for path in found})
    assert (len(names[0]), len(names[1])) == (10, 20)
    records = [files.read_record(folder / "shared" / name) for name in names[1]]
    assert len({(r["request"]["prompt"], r["request"]["seed"]) for r in records}) == 20
    assert {record["request"]["seed"] for record in records} == {3407, 3408}
    # Another command into the same folder writes beside them.
    assert len(generate(folder, "--prompt", "a cat", out="shared")) == 21


def test_save_dir_and_references_beside(folder):
    item = {"prompt": "a fox", "image_paths": ["fox.png", "ink.png"], "save_dir": "sub/fox"}
    (folder / "one.json").write_text(json.dumps([item]))
    (made,) = generate(folder, "--eval_json_path", str(folder / "one.json"), "--concat_refs", "True", out="named")
    assert made == folder / "named" / "sub" / "fox_0.png" and made.with_suffix(".json").is_file()
    assert pixels(made).shape == (90, 32 + 60 + 30, 3)


def test_items_do_not_overwrite_each_other(folder, capsys):
    items = [{"prompt": word, "save_dir": name} for word, name in (("a", "x"), ("b", "y"), ("c", "./x"))]
    (folder / "same.json").write_text(json.dumps(items))
    message = refused(capsys, folder, "--eval_json_path", str(folder / "same.json"), out="none")
    assert "items 0 and 2 have the same save_dir" in message


def test_instruct_edit(folder):
    (made,) = generate(folder, "--prompt", "ink style", "--image_paths", str(folder / "fox.png"),
                       "--instruct_edit", out="edit")  # fmt: skip
    assert pixels(made).shape == (32, 16, 3)


# ---------------------------------------------------------------------------------------------------- styles


def test_styles_by_name(folder, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    weights = ("--weights", str(folder / "weights"))
    style_command.main(["encode", str(folder / "ink.png"), *weights, "--out", "ink"])
    style_command.main(["encode", str(folder / "felt.png"), *weights, "--out", str(folder / "felt.safetensors")])
    style_command.main(["mix", "ink=3", f"{folder / 'felt.safetensors'}=1", "--out", "inky"])
    style_command.main(["list"])
    assert "ink.safetensors  1 image(s)" in capsys.readouterr().out
    ink, felt, inky = map(styles.read_style, ("ink", folder / "felt.safetensors", "inky"))
    np.testing.assert_allclose(inky.features, 0.75 * ink.features + 0.25 * felt.features, atol=1e-6)
    assert [image["weight"] for image in inky.images] == [0.75, 0.25]
    drawn = []
    for number, style in enumerate((str(folder / "ink.png"), "ink", "inky")):
        (made,) = generate(folder, "--prompt", "a cat", "--image_paths", "", style, out=f"style_{number}")
        drawn.append(pixels(made))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[2] != drawn[0]).any()
    (again,) = generate(folder, "--from_image", str(made), out="style_again")
    assert again.read_bytes() == made.read_bytes()
    assert "style 'watercolour' is unknown" in refused(
        capsys, folder, "--prompt", "a", "--image_paths", "", "watercolour", out="none"
    )
    foreign = styles.StyleEmbedding(ink.features, "another tower", ink.images)
    styles.write_style("foreign", foreign)
    assert "another SigLIP" in refused(capsys, folder, "--prompt", "a", "--image_paths", "", "foreign", out="none")


# ---------------------------------------------------------------------------------------------------- bad input


def test_all_kinds_of_images(tmp_path):
    rgb = np.asarray(oracle.photo(1, 12, 8))
    drawn = Image.fromarray(rgb)

    def read(name, image, **options):
        image.save(tmp_path / name, **options)
        return Reference.of(tmp_path / name)

    near = lambda got, want, most: np.abs(got.pixels.astype(int) - want.astype(int)).max() <= most
    assert near(read("plain.png", drawn), rgb, 0)
    assert near(read("cmyk.tif", drawn.convert("CMYK")), rgb, 1)
    deep = rgb[..., 0].astype(np.uint16) * 257
    assert near(read("deep.png", Image.fromarray(deep)), np.repeat(rgb[..., :1], 3, axis=-1), 1)
    # Training reads images by the same function.
    np.testing.assert_array_equal(
        decode.decode_image(tmp_path / "deep.png", what="deep"), Reference.of(Image.fromarray(deep)).pixels
    )
    animated = read("two.gif", drawn.quantize(), save_all=True, append_images=[Image.new("RGB", (12, 8))])
    assert animated.notes and "first frame" in animated.notes[0] and animated.pixels.shape == (8, 12, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert near(read("turned.png", drawn, exif=exif), np.rot90(rgb, -1), 0)
    clear = Image.fromarray(np.dstack([rgb, np.zeros((8, 12), np.uint8)]))
    assert near(read("clear.png", clear), np.full_like(rgb, 255), 0)
    assert read("dot.png", Image.new("RGB", (1, 1), "red")).content(32, 8).shape == (32, 32, 3)


def test_what_is_no_image(tmp_path, folder, capsys):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    drawn = oracle.photo(1, 40, 40)
    drawn.save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    for name, message in {
        "text": "text.png' cannot be decoded (unknown image format; PNG, JPEG,",
        "empty": "is empty",
        "half": "half.png' cannot be decoded (image file is truncated",
        "huge": "has too many pixels; the limit is 64000000",
        "absent": "does not exist",
    }.items():
        path = str(tmp_path / f"{name}.png")
        assert message in refused(capsys, folder, "--prompt", "a", "--image_paths", path, out="none")
    with (
        Image.open(tmp_path / "half.png") as half,
        pytest.raises(InputError, match=r"the image cannot be decoded \(image"),
    ):
        Reference.of(half)
    with pytest.raises(InputError, match="must be uint8"):
        Reference.of(np.zeros((0, 4, 3), np.uint8))
    assert not (folder / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to generate"),
        (("--prompt", ""), "nothing to generate"),
        (("--prompt", "a", "--eval_json_path", "x.json"), "only one of"),
        (("--eval_json_path", "absent.json"), "absent.json does not exist"),
        (("--prompt", "a", "--mesh", "rows=2"), "must look like data=4,tensor=2"),
        (("--prompt", "a", "--seed", f"{2**64 - 1}", "--num_images_per_prompt", "2"), f"above {2**64 - 1}"),
        (("--prompt", "a", "--save_path", "x" * 300), "choose another --save_path"),
        (("--prompt", "a", "--process_index", "3"), "--process_index must be from 0 to 0"),
        (("--prompt", "a", "--width", "2"), "width must be a whole number from 8"),
        (("--prompt", "a", "--style_masks", "absent.png"), "'absent.png' does not exist"),
        (("--prompt", "a", "--style_masks", str(tiny.ROOT / "docs/images/fish.png")), "1 masks for 0 styles"),
    ],
)
def test_mistakes(folder, capsys, arguments, message):
    assert message in refused(capsys, folder, *arguments, out="none")


def test_weights_of_another_variant(folder, capsys, tmp_path):
    import shutil

    shutil.copytree(folder / "weights", tmp_path / "weights")
    manifest = tmp_path / "weights" / "siglip" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"image_size": 28', '"image_size": 37'))
    message = refused(capsys, tmp_path, "--prompt", "a")
    assert "mixes components of different variants: projector expects (9, 24)" in message
    shutil.rmtree(tmp_path / "weights" / "t5")
    assert "has no t5" in refused(capsys, tmp_path, "--prompt", "a")
    (tmp_path / "weights" / "pipeline.json").write_text('{"width": "wide"}')
    shutil.copytree(folder / "weights" / "t5", tmp_path / "weights" / "t5")
    assert "width must be a int" in refused(capsys, tmp_path, "--prompt", "a")


# ---------------------------------------------------------------------------------------------------- processes


COUNTED = """
import collections, runpy, sys
import jax
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: counts.update([name.split("/")[-1]]))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
print("found", counts["cache_hits"], "compiled", counts["cache_misses"])
"""


def start(folder: pathlib.Path, out: str, *arguments: str, devices: int = 1, **environment: str) -> subprocess.Popen:
    """Run the command in a separate process, whose last line counts the programs it found on disk or compiled."""
    return subprocess.Popen(
        [sys.executable, "-c", COUNTED, "scripts/generate.py", "--save_path", str(folder / out), *arguments],
        cwd=tiny.ROOT,
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(folder / "cache")}
        | {"XLA_FLAGS": xla_flags.flags(devices)}
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen) -> tuple[str, str]:
    """Return the output of a process that must succeed."""
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return out, error


def test_a_second_process_compiles_nothing_and_eight_devices_draw_the_same(folder):
    def run(out, *more, **options):
        said = end(start(
            folder, out, "--weights", str(folder / "weights"), "--prompt", "a red fox",
            "--image_paths", str(folder / "fox.png"), str(folder / "ink.png"), "--num_steps", "2",
            "--num_images_per_prompt", "3", "--batch_size", "3", *more, JAX_DISABLE_MOST_OPTIMIZATIONS="1", **options,
        ))  # fmt: skip
        found, compiled = re.search(r"found (\d+) compiled (\d+)", said[0]).groups()
        return int(found), int(compiled), sorted((folder / out).glob("*.png"))

    *_, compiled, first = run("process_1")
    assert compiled > 5
    found, again, second = run("process_2")
    assert (found, again) == (compiled, 0)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    for number, mesh in enumerate(("data=-1", "data=1,sequence=2,fsdp=2,tensor=1")):
        devices = (8, 4)[number]
        *_, many = run(f"many_{number}", "--no_compilation_cache", "--mesh", mesh, devices=devices)
        assert [path.name for path in many] == [path.name for path in first]
        for a, b in zip(first, many, strict=True):
            assert np.abs(pixels(a) - pixels(b)).max() <= 1


def test_a_killed_process_is_taken_up_again(folder):
    """With the mini weights, and a SIGKILL during the fourth image."""
    items = ("--eval_json_path", str(folder / "items.json"), "--num_steps", "12", "--mesh", "data=1")
    end(start(folder, "undisturbed", *items))
    whole = sorted((folder / "undisturbed").glob("[0-9]*"))
    assert len(whole) == 20  # ten images and their records

    process = start(folder, "torn", *items)
    while len(made := sorted((folder / "torn").glob("*.png"))) < 3:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    made = {path: path.stat().st_mtime_ns for path in (folder / "torn").glob("*.png")}
    assert 3 <= len(made) < 10  # it may get further on a busy machine
    # As if the kill had happened during a write.
    (half,) = (folder / "undisturbed").glob("9_*.png")
    (folder / "torn" / half.name).write_bytes(half.read_bytes()[:900])

    said, _ = end(start(folder, "torn", *items))
    assert said.count("(was finished)") == len(made)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    torn = sorted((folder / "torn").glob("[0-9]*"))
    assert [path.name for path in torn] == [path.name for path in whole]
    assert [path.read_bytes() for path in torn] == [path.read_bytes() for path in whole]
