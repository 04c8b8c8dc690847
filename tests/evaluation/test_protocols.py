# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Canned replies of a judge give the figures of each benchmark's own code, strict and with --compat."""

import json
import math
import pathlib

import numpy as np
import pytest
from PIL import Image

from uso_jax.common.errors import InputError
from uso_jax.evaluation import gallery, scoring, summary
from uso_jax.evaluation.benchmark import by_name
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.metrics import base, lpips, similarity
from uso_jax.evaluation.metrics.base import Metric, Tools
from uso_jax.evaluation.metrics.faces import Embeddings
from uso_jax.evaluation.score_log import Failed, ScoreLog, Skipped
from uso_jax.vlm.judges import CachedJudge


class Canned:
    """A judge that answers the attempts at each question from a list; the last reply of a list repeats."""

    name = "canned"

    def __init__(self, replies):
        self.replies, self.asked = replies, []

    def __call__(self, turns, *, round_, parameters):
        text = "\n".join(part for turn in turns for part in turn.parts if isinstance(part, str))
        key = next(key for key in self.replies if key in text)
        self.asked.append((key, round_))
        given = self.replies[key]
        given = given[round_ // 100 % len(given)] if isinstance(given, tuple) else given
        return given[min(round_ % 100, len(given) - 1)] if isinstance(given, list) else given


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Return paths of five images."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = [str(folder / f"{number}.png") for number in range(5)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def judged(tmp_path, images):
    """Return (benchmark, items, replies, metrics=, faces=) -> [strict run's summary, compat run's summary]."""

    numbers = iter(range(100))

    def run(name, items, replies, metrics=None, faces=None, missing=()):
        found, told, asked = by_name(name), [], []
        for compat in (False, True):
            folder = run.folder = tmp_path / str(next(numbers))
            for number, one in enumerate(items):
                if one.key not in missing:
                    path = folder / "images" / f"{one.key}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(pathlib.Path(images[4]).read_bytes() + bytes([number]))
            judge = Canned(replies)
            tools = Tools(vlm=CachedJudge(folder / "judge.jsonl", judge), faces=faces, compat=compat)
            chosen = scoring.choose_metrics(found, metrics or [m.name for m in found.metrics if m.judge])
            given = gallery.find_images(folder / "images", items, any_size=True)
            scores = scoring.score_images(chosen, items, given, ScoreLog(folder / "scores.jsonl"), tools)
            told.append(summary.summarise(found, "m", items, given, scores, compat=compat))
            asked.append(len(judge.asked))
        run.asked = asked
        return told

    return run


def both(told: dict, column: str) -> tuple[float | None, float | None]:
    """Return a summary's strict and official value of a column, None where there is none."""
    value = lambda cell: None if cell is None else pytest.approx(cell["value"], abs=1e-9)
    mine, other = told["table"].get(column), told["other"]["table"]
    theirs = other.get(column) if column in other else mine
    pair = (value(mine), value(theirs))
    return pair if told["mode"] == "strict" else pair[::-1]


def score(value) -> str:
    return f'{{"score": {value}, "reasoning": "so"}}'


# ---------------------------------------------------------------------------------------------------- OmniContext

PF, SC = "How completely", "very same one"  # parts of this project's texts


def omni(images, key="1", task="single_object"):
    return EvalItem(f"{task}/{key}", "omnicontext", task, f"Put it {key}.", (images[0],))


OMNICONTEXT = {  # replies by attempt to PF and SC -> strict, official
    "clean": ((score(9), score(4)), 6, 6),
    "halves": ((score(7.5), score("[6]")), 45**0.5, 45**0.5),
    "a bare number": (("8", " 2 "), 4, 4),
    "10, 10, unreadable": (([score(10), score(10), "no"], score(10)), 10, 10),
    "the last readable one": (([score(4), score(9), "no"], score(4)), 4, 6),
    "beyond the range": ((score(12), score(3)), None, 6),
    "damaged JSON": (('{score: 9, reasoning: "a "quoted" word"}', score(1)), 3, 3),
    "SC unreadable at the end, its partner counts": (
        (([score(1), score(1), score(9)]), [score(4), score(4), "-"]),
        2,
        6,
    ),
    "PF unreadable at the end, so SC is not read": (([score(9), score(9), "-"], [score(4), score(4), score(1)]), 6, 6),
}


@pytest.mark.parametrize("case", OMNICONTEXT)
def test_omnicontext(case, images, judged):
    (pf, sc), strict, official = OMNICONTEXT[case]
    found = judged("omnicontext", [omni(images)], {PF: pf, SC: sc})
    assert both(found[1], "Single Obj") == (strict, official)  # both stand in the summary of a run with --compat
    assert both(found[0], "Single Obj")[0] == strict
    assert judged.asked[1] == 6 and found[0]["complete"] == (strict is not None)
    if strict == official:
        assert found[1]["other"]["table"] == {"Average": None}  # of one task, which the strict rule does not average


def test_omnicontext_draws_where_nothing_was_readable(images, judged):
    items = [omni(images, str(number)) for number in range(4)]
    strict, compat = judged("omnicontext", items, {PF: "I cannot say", SC: score(10)})
    assert both(strict, "PF")[0] is None and strict["metrics"]["judged"]["failed"] == 4 and not strict["complete"]
    drawn = compat["table"]["PF"]["value"]
    assert drawn == int(drawn) and 0 <= drawn <= 10 and compat["complete"] and compat["other"]["failed"] == 4
    # The strict run saw the same replies, so it shows the same official figure.
    assert strict["other"]["table"]["PF"]["value"] == drawn


def test_omnicontext_averages_the_tasks_that_are_there(images, judged):
    tasks = ("single_object", "multi_object")
    items = [omni(images, "1", task) for task in (*tasks, "scene_object")]
    strict, compat = judged("omnicontext", items, {PF: score(9), SC: score(4)}, missing=("scene_object/1",))
    assert both(strict, "Average") == both(compat, "Average") == (None, 6)
    assert [one["reason"] for one in compat["problems"]] == ["the image is missing"]


def test_omnicontexts_scene_is_asked_about_in_sc_alone(images):
    figures = by_name("omnicontext").judge.figures
    assert figures(omni(images, task="scene_object")) == {"pf": "following", "sc": "consistency_scene"}
    assert figures(omni(images, task="multi_object")) == {"pf": "following", "sc": "consistency"}


# ---------------------------------------------------------------------------------------------------- SconeEval


def scone(images, key="1", task="composition_single", case="", labels=((1, 0), (1,))):
    names = [["mug", "cup"], ["cat"]]
    meta = {"case_type": case, "subject_list": names, "subject_label": [list(row) for row in labels]}
    return EvalItem(f"{task}/{key}", "sconeeval", task, "A mug.", tuple(images[:2]), meta=meta)


SCONE = {  # replies by round to PF and SC -> strict, official COM
    "clean": ((score(9), score(4)), 6, 6),
    "0, 10, 10 with 10, 0, 10": (((score(0), score(10), score(10)), (score(10), score(0), score(10))), 10 / 3, 10 / 3),
    "jitter": (
        ((score(4), score(5), score(6)), (score(6), score(5), score(4))),
        (2 * 24**0.5 + 5) / 3,
        (2 * 24**0.5 + 5) / 3,
    ),
    "halves": ((score(4.5), score(2)), 3, 3),
    "one round unreadable": (((score(4), "-", score(4)), score(9)), None, None),
    "both are asked again": ((["-", score(4)], [score(1), score(9)]), 2, 6),
}


@pytest.mark.parametrize("case", SCONE)
def test_sconeeval_takes_the_root_in_each_scoring(case, images, judged):
    (pf, sc), strict, official = SCONE[case]
    found = judged("sconeeval", [scone(images)], {PF: pf, SC: sc}, ["judged"])
    assert both(found[1], "COM comp. single") == (strict, official)
    assert both(found[0], "COM comp. single")[0] == strict


@pytest.mark.parametrize("task", ["distinction_single_cross"])
def test_sconeevals_distinction_in_each_scoring(task, images, judged):
    """Labels 1, 0, 1: yes to all is an accuracy of 2/3 and an F1 of 0.8; no to all is 1/3 and 0."""
    replies = {
        "this subject: cat": ("yes", "no", "Yes."),
        "this subject: mug": ("yes", "no", "yes"),
        "cup": ("yes", "no"),
    }
    replies["cup"] = ("yes", "no", "no")
    (strict, compat) = judged("sconeeval", [scone(images, task=task)], replies, ["distinction"])
    values = [(20 / 3 + 8) / 2, (10 / 3 + 0) / 2, 10]
    assert both(strict, "DIS dist. single cross") == (np.mean(values), np.mean([round(v, 3) for v in values]))
    assert both(compat, "DIS dist. single cross") == both(strict, "DIS dist. single cross")
    replies["cup"] = "yes and no"  # a contradiction is no answer
    again = judged("sconeeval", [scone(images, "2", task)], replies, ["distinction"])
    assert [both(told, "DIS dist. single cross") for told in again] == [(None, None)] * 2


@pytest.mark.parametrize(
    ("task", "case", "scene"),
    [
        ("composition_single", "CO", False), ("composition_single", "CS", True), ("composition_multi", "S_CO", True),
        ("composition_single", "scene", False), ("distinction_multi_cross", "", False),
    ],
)  # fmt: skip
def test_sconeevals_scene_rubric(task, case, scene, images):
    figures = by_name("sconeeval").judge.figures(scone(images, task=task, case=case))
    assert figures == {"pf": "following", "sc": "labelled_scene" if scene else "labelled"}


# ---------------------------------------------------------------------------------------------------- MICo-Bench


def mico(images, key="1", task="hoi", humans=(), sources=3):
    refs, meta = tuple(images[:sources]), {"human_indices": list(humans)}
    return EvalItem(f"{task}/{key}", "mico", task, "Both on a bench.", refs, target=images[3], meta=meta)


SEMANTICS, QUALITY, SOURCE = "reference composition", "how natural", "Does what"
MICO = {  # replies to quality, semantics and source -> strict, official score of a case without people
    "clean": (("[9, 4]", "score = [4, 9]", "yes"), 36, 0.36 * 100),
    "halves": (("[4.5, 2]", "[8., 2]", "yes"), 12, 12),
    "beyond the range": (("[12, 3]", "[4, 9]", "yes"), None, 36),
    "unreadable": (("nice", "[4, 9]", "yes"), None, None),
    "readable when asked again": ((["nice", "[9, 4]"], "[4, 9]", "yes"), 36, None),
    "an unclear answer is no": (("[9, 4]", "[4, 9]", "yes and no"), None, 0),
    "parts of words": (("[9, 4]", "[4, 9]", "not visible"), None, 0),
}


@pytest.mark.parametrize("case", MICO)
def test_mico(case, images, judged, tmp_path):
    (quality, semantics, source), strict, official = MICO[case]
    replies = {QUALITY: quality, SEMANTICS: semantics, SOURCE: source}
    found = judged("mico", [mico(images)], replies, faces=embeddings(tmp_path, {}))
    assert both(found[0], "HOI")[0] == strict and both(found[1], "HOI")[1] == official


def embeddings(tmp_path, faces, network="arcface"):
    """Return embeddings of image files: path -> [faces, 2]."""
    arrays = {f"{network}/{gallery.file_digest(path)}": np.array(x, float).reshape(-1, 2) for path, x in faces.items()}
    np.savez(tmp_path / "faces.npz", **arrays or {f"{network}/none": np.zeros((0, 2))})
    return Embeddings.read(tmp_path / "faces.npz")


def test_micos_people_and_other_sources(images, judged, tmp_path):
    """Two people and a thing: the people's sum is 0 if one source has no face; the thing still counts."""
    replies = {QUALITY: "[10, 10]", SEMANTICS: "[10, 10]", SOURCE: "yes"}
    one = mico(images, humans=(0, 1))
    judged("mico", [one], replies)  # writes the image
    made = str(judged.folder / "images" / "hoi" / "1.png")
    near, far = [1, 0], [math.cos(1.3), math.sin(1.3)]  # cosine 0.27: a weight of 0.5
    cases = [
        ({images[0]: near, images[1]: far, made: near}, (1 + 0.5 + 1) / 3),
        ({images[0]: near, images[1]: [], made: near}, 1 / 3),
        ({images[0]: near, images[1]: far, made: []}, 1 / 3),
    ]
    for faces, weight in cases:
        found = judged("mico", [one], replies, faces=embeddings(tmp_path, faces))
        assert [both(told, "HOI") for told in found] == [(100 * weight, 100 * weight)] * 2


def test_mico_without_faces(images, judged):
    """Without its first step, the official script weighs every case with 1; here, cases with people are failures."""
    items = [mico(images, "1", humans=(0,)), mico(images, "2", "object_centric")]
    strict, compat = judged("mico", items, {QUALITY: "[10, 10]", SEMANTICS: "[10, 10]", SOURCE: "no"})
    assert both(strict, "HOI") == (None, 100) and both(strict, "Object") == (0, 100)
    assert both(compat, "HOI")[1] == 100 and both(compat, "Object")[1] == 100 and compat["complete"]
    assert strict["metrics"]["weight"]["failed"] == 1


# ---------------------------------------------------------------------------------------------------- DreamBench++


def plus(images, key, kind="object", prompt_kind="photorealistic"):
    refs = {"style_refs" if kind == "style" else "content_refs": (images[0],)}
    meta = {"subject": "mug", "prompt_kind": prompt_kind}
    return EvalItem(f"{kind}/{key}", "dreambenchpp", kind, f"a mug {key}.", **refs, meta=meta)


CP, PLUS_PF = "of the first does", "How well does the image"


def test_dreambenchpp_multiplies_means(images, judged):
    items = [
        plus(images, "1"),
        plus(images, "2", "style", "imaginative"),
        plus(images, "3", prompt_kind="style transfer"),
    ]
    replies = {"a mug 1.": score(4), "a mug 2.": score(0), "a mug 3.": score(3), CP: score(2)}
    for told in judged("dreambenchpp", items, replies, ["scales"]):
        assert both(told, "PF photorealistic") == (1, 1) and both(told, "PF style transfer") == (0.75, 0.75)
        assert both(told, "PF imaginative") == (0, 0)
        assert both(told, "PF") == (7 / 12, 7 / 12) and both(told, "CP") == (0.5, 0.5)
        assert both(told, "CP x PF") == (7 / 24, 7 / 24)
        assert told["table"]["CP x PF"]["low"] < told["table"]["CP x PF"]["value"] < told["table"]["CP x PF"]["high"]


def test_dreambenchpps_product_is_not_the_mean_of_products(images, judged):
    items = [plus(images, "1"), plus(images, "2", "style")]
    replies = {"a mug 1.": score(4), "a mug 2.": score(0), "subject of the first": score(4), "style of the": score(0)}
    told, _ = judged("dreambenchpp", items, replies, ["scales"])
    assert both(told, "CP x PF") == (0.25, 0.25)  # the mean of products is 0.5


DREAMBENCHPP = {  # ratings of CP by round for two items -> strict, official
    "halves": ((score(3.5), score(3.5)), 0.875, 0.875),
    "rounds": (((score(0), score(2), score(4)), score(4)), 0.75, 0.75),
    # Round means 0.5, 1, 1 of what was rated; the mean of the items' means would be 0.75.
    "a rating is missing": (((score(0), "-", "-"), score(4)), None, (0.5 + 1 + 1) / 3),
    "beyond the range": ((score(8), score(4)), None, 1.5),
}


@pytest.mark.parametrize("case", DREAMBENCHPP)
def test_dreambenchpp_averages_each_round(case, images, judged):
    (first, second), strict, official = DREAMBENCHPP[case]
    items = [plus(images, "1"), plus(images, "2", "style")]
    replies = {"a mug": score(4), "subject of the first": first, "style of the first": second}
    found = judged("dreambenchpp", items, replies, ["scales"])
    assert [both(told, "CP") for told in found] == [(1.0 if strict is None else strict, official)] * 2
    assert found[0]["metrics"]["scales"]["failed"] == (strict is None) and found[1]["complete"]


# ---------------------------------------------------------------------------------------------------- MultiID-Bench


NEAR, FAR = [1.0, 0.0], [math.cos(1.0), math.sin(1.0)]  # an angle of 1
FACES = {  # faces of image, target and two references -> figures of every network but arcface; those of arcface
    "clean": ([NEAR], [FAR], [NEAR], {"sim_gt": math.cos(1), "sim_ref": 1, "copy_paste": 1}, None),
    "more faces than people": (
        [NEAR, FAR], [NEAR], [NEAR], {"sim_gt": 1, "sim_ref": 1}, None,
    ),
    "no face in the target": ([NEAR], [], [FAR], {"sim_ref": math.cos(1)}, None),
    "no face in a reference": (
        [NEAR], [NEAR], [FAR, None], {"sim_gt": 1, "sim_ref": math.cos(1), "copy_paste": -1}, {"sim_gt": 1},
    ),
    "no face in the image": ([], [NEAR], [NEAR], {}, None),
    "two people": (
        [NEAR, FAR], [NEAR, FAR], [FAR, NEAR],
        {"sim_gt": 1, "sim_ref": 1, "copy_paste": 0, "blending": math.cos(1)}, None,
    ),
    "one face for two people": (
        [NEAR], [NEAR, FAR], [FAR, NEAR], {"sim_gt": 1, "sim_ref": 1, "blending": math.cos(1)}, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FACES)
def test_multiids_faces(case, images, tmp_path):
    made, target, references, others, arcface = FACES[case]
    count = max(len(references), 1)
    arrays, files = {}, [images[4], images[3], *images[:count]]
    for network in ("arcface", "facenet"):
        for path, faces in zip(files, (made, target, *([r] if r else [] for r in references)), strict=True):
            arrays[f"{network}/{gallery.file_digest(path)}"] = np.array(faces, float).reshape(-1, 2)
    np.savez(tmp_path / "faces.npz", **arrays)
    metric = next(one for one in by_name("multiid").metrics if one.name == "faces")
    one = EvalItem("k", "multiid", "p1", content_refs=tuple(images[:count]), target=images[3])
    tools = Tools(faces=Embeddings.read(tmp_path / "faces.npz"))
    sample = gallery.Sample(one, 0, pathlib.Path(images[4]), "0")
    (got,) = base.make_measure(metric, tools)([sample])
    wanted = {f"{n}_facenet": v for n, v in others.items()}
    wanted |= {f"{n}_arcface": v for n, v in (others if arcface is None else arcface).items()}
    assert (got if wanted else {}) == pytest.approx(wanted) and isinstance(got, Skipped) == (not wanted)


def test_multiid_drops_images_without_a_comparable_face_in_compat():
    found = by_name("multiid")
    items = [EvalItem(str(number), "multiid", "p1") for number in range(3)]
    scores = scoring.Scores()
    scores.figures = {(str(n), 0): {"clip_t": x, "sim_ref_arcface": 0.5} for n, x in ((0, 0.3), (1, 0.2))}
    scores.figures["2", 0] = {"clip_t": 0.7, "sim_gt_arcface": 0.1}
    values = [
        {
            name: cell["value"]
            for name, cell in summary.table(found.columns, summary.rows(found, items, scores, c)).items()
        }
        for c in (False, True)
    ]
    assert values[0] == pytest.approx({"CLIP-T": 0.4, "Sim(Ref)": 0.5, "Sim(GT)": 0.1})
    assert values[1] == pytest.approx({"CLIP-T": 0.25, "Sim(Ref)": 0.5})


def test_embeddings_of_other_networks_are_refused(images, tmp_path):
    given = embeddings(tmp_path, {images[0]: NEAR}, "sface")
    for name, metric in (("multiid", "faces"), ("mico", "weight")):
        chosen = next(one for one in by_name(name).metrics if one.name == metric)
        with pytest.raises(InputError, match="arcface/SHA256"):
            base.make_measure(chosen, Tools(vlm=CachedJudge(tmp_path / "j.jsonl", Canned({})), faces=given))


def test_multiids_lists_are_read_as_the_official_tool_writes_them(tmp_path):
    for name in (
        "p1/untar/0001",
        "p1/untar/0001_1",
        "p3/num_3/0002",
        "p3/refs/person_1/0002_1",
        "p3/refs/person_2/0002_2",
    ):
        path = tmp_path / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    one = {"prompt": "a man", "image_paths": ["0001_1.jpg"], "ori_img_path": "0001.jpg"}
    refs = ["refs/person_1/0002_1.jpg", "refs/person_2/0002_2.jpg"]
    several = {
        "prompt": "three",
        "image_paths": refs,
        "ori_img_path": "num_3/0002.jpg",
        "name": ["person_1", "person_2"],
    }
    (tmp_path / "p1.json").write_text(json.dumps([one]))
    (tmp_path / "p3.json").write_text(json.dumps([several]))
    first, second = by_name("multiid").items(tmp_path, {"subsets": "p1,p3"})
    assert first.key == "p1/0000" and first.target == str(tmp_path / "p1/untar/0001.jpg")
    assert second.key == "p3/0000" and second.content_refs == tuple(str(tmp_path / "p3" / path) for path in refs)
    (tmp_path / "p1/untar/0001.jpg").unlink()
    with pytest.raises(InputError, match=r"0001\.jpg' does not exist"):
        by_name("multiid").items(tmp_path, {})


# ---------------------------------------------------------------------------------------------------- LPIPS


@pytest.mark.parametrize(("side", "network"), [(34, "alexnet"), (15, "vgg16")])
def test_lpips_refuses_what_its_network_cannot_see(side, network, tmp_path):
    Image.new("RGB", (side, 64)).save(tmp_path / "k.png")
    measure = object.__new__(similarity.Distance)
    measure.metric = Metric("lpips", "lpips", against="target", options={"network": network})
    measure.gram, measure.smallest = False, lpips.SMALLEST[network]
    one = EvalItem("k", "triplets", target=str(tmp_path / "k.png"))
    (got,) = measure([gallery.Sample(one, 0, tmp_path / "k.png", "0")])
    assert isinstance(got, Failed) and f"at least {side + 1} pixels" in got.reason
