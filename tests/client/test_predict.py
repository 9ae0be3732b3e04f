"""``saccade predict``: folders and lists, by this machine and by a server, gone on with."""

import io
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from saccade_client.masks import read_id_map
from service.cli import app
from service.errors import BadSettings, ServiceError, StartError
from service.predict.journal import Journal, read_rows
from service.predict.sources import find_sources
from tests.conftest import ROOT, SACCADE, Server

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SCENES = ROOT / "service" / "demo" / "scenes"
NAMES = sorted(path.name for path in SCENES.glob("*.jpg"))


def predict(*arguments: str | Path) -> str:
    """What the command says; raises what it ends with."""
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.stderr


def rows_of(path: Path) -> list[dict[str, Any]]:
    return list(read_rows(path))


@pytest.mark.parametrize("task", ["classify", "detect", "segment", "embed"])
def test_this_machine_and_a_server_give_the_same_answers(
    demo_server: Server, tmp_path: Path, task: str
) -> None:
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    one_at_a_time = ("--task", task, "--concurrency", "1")
    predict(SCENES, "--out", here, *one_at_a_time)
    predict(SCENES, "--out", there, *one_at_a_time, "--url", demo_server.url)
    assert [row["file"] for row in rows_of(here)] == NAMES
    assert rows_of(here) == rows_of(there)


