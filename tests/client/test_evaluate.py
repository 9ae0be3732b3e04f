"""``saccade evaluate``: this machine and a server, gone on with, side by side, on scenes."""

import io
import json
import re
import shutil
import signal
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from export.demo.datasets import write_datasets
from service.cli import app
from service.errors import BadSettings, ServiceError, StartError
from service.evaluate.categories import Category, match_labels
from service.evaluate.datasets import open_dataset
from service.evaluate.running import _speed
from service.evaluate.scorers import Scorer
from service.evaluate.semantic import MeanIou
from service.predict.command import answer_to
from tests.conftest import SACCADE, Server

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

COUNT = 4
Row = dict[str, Any]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out scenes in every layout."""
    folder = tmp_path_factory.mktemp("scenes")
    write_datasets(folder, COUNT)
    return folder


def evaluate(*arguments: str | Path) -> tuple[Row, str]:
    """The JSON and what is said beside it; raises what the command ends with."""
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return json.loads(result.stdout), result.stderr


def scores_of(document: Row) -> Row:
    """All but how fast it was, and by whom it was answered."""
    return {name: value for name, value in document.items() if name not in ("speed", "by")}


@pytest.mark.parametrize(
    ("model", "data"),
    [
        ("vit-scenes", "folder:{}/by-class"),
        ("detr-scenes", "coco:{}"),
        pytest.param("mask2former-scenes", "coco:{}", marks=pytest.mark.slow),
        ("mask2former-scenes", "coco-panoptic:{}"),
        pytest.param("mask2former-scenes", "ade20k:{}/ade20k", marks=pytest.mark.slow),
    ],
)
def test_a_server_and_this_machine_give_identical_scores(
    demo_server: Server, scenes: Path, model: str, data: str
) -> None:
    asked = (model, "--data", data.format(scenes))
    here, _ = evaluate(*asked)
    there, _ = evaluate(*asked, "--url", demo_server.url)
    assert scores_of(here) == scores_of(there)
    assert here["pictures"] == COUNT
    assert {"decode", "preprocess", "infer", "postprocess", "total"} <= here["speed"][
        "stages_s"
    ].keys()


def test_every_kind_of_data_has_the_columns_of_its_papers(scenes: Path) -> None:
    few = ("--limit", "2")
    found, said = evaluate("vit-scenes", "--data", f"folder:{scenes}/by-class", *few)
    assert 0 <= found["top-1"] <= found["top-5"] <= 1
    assert "| top-1 |" in said
    found, said = evaluate("mask2former-scenes", "--data", f"coco:{scenes}", *few)
    assert found["AP"] == found["segm"]["AP"]
    assert len(found["segm"]) == len(found["bbox"]) == 12
    assert found["bbox"]["AP"] > 0.2
    assert "| mask AP |" in said
    found, said = evaluate("mask2former-scenes", "--data", f"coco-panoptic:{scenes}", *few)
    assert {f"{name}{part}" for name in ("PQ", "SQ", "RQ") for part in ("", "_th", "_st")} <= set(
        found
    )
    assert found["PQ_st"] > 0.5
    found, said = evaluate("mask2former-scenes", "--data", f"ade20k:{scenes}/ade20k", *few)
    assert found["mIoU"] > 0.5
    assert found["per_class"]["8"]["name"] == "sky"


def test_a_refused_picture_counts_as_wrong_and_is_named(scenes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "by-class"
    shutil.copytree(scenes / "by-class", folder)
    before, _ = evaluate("vit-scenes", "--data", f"folder:{folder}")
    broken = next(iter(sorted(folder.rglob("*.jpg"))))
    broken.write_bytes(b"no picture")
    after, _ = evaluate("vit-scenes", "--data", f"folder:{folder}")
    assert after["refused"] == 1
    assert broken.name in after["remarks"][0]
    (refusal,) = after["refusals"]
    assert Path(refusal["file"]).name == broken.name
    assert after["speed"]["pictures"] == COUNT - 1  # a refusal is no answer, and is quick
    assert after["top-5"] == pytest.approx(before["top-5"] - 1 / COUNT)


def test_a_picture_of_another_size_than_its_truth_counts_as_nothing_found(
    scenes: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(scenes, folder)
    Image.new("RGB", (50, 50)).save(folder / "val" / "000000000000.jpg")
    found, _ = evaluate("mask2former-scenes", "--data", f"coco-panoptic:{folder}")
    assert found["refused"] == 1
    assert "the picture is 50x50, its truth" in found["remarks"][0]
    assert found["refusals"][0]["file"] == "000000000000.jpg"


def test_a_run_goes_on_where_another_was_killed(tmp_path: Path) -> None:
    count, scenes = 12, tmp_path / "scenes"  # so many that the kill comes before the last
    write_datasets(scenes, count)
    out, journal = tmp_path / "results.json", tmp_path / "results.jsonl"
    asked = ["evaluate", "mask2former-scenes", "--data", f"coco-panoptic:{scenes}"]
    whole, _ = evaluate(*asked[1:])
    with subprocess.Popen([str(SACCADE), *asked, "--out", str(out)]) as killed:
        end_s = time.monotonic() + 60
        while time.monotonic() < end_s and (not journal.exists() or not journal.stat().st_size):
            time.sleep(0.005)
        killed.send_signal(signal.SIGKILL)
    before = journal.read_bytes().count(b"\n")
    assert 1 <= before < count
    result = CliRunner().invoke(app, [*asked, "--out", str(out)])
    assert f"{before} of {count} pictures were answered before" in result.stderr
    assert scores_of(json.loads(out.read_text())) == scores_of(whole)


def test_a_larger_limit_adds_to_the_pictures_of_a_smaller(scenes: Path, tmp_path: Path) -> None:
    asked = [
        "evaluate",
        "vit-scenes",
        "--data",
        f"folder:{scenes}/by-class",
        "--out",
        str(tmp_path),
    ]
    CliRunner().invoke(app, [*asked, "--limit", "2"])
    result = CliRunner().invoke(app, [*asked, "--limit", "4"])
    assert "2 of 4 pictures were answered before" in result.stderr
    found = json.loads((tmp_path / "evaluation.json").read_text())
    alone, _ = evaluate("vit-scenes", "--data", f"folder:{scenes}/by-class", "--limit", "4")
    assert scores_of(found) == scores_of(alone)


def test_answers_of_another_precision_are_not_mixed_in(scenes: Path, tmp_path: Path) -> None:
    asked = ("vit-scenes", "--data", f"folder:{scenes}/by-class", "--out", tmp_path, "--limit", "2")
    CliRunner().invoke(app, ["evaluate", *map(str, asked)])
    with pytest.raises(BadSettings, match="start afresh with --overwrite"):
        evaluate(*asked, "--precision", "fp32")
    again = ["evaluate", *map(str, asked), "--precision", "fp32", "--overwrite"]
    assert CliRunner().invoke(app, again).exception is None
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["model"]["precision"] == "fp32"


def test_a_model_that_changed_adds_nothing_to_the_answers_of_the_old(
    scenes: Path, tmp_path: Path
) -> None:
    asked = ("vit-scenes", "--data", f"folder:{scenes}/by-class", "--out", tmp_path)
    CliRunner().invoke(app, ["evaluate", *map(str, asked), "--limit", "2"])
    journal = tmp_path / "evaluation.jsonl"
    journal.write_text(journal.read_text().replace('"version":"1"', '"version":"0"'))
    before = journal.read_bytes()
    with pytest.raises(StartError, match=r"holds answers of vit-scenes 0 .*, and now vit-scenes 1"):
        evaluate(*asked, "--limit", "4")
    assert journal.read_bytes() == before


def test_what_this_machine_would_do_is_no_option_beside_a_server(scenes: Path) -> None:
    asked = ("vit-scenes", "--data", f"folder:{scenes}/by-class")
    url = ("--url", "http://127.0.0.1:9")
    for flag, value in (("--precision", "fp32"), ("--runtime", "openvino"), ("--device", "cpu")):
        with pytest.raises(BadSettings, match=f"{flag} says how this machine answers, and --url"):
            evaluate(*asked, *url, flag, value)
    for against in ("precision=fp32", "swin-scenes,runtime=openvino"):
        with pytest.raises(BadSettings, match="says how this machine answers, and http://127"):
            evaluate(*asked, *url, "--against", against)
    with pytest.raises(BadSettings, match="device says how this machine answers, and http://b"):
        evaluate(*asked, "--against", "url=http://b,device=cpu")


def test_options_without_which_nothing_could_be_scored_are_refused(scenes: Path) -> None:
    for model, data, option, need in (
        ("vit-scenes", "folder:{}/by-class", "top_k=1", "top_k=5"),
        ("mask2former-scenes", "coco:{}", "mode=semantic", "mode=instance"),
        ("mask2former-scenes", "coco:{}", "mask_format=polygon", "mask_format=rle"),
        ("mask2former-scenes", "coco-panoptic:{}", "segment_map=false", "segment_map=true"),
        ("mask2former-scenes", "ade20k:{}/ade20k", "mode=panoptic", "mode=semantic"),
    ):
        with pytest.raises(BadSettings, match=f"--option {option}: .* is scored with {need}"):
            evaluate(model, "--data", data.format(scenes), "--option", option)
    with pytest.raises(BadSettings, match="write the model's name itself"):
        evaluate("vit-scenes", "--data", f"folder:{scenes}/by-class", "--option", "model=x")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--maps", "{}"), "--maps is about --from-predictions"),
        (("--iou-type", "bbox"), "--iou-type is about --from-predictions"),
        (("--truth-maps", "{}"), "--truth-maps is for coco-panoptic data"),
        (("--from-predictions", "{}", "--limit", "2"), "--limit is about asking a model"),
        (("--from-predictions", "{}", "--match", "id"), "--match is about asking"),
        (("--from-predictions", "{}", "--task", "detect"), "--task is about asking"),
        (("--from-predictions", "{}", "--option", "a=b"), "--option is about asking"),
        (("--from-predictions", "{}", "--url", "http://a"), "--url is about asking"),
        (("--from-predictions", "{}", "--precision", "fp32"), "--precision is about asking"),
        (("--from-predictions", "{}", "--concurrency", "2"), "--concurrency is about asking"),
        (("--from-predictions", "{}", "--overwrite"), "--overwrite is about asking"),
        (("--from-predictions", "{}", "--maps", "{}"), "--maps and --truth-maps are for coco-pan"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    scenes: Path, options: tuple[str, ...], sentence: str
) -> None:
    given = (one.format(scenes) for one in options)
    with pytest.raises(BadSettings, match=sentence):
        evaluate("--data", f"coco:{scenes}", *given)


class Links(HTMLParser):
    """Everything that a page would load, and its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        assert not any(name.startswith("on") for name, _ in attrs)


