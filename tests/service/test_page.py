"""The page at /: its files over HTTP, and what people do on it in a real browser."""

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.page.routes import POLICY, STATIC
from tests.conftest import ROOT, Server
from tests.service.fake_app import FakeApp

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

SCENES = ROOT / "service" / "demo" / "scenes"
STAR = SCENES / "star.jpg"
KEY = "anna-0123456789abcdef"
LONG_MS = 30_000
FLAGS = [
    "--no-sandbox",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]

Page = Any  # playwright.sync_api.Page, which may be absent
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium from the system's packages; the tests in it skip where there is none."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
    if path is None:
        pytest.skip("needs Chromium, such as Debian's package chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any, demo_server: Server) -> Iterator[Open]:
    """Pages in contexts of their own; what the browser complains of fails the test."""
    contexts, complaints = [], []

    def open_page(url: str = demo_server.url, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        context.set_default_timeout(LONG_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text) if is_bad(line) else None)
        page.goto(url)
        page.wait_for_selector(".pane, #notice:not([hidden])")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def is_bad(line: Any) -> bool:
    """Refusals that a test provokes are told to the console by the browser itself."""
    return line.type == "error" and "Failed to load resource" not in line.text


def idle(page: Page) -> None:
    playwright.expect(page.locator(".working")).to_have_count(0, timeout=LONG_MS)


def take_sample(page: Page, name: str = "star.jpg") -> None:
    page.click(f'[data-name="{name}"]')
    page.wait_for_selector(".view:visible")
    idle(page)


def choose_task(page: Page, task: str, pane: int = 0) -> None:
    page.locator(".pane").nth(pane).locator(f'.tasks input[value="{task}"]').check(force=True)
    idle(page)


def choose_model(page: Page, name: str) -> None:
    page.locator(".model").first.select_option(name)
    idle(page)


def rows(page: Page, pane: int = 0) -> list[str]:
    texts: list[str] = (
        page.locator(".pane")
        .nth(pane)
        .locator(".result .name")
        .evaluate_all("names => names.map(name => name.firstChild.textContent)")
    )
    return texts


def slide(page: Page, value: float, let_go: bool = True) -> None:
    events = ["input", "change"] if let_go else ["input"]
    page.locator(".threshold input").first.evaluate(
        "(slider, [value, events]) => { slider.value = value; "
        "for (const name of events) slider.dispatchEvent(new Event(name)); }",
        [value, events],
    )
    idle(page)


def press(page: Page, x: float, y: float) -> None:
    """Click the picture at shares of its width and height."""
    box = page.locator(".view").first.bounding_box()
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
    idle(page)


def pixel(page: Page, x: float, y: float) -> list[int]:
    found: list[int] = page.locator(".view").first.evaluate(
        "(view, [x, y]) => [...view.getContext('2d').getImageData("
        "Math.round(x * view.width), Math.round(y * view.height), 1, 1).data]",
        [x, y],
    )
    return found[:3]


def shown_png(page: Page) -> str:
    url: str = page.locator(".view").first.evaluate("view => view.toDataURL()")
    return url


def listen(page: Page) -> list[str]:
    """The paths and queries of the requests about pictures from now on."""
    asked: list[str] = []
    page.on(
        "request",
        lambda request: (
            asked.append(request.url.split("/v1/")[1])
            if request.method == "POST" and "/v1/" in request.url
            else None
        ),
    )
    return asked


def truth(server: Server, task: str, **parameters: Any) -> dict[str, Any]:
    answer = httpx.post(f"{server.url}/v1/{task}", params=parameters, content=STAR.read_bytes())
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def test_the_page_loads_only_from_its_own_server() -> None:
    with FakeApp().client() as client:
        response = client.get("/")
        assert response.headers["content-security-policy"] == POLICY
        assert response.headers["content-type"].startswith("text/html")
        assert "unsafe" not in POLICY
        assert "https:" not in POLICY
        for path in re.findall(r'(?:src|href)="(/page/[^"]+)"', response.text):
            assert client.get(path).status_code == 200, path
        kinds = {name: client.get(f"/page/{name}").headers["content-type"] for name in names()}
        samples = client.get("/page/samples").json()["samples"]
        assert client.get(f"/page/scenes/{samples[0]}").headers["content-type"] == "image/jpeg"
    assert len(samples) == len(list(SCENES.glob("*.jpg")))
    for name, kind in kinds.items():
        expected = {"js": "javascript", "css": "text/css", "svg": "image/svg+xml"}
        assert expected[name.rsplit(".")[-1]] in kind, name
    for path in STATIC.iterdir():
        assert not re.search(
            r"""(?:src|href|from|import|url)\W{1,3}(?:https?:)?//""", path.read_text()
        )
        assert " style=" not in path.read_text() or path.suffix == ".svg"


def test_a_browser_that_has_a_file_is_told_so_under_the_same_policy() -> None:
    with FakeApp().client() as client:
        for path in ("/", "/page/page.js"):
            whole = client.get(path)
            for known in (whole.headers["etag"], f'"x", W/{whole.headers["etag"]}'):
                again = client.get(path, headers={"if-none-match": known})
                assert (again.status_code, again.content) == (304, b"")
                for name in ("etag", "cache-control", "content-security-policy"):
                    assert again.headers[name] == whole.headers[name]
            assert client.get(path, headers={"if-none-match": '"x"'}).status_code == 200


def test_head_leaves_the_connection_in_order(demo_server: Server) -> None:
    with httpx.Client(base_url=demo_server.url) as client:
        for path in ("/", "/v1/models", "/page/page.js"):
            length = client.head(path).headers["content-length"]
            assert int(length) == len(client.get(path, headers={"accept-encoding": ""}).content)


def names() -> list[str]:
    return [path.name for path in STATIC.iterdir() if path.name != "index.html"]


def test_what_is_no_file_of_the_page_is_not_served() -> None:
    with FakeApp().client() as client:
        for path in (
            "routes.py",
            "index.html",
            "../routes.py",
            "..%2froutes.py",
            "scenes/scenes.json",
            "",
        ):
            assert client.get(f"/page/{path}").status_code == 404, path


def test_the_page_opens_without_a_key_and_its_status_does_not() -> None:
    with FakeApp(api_keys=KEY).client() as client:
        for path in ("/", "/page/page.js", "/page/scenes/star.jpg", "/page/samples"):
            assert client.get(path).status_code == 200, path
        for path in ("/page/status", "/page/samples/", "/page/none.js", "/v1/models"):
            assert client.get(path).status_code == 401, path
        headers = {"authorization": f"Bearer {KEY}"}
        assert client.get("/page/status", headers=headers).status_code == 200


def test_the_status_counts_batches_and_what_waits_and_is_off_with_the_metrics() -> None:
    fake = FakeApp()
    with fake.client() as client:
        fake.metrics.queue_depth.set(3)
        fake.metrics.queue_bytes.set(1000)
        fake.metrics.batch_size.labels("tiny").observe(5)
        fake.metrics.batch_size.labels("tiny").observe(2)
        status = client.get("/page/status").json()
    assert status == {
        "ready": True,
        "queue_depth": 3,
        "queue_bytes": 1000,
        "models": {"tiny": {"batches": 2, "pictures": 7}},
    }
    with FakeApp(metrics_access="off").client() as client:
        assert client.get("/page/status").status_code == 404


def test_a_sample_is_answered_with_boxes_drawn_over_it(
    open_page: Open, demo_server: Server
) -> None:
    found = truth(demo_server, "detect")["predictions"]
    page = open_page()
    take_sample(page)
    assert rows(page) == [one["label"] for one in found]
    box = found[0]["box"]
    width, height = 480, 480
    edge = pixel(page, box["xmin"] / width, (box["ymin"] + box["ymax"]) / 2 / height)
    swatch = page.locator(".swatch").first.evaluate("one => getComputedStyle(one).backgroundColor")
    expected = [int(part) for part in re.findall(r"\d+", swatch)][:3]
    assert max(abs(a - b) for a, b in zip(edge, expected, strict=True)) < 70
    assert page.locator(".stages i").count() >= 4
    assert "in the server" in page.locator(".timing .total").inner_text()


def test_a_chosen_a_dropped_and_a_pasted_file_are_asked_about(open_page: Open) -> None:
    page = open_page()
    asked = listen(page)
    page.set_input_files("#file", STAR)
    page.wait_for_selector(".result")
    idle(page)
    data = page.evaluate_handle(
        "async () => { const data = new DataTransfer();"
        " const picture = await (await fetch('/page/scenes/ring.jpg')).blob();"
        " data.items.add(new File([picture], 'ring.jpg', {type: 'image/jpeg'})); return data; }"
    )
    page.dispatch_event("body", "drop", {"dataTransfer": data})
    playwright.expect(page.locator(".result .name").first).to_have_text("ring")
    idle(page)
    page.evaluate("data => dispatchEvent(new ClipboardEvent('paste', {clipboardData: data}))", data)
    page.wait_for_timeout(100)
    idle(page)
    assert [path.split("?")[0] for path in asked] == ["detect"] * 3


def test_the_threshold_filters_boxes_without_a_request(
    open_page: Open, demo_server: Server
) -> None:
    everything = truth(demo_server, "detect", threshold=0)["predictions"]
    page = open_page()
    take_sample(page)
    asked = listen(page)
    pictures = set()
    for least in (0.7, 0.2, 0.1):
        slide(page, least)
        assert rows(page) == [one["label"] for one in everything if one["score"] >= least]
        pictures.add(shown_png(page))
    assert asked == []
    assert len(pictures) == 3


def test_segments_are_filtered_above_what_was_asked_and_merged_anew_below(
    open_page: Open, demo_server: Server
) -> None:
    found = truth(demo_server, "segment")["segments"]
    page = open_page()
    choose_task(page, "segment")
    take_sample(page)
    assert rows(page) == [one["label"] for one in found]
    asked = listen(page)
    slide(page, 0.97)
    assert rows(page) == [one["label"] for one in found if one["score"] >= 0.97]
    slide(page, 0.2, let_go=False)
    assert asked == []
    slide(page, 0.2)
    assert asked == ["segment?model=mask2former-scenes&mode=panoptic&threshold=0.2"]
    assert rows(page) == [
        one["label"] for one in truth(demo_server, "segment", threshold=0.2)["segments"]
    ]


@pytest.mark.parametrize("mode", ["panoptic", "instance", "semantic"])
def test_a_mask_tints_the_pixels_of_its_segment(open_page: Open, mode: str) -> None:
    page = open_page()
    choose_task(page, "classify")
    take_sample(page)
    inside, plain = (0.42, 0.35), {}
    plain[mode] = pixel(page, *inside)
    choose_task(page, "segment")
    page.locator(".mode").select_option(mode)
    idle(page)
    assert "star" in rows(page)
    assert sum(abs(a - b) for a, b in zip(pixel(page, *inside), plain[mode], strict=True)) > 60
    assert page.locator(".threshold").is_visible() == (mode != "semantic")


def test_a_clicked_box_shows_what_its_query_looked_at(open_page: Open, demo_server: Server) -> None:
    star = truth(demo_server, "detect")["predictions"][0]
    page = open_page()
    take_sample(page)
    before = shown_png(page)
    asked = listen(page)
    press(page, 0.65, 0.75)  # in the lower star
    assert asked == [
        f"attention?model=detr-scenes&kind=decoder&layer=all&head=all&query={star['query']}"
    ]
    assert page.locator(".about").inner_text().startswith("For star")
    maps = {before, shown_png(page)}
    page.click('.layers .chip:text-is("0")')
    maps.add(shown_png(page))
    page.click('.heads .chip:text-is("1")')
    maps.add(shown_png(page))
    assert len(maps) == 4
    assert len(asked) == 1, "toggling layers and heads asked again"
    assert page.locator('.heads .chip[aria-pressed="true"]').all_inner_texts() == ["1"]
    page.click(".back")
    assert shown_png(page) == before


def test_a_clicked_segment_shows_what_its_query_looked_at(
    open_page: Open, demo_server: Server
) -> None:
    segments = truth(demo_server, "segment")["segments"]
    water = next(one for one in segments if one["label"] == "water")
    page = open_page()
    choose_task(page, "segment")
    take_sample(page)
    asked = listen(page)
    press(page, 0.1, 0.9)
    page.locator('.kinds input[value="mask"]').check(force=True)
    idle(page)
    assert asked == [
        f"attention?model=mask2former-scenes&kind=decoder&layer=all&head=all&query={water['query']}",
        f"attention?model=mask2former-scenes&kind=mask&layer=all&query={water['query']}",
    ]
    assert not page.locator(".heads").is_visible()


def test_a_clicked_place_shows_what_a_token_there_looked_at(open_page: Open) -> None:
    page = open_page()
    choose_task(page, "classify")
    choose_model(page, "vit-scenes")
    take_sample(page)
    asked = listen(page)
    press(page, 0.25, 0.5)
    (path,) = asked
    assert path.startswith("attention?model=vit-scenes&kind=raw&layer=all&head=all&point=")
    x, y = map(float, path.split("point=")[1].split(","))
    assert (x, y) == pytest.approx((120, 240), abs=2)
    assert page.locator(".layers .chip").count() == 7


def test_a_clicked_class_shows_its_activation_map(open_page: Open) -> None:
    page = open_page()
    choose_task(page, "classify")
    choose_model(page, "swin-scenes")
    take_sample(page)
    asked = listen(page)
    page.locator(".result").first.click()
    idle(page)
    assert asked == ["attention?model=swin-scenes&kind=cam&query=3"]
    assert page.locator(".about").inner_text().startswith("For star")


def test_the_page_works_by_keyboard_alone(open_page: Open) -> None:
    page = open_page()
    page.locator('[data-name="star.jpg"]').focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".result")
    idle(page)
    page.locator('.tasks input[value="detect"]').focus()
    page.keyboard.press("ArrowRight")
    idle(page)
    assert page.locator('.tasks input[value="segment"]').is_checked()
    asked = listen(page)
    page.locator(".view").focus()
    for _ in range(10):
        page.keyboard.press("ArrowDown")
    assert "water" in page.locator("#spoken").inner_text()
    page.keyboard.press("Enter")
    playwright.expect(page.locator(".look")).to_be_visible()
    idle(page)
    assert len(asked) == 1
    page.locator(".view").focus()
    page.keyboard.press("Escape")
    playwright.expect(page.locator(".answer")).to_be_visible()


