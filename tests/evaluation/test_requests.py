# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a judge receives, recorded by a local endpoint: order, turns, parameters and encodings of each benchmark."""

import base64
import io
import json
import pathlib

import fake_vlm
import numpy as np
import pytest
from PIL import Image

from uso_jax.common.errors import InputError
from uso_jax.evaluation import gallery
from uso_jax.evaluation.benchmark import BENCHMARKS, MODULES, by_name
from uso_jax.evaluation.gallery import Sample
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.metrics.base import Tools, make_measure
from uso_jax.evaluation.protocol import Wording
from uso_jax.evaluation.score_log import Failed, reading
from uso_jax.vlm import judges


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return paths of images by name: one of more than a megapixel, one of odd sides, a PNG and a JPEG."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    sizes = {"large.png": (1100, 1000), "odd.png": (100, 37), "made.png": (70, 50), "target.jpg": (64, 48)}
    for name, size in sizes.items():
        coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / name)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def asked(files, tmp_path):
    """Return a function that judges one image and returns the requests and the result."""

    def ask(name, metric, replies, compat=False, prompts=None, **item):
        found = by_name(name)
        chosen = next(one for one in found.metrics if one.name == metric)
        one = EvalItem("k", name, **item)
        sample = Sample(one, 0, files["made.png"], gallery.file_digest(str(files["made.png"])))
        with fake_vlm.serve(lambda body: replies(json.dumps(body["messages"])) or "unreadable") as endpoint:
            vlm = judges.open_judge(f"judge@{endpoint.url}", tmp_path / "judge.jsonl")
            measure = make_measure(chosen, Tools(vlm=vlm, compat=compat, prompts=prompts))
            (result,) = measure([sample])
        return endpoint.asked, result

    return ask


def jpeg(path: pathlib.Path, size=None) -> bytes:
    """Return an image as the benchmarks' code encodes it: PIL's defaults."""
    image, buffer = Image.open(path).convert("RGB"), io.BytesIO()
    (image.resize(size) if size else image).save(buffer, format="JPEG")
    return buffer.getvalue()


def seen(body: dict) -> list:
    """Return a request's turns: role, then texts and (kind, file, detail) in order."""
    turns = []
    for message in body["messages"]:
        content = message["content"]
        parts = [content] if isinstance(content, str) else []
        for part in content if isinstance(content, list) else ():
            if part["type"] == "text":
                parts.append(part["text"])
            else:
                head, _, data = part["image_url"]["url"].partition(";base64,")
                parts.append((head.removeprefix("data:"), base64.b64decode(data), part["image_url"].get("detail")))
        turns.append((message["role"], parts))
    return turns


def parameters(body: dict) -> dict:
    return {name: value for name, value in body.items() if name not in ("model", "messages")}


def test_omnicontext(asked, files):
    """Text first, then references of at most a megapixel in steps of 16, then the image; no temperature, no seed."""
    item = dict(subset="scene_object", prompt="Put it.", content_refs=(str(files["large.png"]), str(files["odd.png"])))
    bodies, result = asked("omnicontext", "judged", lambda _: '{"score": 9}', **item)
    assert result == {"pf": 9, "sc": 9} and [parameters(body) for body in bodies] == [{"max_tokens": 1400}] * 2
    images = [("image/jpeg", data, None) for data in (
        jpeg(files["large.png"], (1072, 976)), jpeg(files["odd.png"], (96, 32)), jpeg(files["made.png"]),
    )]  # fmt: skip
    for body, text in zip(
        bodies, ("How completely does the last image do", "and the scene of the references"), strict=True
    ):
        ((role, parts),) = seen(body)
        assert role == "user" and text in parts[0] and "instruction: Put it.\n" in parts[0] and parts[1:] == images
    compat, _ = asked("omnicontext", "judged", lambda _: '{"score": 9}', compat=True, **item)
    # Three attempts, of which the first are known, always; both questions in each, in turns.
    assert compat == bodies * 2