def test_two_precisions_are_compared_in_one_command(scenes: Path, tmp_path: Path) -> None:
    asked = ["evaluate", "detr-scenes", "--data", f"coco:{scenes}", "--precision", "fp32"]
    asked += ["--against", "precision=bf16", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, asked)
    assert result.exception is None
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert [found[one]["model"]["precision"] for one in ("first", "second")] == ["fp32", "bf16"]
    change = found["differences"]["box AP"]
    assert change["difference"] == pytest.approx(found["second"]["AP"] - found["first"]["AP"])
    assert change["interval"][0] <= change["difference"] <= change["interval"][1]
    assert found["differing"]["share"] == found["differing"]["pictures"] / COUNT
    assert found["speed_ratio"] == pytest.approx(
        found["second"]["speed"]["images_per_s"] / found["first"]["speed"]["images_per_s"], abs=1e-3
    )
    assert re.search(
        r"\*\*box AP [+-]\d+\.\d+ points\*\* \(95 % interval .*\); the two differ on "
        r"\*\*[\d.]+%\*\* of the pictures .* \*\*[\d.]+ times\*\* as many",
        result.stdout,
    )
    assert (tmp_path / "evaluation.md").read_text() == result.stdout


def test_a_detector_and_a_segmenter_are_compared_by_their_boxes(
    scenes: Path, tmp_path: Path
) -> None:
    for first, second in (("detr", "mask2former"), ("mask2former", "detr")):
        asked = ["evaluate", f"{first}-scenes", "--data", f"coco:{scenes}", "--limit", "2"]
        asked += ["--against", f"{second}-scenes", "--out", str(tmp_path / first)]
        result = CliRunner().invoke(app, asked)
        assert result.exception is None
        found = json.loads((tmp_path / first / "evaluation.json").read_text())
        assert len(found["differences"]) == 12
        assert all(name.startswith("box ") for name in found["differences"])
        assert found["differences"]["box AP"]["difference"] == pytest.approx(
            found["second"]["bbox"]["AP"] - found["first"]["bbox"]["AP"]
        )
        assert "Asked: detect," in result.stdout
        assert "Asked: segment," in result.stdout
        # They see the same things, so that most boxes have a partner.
        assert all(one["amount"] < 1 for one in found["differing"]["files"])