def test_two_models_are_compared_on_one_picture(open_page: Open) -> None:
    page = open_page()
    choose_task(page, "classify")
    take_sample(page)
    page.click("#compare")
    page.locator(".pane").nth(1).locator(".result").first.wait_for()
    idle(page)
    models = page.locator(".model").evaluate_all("all => all.map(one => one.value)")
    assert sorted(models) == ["swin-scenes", "vit-scenes"]
    assert rows(page, 0)[0] == rows(page, 1)[0] == "star"
    left, right = (page.locator(".view").nth(n).bounding_box() for n in (0, 1))
    assert left["y"] == right["y"]
    assert left["width"] == right["width"]
    page.click("#compare")
    assert page.locator(".pane").count() == 1


def test_answers_and_pictures_are_saved_as_they_are_seen(
    open_page: Open, demo_server: Server
) -> None:
    page = open_page()
    take_sample(page)
    with page.expect_download() as saved:
        page.click(".save-json")
    assert saved.value.suggested_filename == "star-detect.json"
    document = json.loads(Path(saved.value.path()).read_text())
    assert document == truth(demo_server, "detect", threshold=0)
    with page.expect_download() as saved:
        page.click(".save-picture")
    assert saved.value.suggested_filename == "star-detect.png"
    data = Path(saved.value.path()).read_bytes()
    assert data.startswith(b"\x89PNG")
    assert int.from_bytes(data[16:20], "big") == int.from_bytes(data[20:24], "big") == 1440