def test_sconeeval(asked, files):
    """Three scorings, each an independent sample; presence shows one reference and the image."""
    meta = {"case_type": "S1", "subject_list": [["a mug"], ["a cat", "a dog"]], "subject_label": [[1], [0, 1]]}
    refs = (str(files["odd.png"]), str(files["target.jpg"]))
    item = dict(subset="distinction_multi_cross", prompt="The mug.", content_refs=refs, meta=meta)
    bodies, result = asked("sconeeval", "judged", lambda _: '{"score": 4}', **item)
    assert (
        result == {"pf": [4] * 3, "sc": [4] * 3} and [parameters(body) for body in bodies] == [{"max_tokens": 1400}] * 6
    )
    assert bodies[:2] == bodies[2:4] == bodies[4:]
    for body in bodies[:2]:
        ((_, (text, *images)),) = seen(body)
        assert "The mug." in text and "a mug" not in text  # no list of subjects
        assert [data for _, data, _ in images] == [
            jpeg(files["odd.png"], (96, 32)), jpeg(files["target.jpg"]), jpeg(files["made.png"]),
        ]  # fmt: skip
    assert "the scene that it names" in seen(bodies[1])[0][1][0] and "scene" not in seen(bodies[0])[0][1][0]
    bodies, result = asked("sconeeval", "distinction", lambda text: "no" if "a cat" in text else "yes", **item)
    assert result["accuracy"] == [10] * 3 and len(bodies) == 9
    shown = [[data for _, data, _ in seen(body)[0][1][1:]] for body in bodies[:3]]
    made = jpeg(files["made.png"])
    first, second = jpeg(files["odd.png"], (96, 32)), jpeg(files["target.jpg"])
    assert shown == [[first, made], [second, made], [second, made]]


def test_mico(asked, files):
    """The files themselves, at temperature 0; the question of presence shows images first."""
    refs = (str(files["odd.png"]),)
    item = dict(subset="hoi", prompt="Both.", content_refs=refs, target=str(files["target.jpg"]))
    bodies, _ = asked("mico", "viescore", lambda _: "[9, 4]", **item)
    made = ("image/png", files["made.png"].read_bytes(), None)
    target = ("image/jpeg", files["target.jpg"].read_bytes(), None)
    ((_, quality),), ((_, semantics),) = map(seen, bodies)
    assert [parameters(body) for body in bodies] == [{"temperature": 0.0}] * 2
    assert "how natural" in quality[0] and quality[1:] == [made]
    assert "instruction: Both.\n" in semantics[0] and semantics[1:] == [target, made]
    (body,), _ = asked("mico", "weight", lambda _: "yes", **item)
    assert parameters(body) == {"temperature": 0.0, "max_tokens": 16}
    ((_, parts),) = seen(body)
    assert parts[:2] == [("image/png", files["odd.png"].read_bytes(), None), made] and "Does what" in parts[2]
    bodies, result = asked("mico", "viescore", lambda _: "none", compat=True, **item | {"prompt": "Again."})
    assert len(bodies) == 1 and reading(result, True) == {"pq": 6}  # quality is known, and nothing is asked twice
    assert isinstance(reading(result, False), Failed)


def test_dreambenchpp(asked, files):
    """A conversation of three turns, images of 512 squared at high detail, temperature 1, another seed each time."""
    item = dict(subset="style", prompt="a mug in the rain", style_refs=(str(files["odd.png"]),))
    bodies, result = asked("dreambenchpp", "scales", lambda _: '{"score": 3}', **item)
    assert result == {"cp": [0.75] * 3, "pf": [0.75] * 3} and len(bodies) == 6
    given = [parameters(body) for body in bodies]
    assert all(one.keys() == {"temperature", "seed"} and one["temperature"] == 1 for one in given)
    assert len({one["seed"] for one in given}) == 6 and all(0 <= one["seed"] < 1 << 31 for one in given)
    images = [("image/jpeg", jpeg(files[name], (512, 512)), "high") for name in ("odd.png", "made.png")]
    kept, follows = seen(bodies[0]), seen(bodies[1])
    assert [role for role, _ in kept] == [role for role, _ in follows] == ["user", "assistant", "user"]
    assert "style of the first" in kept[0][1][0] and kept[2][1] == images
    assert follows[2][1] == ["a mug in the rain", images[1]]
    assert all(isinstance(body["messages"][0]["content"], str) for body in bodies)
    again, _ = asked("dreambenchpp", "scales", lambda _: '{"score": 3}', **item)
    assert not again  # the seeds are the same, so the answers are known