def test_two_who_are_called_alike_have_a_column_each(
    demo_server: Server, scenes: Path, tmp_path: Path
) -> None:
    data = ("--data", f"folder:{scenes}/by-class", "--limit", "2")
    address = demo_server.url.replace("127.0.0.1", "localhost")
    other = ("--url", demo_server.url, "--against", f"url={address}")
    found, said = evaluate("vit-scenes", *data, *other)
    assert (found["first"]["by"], found["second"]["by"]) == (
        {"url": demo_server.url},
        {"url": address},
    )
    (heads,) = (line for line in said.splitlines() if line.startswith("| mean ms of a stage"))
    assert f"at {demo_server.url} |" in heads
    assert f"at {address} |" in heads
    (rate,) = (line for line in said.splitlines() if line.startswith("| pictures/s"))
    assert rate.count("|") == heads.count("|") == 4
    found, said = evaluate("vit-scenes", *data, "--against", "vit-scenes")
    assert ", first | vit-scenes" in said
    assert found["first"]["by"]["repository"]


def test_the_page_shows_what_two_models_differ_on_and_loads_nothing(
    scenes: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "data" / "star" / '<img src=x onerror=alert(1)>&".jpg'
    odd.parent.mkdir(parents=True)
    shutil.copy(next((scenes / "val").glob("*.jpg")), odd)
    shutil.copy(odd, odd.with_name("same.jpg"))
    asked = ["evaluate", "vit-scenes", "--data", f"folder:{tmp_path / 'data'}"]
    asked += ["--against", "vit-scenes", "--out", str(tmp_path / "o")]
    assert CliRunner().invoke(app, asked).exception is None
    journal = tmp_path / "o" / "evaluation.2.jsonl"
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    rows[0]["predictions"].reverse()  # as if the second saw something else in it
    journal.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert CliRunner().invoke(app, asked).exception is None
    found = json.loads((tmp_path / "o" / "evaluation.json").read_text())
    names = [one["file"] for one in found["differing"]["files"]]
    assert names == [f"star/{odd.name}"]
    page = (tmp_path / "o" / "evaluation.html").read_text()
    links = Links()
    links.feed(page)
    assert all(one.startswith("data:image/jpeg;base64,") for one in links.loads)
    assert links.tags.count("img") == 3  # truth and both answers
    assert "script" not in links.tags
    assert "default-src &#x27;none&#x27;; img-src data:" in page
    assert "&lt;img src=x onerror=alert(1)&gt;&amp;&quot;.jpg" in page
    assert found["differing"]["share"] == 0.5


def test_a_model_does_not_differ_from_itself(scenes: Path) -> None:
    for model, data in (("mask2former-scenes", "coco-panoptic"), ("detr-scenes", "coco")):
        found, said = evaluate(
            *(model, "--data", f"{data}:{scenes}", "--limit", "2", "--against", model)
        )
        assert found["differing"]["pictures"] == 0
        assert {row["difference"] for row in found["differences"].values()} == {0}
        assert "no difference is shown" in said


def test_what_predict_writes_has_the_score_that_evaluate_says(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    asked = ["predict", str(scenes / "val"), "--task", "segment", "--model", "mask2former-scenes"]
    asked += ["--concurrency", "1", "--out", str(out)]
    assert CliRunner().invoke(app, asked).exception is None
    truth = scenes / "annotations" / "panoptic_val.json"
    found, _ = evaluate("--from-predictions", out, "--data", f"coco-panoptic:{truth}")
    asked_for, _ = evaluate("mask2former-scenes", "--data", f"coco-panoptic:{scenes}")
    for name in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st", "per_class", "intervals"):
        assert found[name] == asked_for[name]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("resnet", "--data", "folder:{}/by-class"), "resnet"),
        (
            ("detr-scenes", "--data", "folder:{}/by-class"),
            "can detect, attention; folder data asks",
        ),
        (("vit-scenes", "--data", "folder:{}/nowhere"), "there is no .*nowhere"),
        (("vit-scenes", "--data", "folder:{}"), "no label of the model"),
        (("vit-scenes", "--data", "coco:{}", "--task", "classify"), "coco data asks for detect or"),
        (("vit-scenes", "--data", "folder:{}/by-class", "--precision", "int4"), "precision"),
        (
            ("vit-scenes", "--data", "folder:{}/by-class", "--against", "colour=red"),
            "--against takes a model, or what is other as",
        ),
        (
            ("vit-scenes", "--data", "folder:{}/by-class", "--url", "http://127.0.0.1:9"),
            "no answer from the server",
        ),
        (
            ("vit-scenes", "--from-predictions", "{}", "--data", "coco:{}"),
            "scores a file instead of a model; leave out NAME",
        ),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(
    scenes: Path, arguments: tuple[str, ...], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.evaluate.command.MANIFEST_TIMEOUT_S", 0.5)
    with pytest.raises(ServiceError, match=sentence):
        evaluate(*(one.format(scenes) for one in arguments))


# Data as it comes.


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path, "JPEG")
    return path


def test_imagenet_is_read_from_folders_of_synsets(tmp_path: Path) -> None:
    for synset, name in (("n01440764", "a"), ("n02123045", "b"), ("n01440764", "c")):
        picture(tmp_path / "val" / synset / f"{name}.JPEG")
    data = open_dataset(f"imagenet:{tmp_path}", labels=2)
    assert data.truth == {"n01440764/a.JPEG": 0, "n02123045/b.JPEG": 1, "n01440764/c.JPEG": 0}
    assert data.match == "id"
    with pytest.raises(BadSettings, match="2 of the 1000 classes that the model knows; put all"):
        open_dataset(f"imagenet:{tmp_path}", labels=1000)
    (tmp_path / "synsets.txt").write_text("n00000001 first\nn01440764 tench\nn02123045 tabby\n")
    data = open_dataset(f"imagenet:{tmp_path}", labels=1000)
    assert data.truth["n02123045/b.JPEG"] == 2


def test_imagenet_is_read_as_it_is_downloaded(tmp_path: Path) -> None:
    folder = tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    for number in (1, 2):
        picture(folder / f"ILSVRC2012_val_{number:08}.JPEG")
    (tmp_path / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\nILSVRC2012_val_00000002,n01440764 1 2 3 4 n01440764 5 6 7 8\n"
        "ILSVRC2012_val_00000001,n02123045 1 2 3 4\n"
    )
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01440764 tench\nn02123045 tabby, cat\n")
    data = open_dataset(f"imagenet:{tmp_path}", labels=2)
    assert data.truth == {"ILSVRC2012_val_00000001.JPEG": 1, "ILSVRC2012_val_00000002.JPEG": 0}
    assert all(source.path.is_file() for source in data.sources)


def test_coco_is_read_as_it_is_unpacked(scenes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "coco"
    shutil.copytree(scenes / "annotations", folder / "annotations")
    shutil.copytree(scenes / "val", folder / "images" / "val")
    assert len(open_dataset(f"coco:{folder}").sources) == COUNT
    shutil.copy(folder / "annotations" / "instances_val.json", folder / "mine.json")
    (folder / "images" / "val").rename(folder / "mine")
    assert len(open_dataset(f"coco:{folder / 'mine.json'}").sources) == COUNT
    shutil.rmtree(folder / "mine")
    with pytest.raises(BadSettings, match=r"000000000000\.jpg is in none of"):
        open_dataset(f"coco:{folder}")
    (folder / "annotations" / "instances_val.json").unlink()
    with pytest.raises(BadSettings, match="must hold one instances_"):
        open_dataset(f"coco:{folder}")


def test_labels_are_matched_by_name_however_they_are_written() -> None:
    labels = [{"id": 3, "name": "traffic light"}, {"id": 5, "name": "tabby, tabby cat"}]
    labels += [{"id": 6, "name": "N/A"}]
    categories = [Category(10, "Traffic_Light"), Category(11, "tabby"), Category(12, "dog")]
    found = match_labels(labels, categories, "name")
    assert found.category_ids == {3: 10, 5: 11}
    assert found.unknown == ["dog"]
    assert match_labels(labels, [Category(5, "x")], "id").category_ids == {5: 5}
    with pytest.raises(BadSettings, match="--match id compares them by id"):
        match_labels(labels, [Category(1, "zebra")], "name")


def test_an_unfinished_run_says_where_its_answers_are(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saccade_client import Unreachable

    left = 0

    async def answer(*arguments: Any) -> Row:
        nonlocal left
        left -= 1
        if left < 0:
            raise Unreachable("no answer from the server")
        return await answer_to(*arguments)

    monkeypatch.setattr("service.evaluate.running.answer_to", answer)
    asked = ("vit-scenes", "--data", f"folder:{scenes}/by-class", "--out", tmp_path)
    with pytest.raises(StartError, match=r"no answer from the server$"):  # and there are none
        evaluate(*asked)
    left = 1
    with pytest.raises(StartError, match=r"no answer from the server; answers so far are kept in"):
        evaluate(*asked)


# Truth that is wrong, which shows before anything is asked.


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a model is opened")

    monkeypatch.setattr("service.evaluate.running.client_of", fail)


def test_maps_of_panoptic_truth_may_lie_elsewhere(scenes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(scenes, folder)
    asked = ("mask2former-scenes", "--data", f"coco-panoptic:{folder}", "--limit", "1")
    before, _ = evaluate(*asked)
    maps = (folder / "annotations" / "panoptic_val").rename(tmp_path / "maps")
    with pytest.raises(BadSettings, match=r"--truth-maps \(those of the data\)"):
        evaluate(*asked)
    after, _ = evaluate(*asked, "--truth-maps", maps)
    assert after["PQ"] == before["PQ"]


@pytest.mark.usefixtures("unasked")
def test_panoptic_truth_that_cannot_be_is_refused_before_anything_is_asked(
    scenes: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(scenes, folder)
    asked = ("mask2former-scenes", "--data", f"coco-panoptic:{folder}")
    (folder / "annotations" / "panoptic_val" / "000000000002.png").unlink()
    with pytest.raises(BadSettings, match=r"lacks 1 of 4 maps of the data, like 000000000002\.png"):
        evaluate(*asked)
    file = folder / "annotations" / "panoptic_val.json"
    document = json.loads(file.read_text())
    document["annotations"][0]["segments_info"][0]["category_id"] = 77
    file.write_text(json.dumps(document))
    with pytest.raises(BadSettings, match="there is no class with the id 77"):
        evaluate(*asked)


@pytest.mark.usefixtures("unasked")
def test_semantic_truth_that_cannot_be_is_refused_before_anything_is_asked(
    scenes: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "ade20k"
    shutil.copytree(scenes / "ade20k", folder)
    asked = ("mask2former-scenes", "--data", f"ade20k:{folder}")
    truth = folder / "annotations" / "validation" / "000000000001.png"
    Image.new("L", (8, 8), 200).save(truth)
    with pytest.raises(BadSettings, match=r"000000000001\.png has the class 200, and the data has"):
        evaluate(*asked)
    Image.new("RGB", (8, 8)).save(truth)
    with pytest.raises(BadSettings, match="is a picture in colour"):
        evaluate(*asked)
    truth.write_bytes(b"no")
    with pytest.raises(BadSettings, match=r"cannot read the map .*000000000001\.png"):
        evaluate(*asked)
    truth.unlink()
    with pytest.raises(BadSettings, match=r"cannot read the map .*000000000001\.png: No such file"):
        evaluate(*asked)


def test_what_is_ignored_in_semantic_truth_does_not_count(scenes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ade20k"
    shutil.copytree(scenes / "ade20k", folder)
    asked = ("mask2former-scenes", "--data", f"ade20k:{folder}", "--limit", "1")
    found = []
    for value in (0, 255):
        for file in (folder / "annotations" / "validation").iterdir():
            with Image.open(scenes / "ade20k" / "annotations" / "validation" / file.name) as png:
                pixels = np.array(png)
            pixels[: len(pixels) // 2] = value
            Image.fromarray(pixels).save(file)
        found.append(evaluate(*asked)[0])
    assert scores_of(found[0]) == scores_of(found[1])
    (folder / "objectInfo150.txt").unlink()  # then there are all 150, whatever the model knows
    bare, _ = evaluate(*asked)
    assert (bare["mIoU"], len(bare["per_class"])) == (found[0]["mIoU"], 150)


def test_annotations_without_a_mask_are_told_of(scenes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(scenes, folder)
    file = folder / "annotations" / "instances_val.json"
    document = json.loads(file.read_text())
    del document["annotations"][0]["segmentation"]
    file.write_text(json.dumps(document))
    found, said = evaluate("mask2former-scenes", "--data", f"coco:{folder}", "--limit", "1")
    assert "segm" not in found
    assert re.search(r"1 of \d+ annotations have no mask, so that boxes alone are scored", said)


# How fast it was, and the score so far.


def test_speed_is_that_of_answers_while_any_was_under_way() -> None:
    def row(asked_at: float, seconds: float, concurrency: int) -> Row:
        timing = {"server_timing": "infer;dur=5"}
        return {"asked_at": asked_at, "seconds": seconds, "concurrency": concurrency} | timing

    alone = [row(100, 0.5, 1), row(101, 0.5, 1)]  # a second in all, whatever lies between
    assert _speed(1, alone)["images_per_s"] == 2
    together = [row(200, 0.5, 4), row(200, 1.0, 4), row(200.5, 0.5, 4), row(900, 1.0, 4)]
    found = _speed(1, [*alone, *together])  # of another run, and more
    assert (found["concurrency"], found["pictures"], found["images_per_s"]) == (4, 4, 2)
    assert found["latency_s"]["mean"] == 0.75
    assert _speed(1, [])["images_per_s"] == 0


def test_the_score_so_far_holds_what_an_earlier_run_has_answered(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["evaluate", "vit-scenes", "--data", f"folder:{scenes}/by-class"]
    asked += ["--out", str(tmp_path)]
    assert CliRunner().invoke(app, [*asked, "--limit", "3"]).exception is None
    journal = tmp_path / "evaluation.jsonl"
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    for row in rows:  # as if nothing had been seen in them
        row["predictions"] = []
    journal.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown: list[Scorer] = []
    monkeypatch.setattr("service.evaluate.running._so_far", shown.append)
    terminal = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr("service.evaluate.command.Console", lambda **_: terminal)
    assert CliRunner().invoke(app, asked).exception is None
    (scorer,) = shown  # of the one that was left
    assert (scorer.running() or 0) <= 1 / COUNT


def test_totals_are_kept_and_not_summed_anew() -> None:
    counted = MeanIou(["sky", "sea"])
    truth = np.array([[0, 1], [1, 1]])
    for found in (truth, np.zeros_like(truth)):
        counted.add(truth, found)
    assert counted.total().tolist() == np.sum(counted.pictures, axis=0).tolist()
    assert counted.figures()["mIoU"] == pytest.approx((2 / 5 + 3 / 6) / 2)