def test_the_copied_commands_get_the_same_answer(
    open_page: Open, demo_server: Server, tmp_path: Path
) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    take_sample(page)
    page.click(".copy-curl")
    page.wait_for_selector('.copy-curl:text-is("Copied")')
    command = page.evaluate("navigator.clipboard.readText()")
    run = subprocess.run(
        ["bash", "-c", f"curl --silent {command.removeprefix('curl')}"],
        cwd=SCENES,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    shown = json.loads(run.stdout)
    assert shown == truth(demo_server, "detect")
    assert [one["label"] for one in shown["predictions"]] == rows(page)
    assert run_python(copy_python(page), tmp_path) == shown
    assert (tmp_path / "star-detect.png").read_bytes().startswith(b"\x89PNG")
    slide(page, 0.1)
    more = run_python(copy_python(page), tmp_path)
    assert len(more["predictions"]) > len(shown["predictions"])
    assert [one["label"] for one in more["predictions"]] == rows(page)


def test_the_copied_command_asks_for_the_layers_and_heads_that_are_shown(
    open_page: Open, tmp_path: Path
) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    take_sample(page)
    press(page, 0.65, 0.75)

    def shown() -> list[tuple[int, int]]:
        answer = run_python(copy_python(page), tmp_path)
        assert answer["explained"]["label"] == "star"
        return [(one["layer"], one["head"]) for one in answer["maps"]]

    assert shown() == [(2, head) for head in range(4)], "the last layer"
    page.click('.heads .chip:text-is("1")')
    page.click('.layers .chip:text-is("0")')
    page.click('.layers .chip:text-is("2")')
    assert shown() == [(0, 1)]
    assert (tmp_path / "star-attention.png").read_bytes().startswith(b"\x89PNG")
    page.click('.layers .chip:text-is("all")')
    assert shown() == [(layer, 1) for layer in range(3)]


def hold(page: Page, pattern: str) -> list[Any]:
    """Requests that wait until the test lets them go on."""
    held: list[Any] = []
    page.route(pattern, lambda route: held.append(route))
    return held


def wait_for(page: Page, held: list[Any]) -> Any:
    """The next request that is held."""
    for _ in range(LONG_MS // 20):
        if held:
            return held.pop(0)
        page.wait_for_timeout(20)
    raise AssertionError("nothing was asked")


def test_a_click_while_an_answer_is_on_its_way_waits_for_it(open_page: Open) -> None:
    page = open_page()
    held = hold(page, "**/v1/detect*")
    asked = listen(page)
    page.click('[data-name="star.jpg"]')
    answer = wait_for(page, held)
    box = page.locator(".view").bounding_box()
    page.mouse.click(box["x"] + 0.65 * box["width"], box["y"] + 0.75 * box["height"])
    answer.continue_()
    page.wait_for_selector(".look:visible")
    idle(page)
    assert [path.split("?")[0] for path in asked] == ["detect", "attention"]
    assert page.locator(".about").inner_text().startswith("For star")
    page.click(".back")
    assert rows(page)
    assert len(asked) == 2


def test_back_from_attention_asks_anew_for_an_answer_that_had_failed(open_page: Open) -> None:
    page = open_page()
    page.route("**/v1/detect*", lambda route: route.abort())
    page.click('[data-name="star.jpg"]')
    page.wait_for_selector(".problem:visible")
    press(page, 0.65, 0.75)
    page.unroute("**/v1/detect*")
    page.click(".back")
    page.wait_for_selector(".result")
    assert not page.locator(".problem").is_visible()


def test_the_picture_chosen_last_is_shown_and_those_before_are_let_go(open_page: Open) -> None:
    page = open_page()
    page.evaluate(
        "() => { const make = createImageBitmap; window.made = []; window.createImageBitmap ="
        " async (...given) => { const one = await make(...given); made.push(one); return one; }; }"
    )
    held = hold(page, "**/page/scenes/star.jpg")
    page.click('[data-name="star.jpg"]')
    late = wait_for(page, held)
    take_sample(page, "square.jpg")
    take_sample(page, "ring.jpg")
    late.continue_()
    page.wait_for_timeout(200)
    idle(page)
    assert "ring.jpg" in page.locator(".code").text_content()
    assert page.locator('[aria-pressed="true"][data-name]').get_attribute("data-name") == "ring.jpg"
    assert page.evaluate("made.map((one) => one.width > 0)") == [False, True]


def test_a_slider_that_is_moved_while_an_answer_is_on_its_way_stays(open_page: Open) -> None:
    page = open_page()
    choose_task(page, "segment")
    take_sample(page)
    held = hold(page, "**/v1/segment*")
    move = "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }"
    slider = page.locator(".threshold input")
    slider.evaluate(move, 0.2)
    slider.dispatch_event("change")
    answer = wait_for(page, held)
    slider.evaluate(move, 0.6)
    answer.continue_()
    idle(page)
    assert page.locator(".threshold output").inner_text() == "0.60"


def test_a_page_that_found_no_server_or_no_key_tries_again_with_the_next_picture(
    open_page: Open,
) -> None:
    page = open_page()
    refusal = json.dumps({"title": "Unauthorized", "status": 401, "detail": "this needs a key"})
    page.route("**/page/samples", lambda route: route.abort())
    page.route("**/v1/models", lambda route: route.fulfill(status=401, body=refusal))
    page.reload()
    page.wait_for_selector("#key-dialog[open]")
    page.keyboard.press("Escape")
    page.set_input_files("#file", STAR)
    page.wait_for_selector("#key-dialog[open]")
    page.keyboard.press("Escape")
    page.unroute("**/v1/models")
    page.route("**/v1/models", lambda route: route.abort())
    page.set_input_files("#file", STAR)
    playwright.expect(page.locator("#notice")).to_have_text(re.compile("did not answer"))
    page.unroute("**/v1/models")
    page.unroute("**/page/samples")
    page.set_input_files("#file", STAR)
    page.wait_for_selector(".result")
    page.wait_for_selector(".sample")
    assert page.locator(".pane").count() == 1
    assert not page.locator("#notice").is_visible()


def test_what_the_browser_cannot_show_is_answered_and_cannot_be_saved_as_a_picture(
    open_page: Open,
) -> None:
    page = open_page()
    page.evaluate("() => { window.createImageBitmap = () => Promise.reject(new Error('no')); }")
    page.set_input_files("#file", STAR)
    page.wait_for_selector(".result")
    assert page.locator(".unseen").inner_text() == "This browser cannot show star.jpg."
    assert page.locator(".save-json").is_visible()
    assert not page.locator(".save-picture").is_visible()


def test_a_second_pane_that_is_closed_waits_for_nothing(open_page: Open) -> None:
    page = open_page()
    choose_task(page, "classify")
    take_sample(page)
    held = hold(page, "**/v1/classify*")
    page.click("#compare")
    wait_for(page, held)
    with page.expect_event("requestfailed"):
        page.click("#compare")
    assert page.locator(".pane").count() == 1


def copy_python(page: Page) -> str:
    page.click(".copy-python")
    page.wait_for_selector('.copy-python:text-is("Copied")')
    script: str = page.evaluate("navigator.clipboard.readText()")
    return script


def run_python(script: str, folder: Path) -> Any:
    shutil.copy(STAR, folder)
    command = [sys.executable, "-c", script]
    run = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, check=True
    )
    return ast.literal_eval(run.stdout)


def test_a_file_that_is_no_picture_is_refused_with_what_to_do(
    open_page: Open, tmp_path: Path
) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("nothing to see")
    page = open_page()
    page.set_input_files("#file", notes)
    page.wait_for_selector(".problem:visible")
    assert page.locator(".problem").get_attribute("role") == "alert"
    text = page.locator(".problem").inner_text()
    assert "415" in text
    assert "JPEG, PNG and WebP are accepted" in text
    assert "unsupported_format" in text
    assert "request " in text
    take_sample(page)
    assert not page.locator(".problem").is_visible()
    assert rows(page)


def test_a_damaged_picture_and_one_that_is_too_large_are_refused_with_what_to_do(
    open_page: Open, tmp_path: Path
) -> None:
    page = open_page()
    damaged, large = tmp_path / "damaged.jpg", tmp_path / "large.jpg"
    damaged.write_bytes(STAR.read_bytes()[:3000])
    large.write_bytes(STAR.read_bytes() + bytes(2**25))
    for path, title, todo in (
        (damaged, "The picture is damaged", "Send the whole, intact file."),
        (large, "The picture is too large", "Send smaller or more compressed pictures."),
    ):
        page.set_input_files("#file", path)
        playwright.expect(page.locator(".problem h3")).to_have_text(title)
        assert page.locator(".problem .detail").inner_text().endswith(todo)
        assert page.locator(".again").inner_text() == "Choose another picture"


GIVE = """([kind, text]) => {
    const given = new DataTransfer();
    given.setData("text/plain", text);
    const event = kind === "paste"
        ? new ClipboardEvent(kind, { bubbles: true, clipboardData: given })
        : new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: given });
    document.body.dispatchEvent(event);
}"""


def test_what_holds_no_picture_is_told_until_one_is_taken(open_page: Open, tmp_path: Path) -> None:
    page = open_page()
    notice = page.locator("#notice")
    page.evaluate(GIVE, ["paste", "words"])
    playwright.expect(notice).to_have_text(re.compile("Copy a picture, and paste again"))
    page.evaluate(GIVE, ["drop", "words"])
    playwright.expect(notice).to_have_text(re.compile("Save the picture first"))
    (tmp_path / "empty.jpg").touch()
    page.set_input_files("#file", tmp_path / "empty.jpg")
    playwright.expect(notice).to_have_text("empty.jpg is empty. Choose another picture.")
    page.set_input_files("#file", STAR)
    page.wait_for_selector(".result")
    assert not notice.is_visible()


def test_a_sample_that_cannot_be_had_and_a_strange_answer_are_told(open_page: Open) -> None:
    page = open_page()
    page.route("**/page/scenes/star.jpg", lambda route: route.abort())
    page.click('[data-name="star.jpg"]')
    playwright.expect(page.locator("#notice")).to_be_visible()
    assert "did not answer" in page.locator("#notice").inner_text()
    page.route("**/v1/detect*", lambda route: route.fulfill(status=200, body="<html>"))
    page.click('[data-name="square.jpg"]')
    playwright.expect(page.locator(".problem h3")).to_have_text("A strange answer")
    assert not page.locator("#notice").is_visible()


def test_an_overloaded_and_a_silent_server_are_told_apart(open_page: Open) -> None:
    page = open_page()
    problem = {
        "title": "Too Many Requests",
        "status": 429,
        "detail": "the queue is full",
        "code": "overloaded",
    }
    body = json.dumps(problem | {"retry_after_s": 2.5, "request_id": "abc"})
    page.route("**/v1/detect*", lambda route: route.fulfill(status=429, body=body))
    page.click('[data-name="star.jpg"]')
    page.wait_for_selector(".problem:visible")
    assert "The queue is full." in page.locator(".problem").inner_text()
    assert page.locator(".again").inner_text() == "Try again in 3 s or later"
    page.unroute("**/v1/detect*")
    page.route("**/v1/detect*", lambda route: route.abort())
    page.click(".again")
    playwright.expect(page.locator(".problem h3")).to_have_text("No answer")
    page.unroute("**/v1/detect*")
    page.click(".again")
    page.wait_for_selector(".result")
    assert not page.locator(".problem").is_visible()


def test_a_server_with_keys_is_used_once_a_key_is_entered(
    browser: Any, open_page: Open, start_server: Callable[..., Server], tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"anna:{KEY}\n")
    server = start_server("--api-keys-file", str(keys), "--api-processes", "1")
    page = open_page(server.url)
    page.wait_for_selector("#key-dialog[open]")
    assert not page.is_visible("#api-link"), "a link that cannot show the key"
    page.fill("#key-field", "wrong-0123456789abcdef")
    page.click("#key-use")
    page.wait_for_selector("#key-dialog[open]")
    page.fill("#key-field", KEY)
    page.keyboard.press("Enter")
    page.wait_for_selector(".pane")
    take_sample(page)
    assert rows(page)
    assert KEY not in page.content()
    assert "$SACCADE_KEY" in page.locator(".code").text_content()
    assert page.evaluate("Object.keys(localStorage).length") == 0
    page.click("#key-button")
    page.click('button[value="clear"]')
    page.wait_for_selector(".problem:visible")
    assert page.locator(".again").inner_text() == "Enter a key"


def test_a_picture_is_taken_with_the_camera(open_page: Open) -> None:
    page = open_page(permissions=["camera"])
    asked = listen(page)
    page.click("#camera")
    page.wait_for_selector("#camera-dialog[open]")
    playwright.expect(page.locator("#video")).to_have_js_property("readyState", 4)
    page.click("#shoot")
    page.wait_for_selector(".view:visible")
    idle(page)
    assert asked == ["detect?model=detr-scenes&threshold=0"]
    assert "camera.jpg" in page.locator(".code").text_content()
    assert not page.locator("#camera-dialog").is_visible()


CAMERA = """(kind) => {
    window.opened = 0;
    navigator.mediaDevices.getUserMedia = () => {
        window.opened += 1;
        return new Promise((_, refuse) => setTimeout(refuse, 50, new DOMException("broken", kind)));
    };
}"""


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("NotAllowedError", "Allow it in the address bar"),
        ("NotFoundError", "No camera was found. Connect one"),
        ("NotReadableError", "The camera is in use"),
        ("AbortError", "The camera did not start (broken). Try again"),
    ],
)
def test_a_camera_that_does_not_start_is_asked_once_and_told(
    open_page: Open, kind: str, says: str
) -> None:
    page = open_page()
    page.evaluate(CAMERA, kind)
    page.dblclick("#camera")
    playwright.expect(page.locator("#notice")).to_contain_text(says)
    assert page.evaluate("opened") == 1