# ---------------------------------------------------------------------------------------------------- published texts


PUBLISHED = {  # texts in the published form, and an answer in theirs
    "omnicontext": (
        {"following.txt": "Rate <instruction>\n", "consistency.txt": "Same? <instruction>"},
        '{"score": 7.5}',
    ),
    "dreambenchpp": ({"gpt_prompt_text_full.txt": "\nYes.\n", "gpt_prompt_subject_full.txt": "Yes."}, "Score: 3"),
    "sconeeval": ({"consistency.txt": "S <instruction>", "presence.txt": "Is <subject> there? 0 or 1."}, "1"),
    "mico": ({"semantics.txt": "Text Prompt:\n{prompt}"}, "output score = [8., 2]"),
}


def published(folder: pathlib.Path, name: str, **changes) -> pathlib.Path:
    for text in by_name(name).judge.texts.values():
        (folder / text.file).write_text(" ".join(["Rate.", *text.needs.values()]))
    for file, text in (PUBLISHED[name][0] | changes).items():
        (folder / file).write_text(text)
    return folder


def protocols():
    return {name: found.judge for name in MODULES if (found := by_name(name)).judge}


def wording(name, path):
    return Wording.read(path, by_name(name).judge, protocols())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_texts_bring_their_readers(name, asked, files, tmp_path):
    found = wording(name, published(tmp_path, name))
    meta = {"subject_list": [["a mug"]], "subject_label": [[1]]}
    item = dict(
        prompt="In the rain.", content_refs=(str(files["odd.png"]),), target=str(files["target.jpg"]), meta=meta
    )
    metric = "distinction" if name == "sconeeval" else by_name(name).judge and by_name(name).metrics[0].name
    bodies, result = asked(name, metric, lambda _: PUBLISHED[name][1], prompts=found, **item)
    first = seen(bodies[0])
    match name:
        case "omnicontext":
            assert result == {"pf": 7.5, "sc": 7.5} and first[0][1][0] == "Rate In the rain.\n"
        case "dreambenchpp":
            assert result == {"cp": [0.75] * 3, "pf": [0.75] * 3}
            assert seen(bodies[1])[1] == ("assistant", ["Yes."])  # stripped, as in the published code
        case "sconeeval":
            assert result["f1"] == [10] * 3 and first[0][1][0] == "Is a mug there? 0 or 1."
        case "mico":
            assert result == {"sc": 4, "pq": 4} and seen(bodies[1])[0][1][0] == "Text Prompt:\nIn the rain."
    assert found.facts()["prompts_of"] == "published"


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("omnicontext", "following.txt", "Rate.", "following.txt lacks <instruction>"),
        ("sconeeval", "presence.txt", "Is it there?", "presence.txt lacks <subject>"),
        ("mico", "semantics.txt", "Rate <instruction>.", "semantics.txt lacks {prompt}"),
    ],
)
def test_published_texts_without_their_placeholder(name, file, text, message, tmp_path):
    with pytest.raises(InputError, match=message):
        wording(name, published(tmp_path, name, **{file: text}))
    (tmp_path / file).unlink()
    with pytest.raises(InputError, match=f"{file} does not exist"):
        wording(name, tmp_path)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"following": "Rate <instruction>."}, "text 'following' lacks {prompt}"),
        ({"labelled": "Only {subjects} count: {prompt}"}, "text 'labelled' has {subjects}"),
        ({"lines": "x"}, "unknown name 'lines'"),
    ],
)
def test_own_texts(texts, message, tmp_path):
    path = tmp_path / "texts.json"
    path.write_text(json.dumps(texts))
    with pytest.raises(InputError, match=message):
        wording("sconeeval", path)
    path.write_text('{"following": "Mine: {prompt}", "quality": "of another benchmark"}')
    assert wording("sconeeval", path).texts["following"] == "Mine: {prompt}"
    assert wording("sconeeval", path).facts()["prompts_of"] == "the user"
    assert BENCHMARKS["sconeeval"].judge.texts["presence"].own == wording("sconeeval", path).texts["presence"]