def test_batches_change_no_answer(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone.jsonl", tmp_path / "together.jsonl"
    predict(SCENES, "--task", "detect", "--out", alone, "--concurrency", "1")
    predict(SCENES, "--task", "detect", "--out", together)
    for one, other in zip(rows_of(alone), rows_of(together), strict=True):
        assert one["file"] == other["file"]
        assert [found["label"] for found in one["predictions"]] == [
            found["label"] for found in other["predictions"]
        ]
        scores = [[found["score"] for found in row["predictions"]] for row in (one, other)]
        assert scores[0] == pytest.approx(scores[1], abs=0.02)  # bf16


def test_a_model_and_options_are_handed_on(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    predict(
        *(SCENES / "star.jpg", "--task", "classify", "--out", out),
        *("--model", "vit-scenes", "--option", "top_k=2"),
    )
    (row,) = rows_of(out)
    assert (row["model"], row["parameters"]) == (
        "vit-scenes",
        {"top_k": "2", "model": "vit-scenes"},
    )
    assert len(row["predictions"]) == 2


def test_a_run_goes_on_where_another_was_killed(tmp_path: Path) -> None:
    folder, out = tmp_path / "many", tmp_path / "out.jsonl"
    folder.mkdir()
    for number in range(60):
        shutil.copy(SCENES / NAMES[number % len(NAMES)], folder / f"{number:03}.jpg")
    arguments = ["predict", str(folder), "--task", "segment", "--out", str(out)]
    with subprocess.Popen([str(SACCADE), *arguments, "--concurrency", "1"]) as killed:
        end_s = time.monotonic() + 60
        while time.monotonic() < end_s and (not out.exists() or out.stat().st_size < 1000):
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
    before = [row["file"] for row in _whole_lines(out)]
    assert 1 <= len(before) < 60
    with out.open("ab") as file:
        file.write(b'{"file":"cut')  # what a write that was not finished looks like
    said = predict(*arguments[1:])
    assert f"{len(before)} of 60 pictures were answered before" in said
    assert [row["file"] for row in rows_of(out)] == [f"{number:03}.jpg" for number in range(60)]


def test_a_finished_run_opens_no_model(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    arguments = (SCENES, "--task", "classify", "--out", out)
    predict(*arguments)
    before = out.read_bytes()
    predict(*arguments, "--url", "http://127.0.0.1:9")  # where nobody is
    assert out.read_bytes() == before


def test_answers_to_another_question_are_not_mixed_in(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    predict(SCENES / "star.jpg", "--task", "classify", "--out", out)
    with pytest.raises(BadSettings, match="start afresh with --overwrite"):
        predict(SCENES, "--task", "detect", "--out", out)
    predict(SCENES / "star.jpg", "--task", "detect", "--out", out, "--overwrite")
    assert [row["task"] for row in rows_of(out)] == ["detect"]


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "mine.jsonl"
    out.write_text('{"precious": true}\n')
    with pytest.raises(BadSettings, match="no file of answers"):
        predict(SCENES, "--task", "classify", "--out", out)
    assert out.read_text() == '{"precious": true}\n'


def test_text_of_somebody_else_is_left_alone_whatever_it_ends_with(tmp_path: Path) -> None:
    for number, text in enumerate(["precious", '{"file":"notes.txt","text":"precious"}', "{}"]):
        out = tmp_path / f"{number}.jsonl"
        out.write_text(text)  # with no line end, like a line that a kill cut off
        with pytest.raises(BadSettings, match="no file of answers"):
            predict(SCENES, "--task", "classify", "--out", out, "--option", "top_k=0")
        assert out.read_text() == text


def test_answers_of_another_precision_or_version_are_not_mixed_in(tmp_path: Path) -> None:
    folder, out = tmp_path / "few", tmp_path / "out.jsonl"
    folder.mkdir()
    shutil.copy(SCENES / "star.jpg", folder)
    arguments = (folder, "--task", "classify", "--out", out)
    predict(*arguments, "--precision", "fp32")
    before = out.read_bytes()
    with pytest.raises(
        StartError, match=r"holds answers of \S+ 1 fp32, and now \S+ 1 bf16 answers"
    ):
        predict(*arguments, "--precision", "bf16")
    shutil.copy(SCENES / "ring.jpg", folder)
    with pytest.raises(StartError, match="start afresh with --overwrite"):
        predict(*arguments, "--precision", "bf16")
    assert out.read_bytes() == before
    out.write_bytes(before.replace(b'"version":"1"', b'"version":"0"'))
    with pytest.raises(
        StartError, match=r"holds answers of \S+ 0 fp32, and now \S+ 1 fp32 answers"
    ):
        predict(*arguments, "--precision", "fp32")
    predict(*arguments, "--precision", "fp32", "--overwrite")
    assert [row["version"] for row in rows_of(out)] == ["1", "1"]


def test_labels_that_another_version_calls_otherwise_are_not_merged(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    predict(SCENES / "star.jpg", "--task", "detect", "--out", out)
    journal = out.with_suffix(".jsonl")
    before = out.read_bytes()
    journal.write_text(journal.read_text().replace('"label":"star"', '"label":"comet"'))
    with pytest.raises(StartError, match=r"label .* is 'comet', and of another version or model"):
        predict(SCENES / "star.jpg", "--task", "detect", "--out", out)
    assert out.read_bytes() == before


def test_what_this_machine_would_do_is_no_option_beside_a_server(tmp_path: Path) -> None:
    arguments = (SCENES, "--task", "detect", "--out", tmp_path / "out.jsonl")
    for flag, value in (("--precision", "fp32"), ("--repository", str(tmp_path))):
        with pytest.raises(BadSettings, match=f"{flag} says how this machine answers, and --url"):
            predict(*arguments, "--url", "http://127.0.0.1:9", flag, value)


def test_pictures_that_cannot_be_answered_are_named_and_the_others_answered(
    tmp_path: Path, demo_server: Server
) -> None:
    (tmp_path / "broken.jpg").write_bytes((SCENES / "star.jpg").read_bytes()[:300])
    (tmp_path / "empty.png").write_bytes(b"")
    shutil.copy(SCENES / "star.jpg", tmp_path / "star.jpg")
    listed = tmp_path / "list.txt"
    listed.write_text("# pictures\nbroken.jpg\nmissing.jpg\nempty.png\n\nstar.jpg\n")
    for where in ((), ("--url", demo_server.url)):
        out = tmp_path / f"out{len(where)}.jsonl"
        with pytest.raises(StartError, match="3 of them could not be answered"):
            predict(listed, "--task", "classify", "--out", out, *where)
        rows = {row["file"]: row for row in rows_of(out)}
        codes = {name: row.get("error", {}).get("code") for name, row in rows.items()}
        assert codes == {
            "broken.jpg": "bad_image",
            "missing.jpg": "unreadable",
            "empty.png": "invalid_body",
            "star.jpg": None,
        }
        assert rows["star.jpg"]["predictions"][0]["label"] == "star"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--option", "top_k=0"), "top_k: Input should be greater than"),
        (("--model", "resnet"), "resnet"),
        (("--model", "detr-scenes"), "'detr-scenes' cannot classify; models that can: swin-scenes"),
        (("--option", "top_k"), "--option takes NAME=VALUE"),
        (("--url", "http://127.0.0.1:9"), "no answer from the server"),
        (("--url", "localhost"), "looks like http://host:8000"),
    ],
)
def test_what_would_fail_for_every_picture_ends_the_run(
    tmp_path: Path,
    arguments: tuple[str, ...],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.predict.command.PICTURE_TIMEOUT_S", 0.5)
    out = tmp_path / "out.jsonl"
    with pytest.raises(ServiceError, match=sentence) as raised:
        predict(SCENES, "--task", "classify", "--out", out, *arguments)
    assert "goes on there" not in str(raised.value), "the same command would fail again"
    assert not out.exists() or rows_of(out) == []


@pytest.mark.parametrize(
    ("name", "task", "sentence"),
    [
        ("out.csv", "detect", "must end in .jsonl"),
        ("out.json", "classify", "COCO knows no answers to classify"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_anything_runs(
    tmp_path: Path, name: str, task: str, sentence: str
) -> None:
    with pytest.raises(BadSettings, match=sentence):
        predict(SCENES, "--task", task, "--out", tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_coco_reads_the_boxes_of_a_folder(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    out = tmp_path / "boxes.json"
    predict(SCENES, "--task", "detect", "--out", out)
    data = COCO(str(out))
    images = data.loadImgs(data.getImgIds())
    assert [image["file_name"] for image in images] == NAMES
    (star,) = (image for image in images if image["file_name"] == "star.jpg")
    assert (star["width"], star["height"]) == (480, 480)
    best = data.loadAnns(data.getAnnIds(imgIds=star["id"]))[0]
    (answer,) = (row for row in rows_of(tmp_path / "boxes.jsonl") if row["file"] == "star.jpg")
    box = answer["predictions"][0]["box"]
    assert data.loadCats(best["category_id"])[0]["name"] == answer["predictions"][0]["label"]
    assert best["bbox"][2] == pytest.approx(box["xmax"] - box["xmin"])
    assert best["area"] == pytest.approx(best["bbox"][2] * best["bbox"][3], rel=1e-5)


def test_segments_become_cocos_panoptic_pngs(tmp_path: Path) -> None:
    out = tmp_path / "panoptic.json"
    predict(SCENES, "--task", "segment", "--out", out)
    document = json.loads(out.read_text())
    maps = {row["file"]: row["segment_map"] for row in rows_of(tmp_path / "panoptic.jsonl")}
    names = {image["id"]: image["file_name"] for image in document["images"]}
    categories = {category["id"]: category for category in document["categories"]}
    assert {category["isthing"] for category in categories.values()} == {0, 1}
    for annotation in document["annotations"]:
        with Image.open(tmp_path / "panoptic" / annotation["file_name"]) as png:
            pixels = np.asarray(png).astype(int) @ (1, 256, 65536)
        assert np.array_equal(pixels, read_id_map(maps[names[annotation["image_id"]]]))
        for segment in annotation["segments_info"]:
            assert (pixels == segment["id"]).sum() == segment["area"]
            assert segment["category_id"] in categories
    assert len(document["annotations"]) == len(NAMES)


def test_pngs_stay_in_their_folder_whatever_a_list_names(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(SCENES / "star.jpg", elsewhere)
    (tmp_path / "list").mkdir()
    listed = tmp_path / "list" / "list.txt"
    listed.write_text(f"../elsewhere/star.jpg\n{SCENES / 'ring.jpg'}\n")
    out = tmp_path / "here" / "panoptic.json"
    predict(listed, "--task", "segment", "--out", out)
    pngs = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    assert pngs == ["here/panoptic/000000000001.png", "here/panoptic/000000000002.png"]
    assert not (SCENES / "ring.png").exists()


def test_pictures_that_differ_in_their_suffix_alone_have_a_png_each(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    shutil.copy(SCENES / "star.jpg", folder / "same.jpg")
    with Image.open(SCENES / "ring.jpg") as ring:
        ring.save(folder / "same.png")
    predict(folder, "--task", "segment", "--out", tmp_path / "out.json")
    document = json.loads((tmp_path / "out.json").read_text())
    names = [annotation["file_name"] for annotation in document["annotations"]]
    assert names == ["000000000001.png", "000000000002.png"]
    for image, name in zip(document["images"], names, strict=True):
        with Image.open(tmp_path / "out" / name) as png:
            assert png.size == (image["width"], image["height"])


def test_instances_become_run_lengths_in_coco(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    out = tmp_path / "instances.json"
    predict(
        *(SCENES / "star.jpg", "--task", "segment", "--out", out),
        *("--option", "mode=instance", "--option", "segment_map=false"),
    )
    data = COCO(str(out))
    annotations = data.loadAnns(data.getAnnIds())
    assert len(annotations) >= 1
    for annotation in annotations:
        assert data.annToMask(annotation).sum() == annotation["area"]


@pytest.mark.parametrize("chunk_rows", [1, 10_000])
def test_parquet_has_a_row_for_each_finding_and_for_pictures_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_rows: int
) -> None:
    from pyarrow import parquet

    monkeypatch.setattr("service.predict.formats.CHUNK_ROWS", chunk_rows)
    folder = tmp_path / "pictures"
    folder.mkdir()
    shutil.copy(SCENES / "star.jpg", folder)
    grey = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(grey, "PNG")
    (folder / "grey.png").write_bytes(grey.getvalue())
    out = tmp_path / "out.parquet"
    predict(folder, "--task", "detect", "--out", out, "--option", "threshold=0.5")
    table = parquet.read_table(out).to_pylist()
    answers = {row["file"]: row for row in rows_of(tmp_path / "out.jsonl")}
    assert answers["grey.png"]["predictions"] == []
    assert [row["label"] for row in table if row["file"] == "grey.png"] == [None]
    found = [row for row in table if row["file"] == "star.jpg"]
    assert len(found) >= 1
    assert [row["xmin"] for row in found] == [
        one["box"]["xmin"] for one in answers["star.jpg"]["predictions"]
    ]


@pytest.mark.parametrize("name", ["out.json", "out.parquet"])
def test_refused_pictures_keep_no_others_from_being_converted(tmp_path: Path, name: str) -> None:
    from pyarrow import parquet

    (tmp_path / "list.txt").write_text(f"missing.jpg\n{SCENES / 'star.jpg'}\n")
    with pytest.raises(StartError, match="1 of them could not be answered"):
        predict(tmp_path / "list.txt", "--task", "detect", "--out", tmp_path / name)
    if name == "out.json":
        document = json.loads((tmp_path / name).read_text())
        assert [image["file_name"] for image in document["images"]] == [str(SCENES / "star.jpg")]
        assert {row["image_id"] for row in document["annotations"]} == {1}
    else:
        table = parquet.read_table(tmp_path / name).to_pylist()
        assert "No such file" in table[0]["error"]
        assert (table[1]["error"], table[1]["label"]) == (None, "star")


def test_ids_of_numbered_pictures_are_their_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "val2017"
    folder.mkdir()
    for name in ("000000000139.jpg", "000000000285.jpg"):
        shutil.copy(SCENES / "star.jpg", folder / name)
    predict(folder, "--task", "detect", "--out", tmp_path / "val.json")
    document = json.loads((tmp_path / "val.json").read_text())
    assert [image["id"] for image in document["images"]] == [139, 285]
    assert {row["image_id"] for row in document["annotations"]} == {139, 285}


def test_the_key_of_a_server_comes_out_of_a_file(start_server: Any, tmp_path: Path) -> None:
    keys, key = tmp_path / "keys", tmp_path / "key"
    keys.write_text("tester:a-key-of-the-test\n")
    key.write_text("a-key-of-the-test\n")
    server = start_server("--api-keys-file", str(keys))
    arguments = (SCENES, "--task", "classify", "--out", tmp_path / "out.jsonl", "--url", server.url)
    with pytest.raises(StartError, match="401 unauthorized"):
        predict(*arguments)
    with pytest.raises(BadSettings, match="must hold one key"):
        predict(*arguments, "--api-key-file", SCENES / "scenes.json")
    predict(*arguments, "--api-key-file", key)
    assert len(rows_of(tmp_path / "out.jsonl")) == len(NAMES)


def test_folders_are_searched_to_their_depth(tmp_path: Path) -> None:
    for name in ("b/x.JPG", "a/deep/y.png", "z.webp", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    names = [one.name for one in find_sources(str(tmp_path))]
    assert names == ["a/deep/y.png", "b/x.JPG", "z.webp"]


def test_linked_folders_are_searched_once_and_only_files_are_pictures(tmp_path: Path) -> None:
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    for path in (photos / "a.jpg", elsewhere / "b.jpg", photos / "folder.png" / "c.jpg"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (photos / "linked").symlink_to(elsewhere)
    (photos / "again").symlink_to(photos)
    (elsewhere / "back").symlink_to(photos)
    (photos / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(photos / "pipe.jpg")
    names = [one.name for one in find_sources(str(photos))]
    assert names == ["a.jpg", "folder.png/c.jpg", "gone.jpg", "linked/b.jpg"]


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("star.jpg\n", encoding="utf-8-sig")
    assert [one.name for one in find_sources(str(tmp_path / "list.txt"))] == ["star.jpg"]


def test_maps_among_the_pictures_are_no_pictures_of_the_next_run(tmp_path: Path) -> None:
    shutil.copy(SCENES / "star.jpg", tmp_path)
    arguments = (tmp_path, "--task", "segment", "--out", tmp_path / "coco.json")
    predict(*arguments)
    assert (tmp_path / "coco" / "star.png").is_file()
    shutil.copy(SCENES / "ring.jpg", tmp_path)
    for more in ((), ("--overwrite",), ()):
        predict(*arguments, *more)
        assert {row["file"] for row in rows_of(tmp_path / "coco.jsonl")} == {"ring.jpg", "star.jpg"}
        if more:
            (tmp_path / "coco.json").unlink()  # as if killed before it was there


def test_maps_never_overwrite_pictures(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    with Image.open(SCENES / "star.jpg") as star:
        star.save(photos / "star.png")
    before = (photos / "star.png").read_bytes()
    (tmp_path / "list.txt").write_text("photos/star.png\n")
    refused = pytest.raises(BadSettings, match=r"would put its maps into .*photos, where picture")
    for source in (photos, tmp_path, tmp_path / "list.txt"):
        arguments = (source, "--out", tmp_path / "photos.json")
        with refused:
            predict(*arguments, "--task", "segment")
        predict(*arguments, "--task", "detect", "--overwrite")  # which has no maps
        with refused:
            predict(*arguments, "--task", "segment", "--overwrite")
    assert (photos / "star.png").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("", "holds no picture"), ("a.jpg\na.jpg\n", "lists a picture twice"), (None, "cannot read")],
)
def test_a_list_of_nothing_is_refused(tmp_path: Path, text: str | None, sentence: str) -> None:
    listed = tmp_path / "list.txt"
    if text is not None:
        listed.write_text(text)
    with pytest.raises(BadSettings, match=sentence):
        find_sources(str(listed))


def test_a_journal_keeps_whole_lines_only(tmp_path: Path) -> None:
    path, about = tmp_path / "new" / "out.jsonl", {"task": "embed"}
    with Journal(path, about) as journal:
        journal.add("a.jpg", {"embedding": [1.0]})
        journal.add("b.jpg", {"error": {}})
    path.write_bytes(path.read_bytes() + b'{"file": "c.jpg", "ta')
    with Journal(path, about) as journal:
        assert (journal.done, journal.refused) == ({"a.jpg", "b.jpg"}, 1)
        journal.add("d.jpg", {"embedding": [2.0]})
    assert [row["file"] for row in read_rows(path)] == ["a.jpg", "b.jpg", "d.jpg"]


def test_one_run_at_a_time_has_a_journal(tmp_path: Path) -> None:
    path, about = tmp_path / "out.jsonl", {"task": "embed"}
    with Journal(path, about) as journal:
        journal.add("a.jpg", {"embedding": [1.0]})
        for afresh in (False, True):
            with pytest.raises(StartError, match="another run writes"):
                Journal(path, about, afresh)
        journal.add("b.jpg", {"embedding": [2.0]})
    assert [row["file"] for row in read_rows(path)] == ["a.jpg", "b.jpg"]
    with Journal(path, about) as journal:
        assert journal.done == {"a.jpg", "b.jpg"}


@pytest.mark.parametrize("length", [1, 5, 8, 12, 40])
def test_a_first_line_that_was_cut_is_begun_again(tmp_path: Path, length: int) -> None:
    path, about = tmp_path / "out.jsonl", {"task": "embed"}
    with Journal(path, about) as journal:
        journal.add("a.jpg", {"embedding": [1.0, 2.0]})
    path.write_bytes(path.read_bytes()[:length])
    with Journal(path, about) as journal:
        assert journal.done == set()
        journal.add("b.jpg", {"embedding": [2.0]})
    assert [row["file"] for row in read_rows(path)] == ["b.jpg"]


def test_a_run_that_is_refused_before_its_first_answer_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with pytest.raises(StartError), Journal(path, {"task": "embed"}):
        raise StartError("there is no such model")
    assert not path.exists()


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