def test_chosen_colours_stay_when_the_page_is_opened_again(open_page: Open) -> None:
    page = open_page(color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.click("#theme")
    dark = page.evaluate(ground)
    assert dark != light
    page.reload()
    assert page.evaluate(ground) == dark
    assert page.locator("#theme").get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (390, "dark")])
def test_a_phone_shows_everything_without_scrolling_sideways(
    open_page: Open, width: int, scheme: str
) -> None:
    page = open_page(color_scheme=scheme, device_scale_factor=2, has_touch=True)
    page.set_viewport_size({"width": width, "height": 780})
    for task in ("segment", "attention"):
        choose_task(page, task)
        take_sample(page, "ring.jpg")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        box = page.locator(".view").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    lightness = float(re.findall(r"[\d.]+", ground)[0])
    assert (lightness < 0.5) == (scheme == "dark"), ground


def test_the_strip_shows_that_the_server_runs_and_how_large_its_batches_are(
    open_page: Open,
) -> None:
    page = open_page()
    playwright.expect(page.locator("#state")).to_have_text("ready")
    take_sample(page)
    playwright.expect(page.locator("#batch")).to_have_text(re.compile(r"\d"), timeout=LONG_MS)
    assert float(page.locator("#batch").inner_text()) >= 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_that_keeps_people_out(open_page: Open, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(color_scheme=scheme)
    states: list[tuple[str, Callable[[], None]]] = [
        ("empty", lambda: None),
        ("boxes", lambda: take_sample(page)),
        ("attention", lambda: press(page, 0.65, 0.75)),
        ("masks", lambda: choose_task(page, "segment")),
        ("vector", lambda: choose_task(page, "embed")),
        ("two", lambda: page.click("#compare")),
        ("key", lambda: page.click("#key-button")),
    ]
    for name, reach in states:
        reach()
        idle(page)
        found = axe.run(page).response["violations"]
        told = [(one["id"], [node["html"] for node in one["nodes"]]) for one in found]
        assert told == [], name
