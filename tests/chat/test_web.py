"""The web page: what its functions do, and what a visitor sees in a real browser."""

import asyncio
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from jminigpt4 import DEMO
from jminigpt4.chat import ChatSession, web
from jminigpt4.chat.page_texts import GRADIO_TEXTS, TRANSLATIONS
from jminigpt4.chat.pictures import PictureLimits
from jminigpt4.chat.settings import Settings
from jminigpt4.chat.texts import JAPANESE, NO_PICTURE
from jminigpt4.chat.turns import Turn
from jminigpt4.chat.web_guard import is_own_host
from jminigpt4.inference.loading import load_checkpoint

pytest.importorskip("gradio", reason="needs gradio: pip install -e '.[chat]'")

OPTIONS = {"do_sample": False, "max_new_tokens": 24}
IMAGES = "[data-testid=user] img"


def asked(question: str) -> dict:
    return {"role": "user", "content": question}


def answered(text: str) -> dict:
    return {"role": "assistant", "content": text}


@pytest.fixture
def visitor(chat_model, processor):
    return web.Visitor(ChatSession(chat_model, processor))


def test_what_the_page_takes_back_the_session_takes_back(visitor, pictures):
    session = visitor.session
    session.ask("何が写ってる?", pictures[:1], max_new_tokens=2)
    session.ask("何色?", max_new_tokens=2)
    history = [asked("何が写ってる?"), answered("…"), asked("何色?"), answered("…")]
    web.follow_page(visitor, history, pytest.fail)
    assert len(session.turns) == 2
    web.follow_page(visitor, history[:2], pytest.fail)
    assert [turn.question for turn in session.turns] == ["何が写ってる?"]
    web.follow_page(visitor, [], pytest.fail)
    assert session.turns == []


def test_turns_that_made_room_stay_on_the_page(visitor):
    session, told = visitor.session, []
    for question in ("一", "二", "三"):
        session.ask(question, max_new_tokens=2)
    history = [message for question in "一二三" for message in (asked(question), answered("…"))]
    web.follow_page(visitor, history, told.append)
    session.on_forget(session.turns[:1])  # as the session does when the window is full
    session.turns = session.turns[1:]
    assert told == [web.FORGOTTEN]
    web.follow_page(visitor, history, pytest.fail)
    assert [turn.question for turn in session.turns] == ["二", "三"]
    web.follow_page(visitor, history[:4], pytest.fail)
    assert [turn.question for turn in session.turns] == ["二"]


def test_a_conversation_that_is_gone_is_told(visitor):
    told = []
    web.follow_page(visitor, [asked("何?"), answered("赤")], told.append)
    assert told == [web.EVICTED] and visitor.session.turns == []


def test_visitors_have_their_own_conversations(chat_model, processor):
    visitors = web.Visitors(lambda: ChatSession(chat_model, processor), limit=2)
    visitors["a"].session.turns.append(Turn("秘密"))
    assert visitors["b"].session.turns == []
    assert visitors["a"].session.turns[0].question == "秘密"
    _ = visitors["c"]  # the third; `b` has been silent longest
    assert len(visitors) == 2 and visitors["a"].session.turns
    visitors.leave("a")
    assert visitors["a"].session.turns == []


def test_uploads_are_limited(picture_files, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(picture_files[0].parent))
    files = [str(file) for file in picture_files]
    assert [picture.size for picture in web.uploads(files, PictureLimits())] == [(40, 30)] * 3
    with pytest.raises(ValueError, match="3 pictures at once; at most 2"):
        web.uploads(files, PictureLimits(max_pictures=2))
    with pytest.raises(ValueError, match="picture 1 has more than 10 bytes"):
        web.uploads(files, PictureLimits(max_bytes=10))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    (tmp_path / "evil.png").write_bytes(b"%!PS (%pipe%id) (r) file")
    with pytest.raises(ValueError, match="picture 1 is not a picture") as raised:
        web.uploads([{"path": str(tmp_path / "evil.png")}], PictureLimits())
    assert str(tmp_path) not in str(raised.value)
    for outside in (files[0], f"{tmp_path}/../{picture_files[0].parent.name}/{picture_files[0].name}"):
        with pytest.raises(ValueError, match="picture 1 was not uploaded"):
            web.uploads([outside], PictureLimits())


PICTURE = {"orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}


def test_no_address_takes_all_places(page_parts):
    """Of 64 places an address has 16, whatever its tabs are called; the others are for others. What is no question,
    such as giving the box back, always passes."""
    page, _ = page_parts
    queue = page._queue
    questions = [index for index in page.fns if web._is_question(page, index)]
    other = next(index for index in page.fns if index not in questions)

    def push(host: str, tab: int, index: int = questions[0]) -> bool:
        body = SimpleNamespace(fn_index=index, session_hash=f"tab {tab}", event_id=None, data=[], request=None)
        request = SimpleNamespace(client=SimpleNamespace(host=host), headers={}, query_params={})
        taken, said, status = asyncio.run(queue.push(body=body, request=request, username=None))
        assert taken or (said, status) == (web.BUSY, "queue_full")
        return taken

    assert [push("192.0.2.1", tab) for tab in range(20)] == [True] * 16 + [False] * 4
    assert push("192.0.2.1", 20, other)
    taken = [push(f"192.0.2.{tab}", tab) for tab in range(2, 60)]
    assert taken == [True] * 48 + [False] * 10
    assert push("192.0.2.99", 99, other)


@pytest.fixture
def page_parts(chat_model, processor):
    return web.build_page(ChatSession(chat_model, processor), Settings())


def test_uploads_end_with_the_server(checkpoint, tmp_path, free_port, picture_files):
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "jminigpt4.cli", "chat", str(checkpoint), "--web", "--port", str(free_port)]
    server = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        address = next(line for line in server.stderr if line.startswith("http")).split()[0]
        with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
            client.post(
                "gradio_api/upload", files={"files": ("a.png", picture_files[0].read_bytes())}
            ).raise_for_status()
        assert list(tmp_path.rglob("a.png"))
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    finally:
        server.kill()
    assert not list(tmp_path.rglob("*.png"))


def test_requests_that_name_addresses(page, tmp_path):
    """A request made by hand, not by the page, names a path or an address as its picture: nothing is opened."""
    asked_for = []

    class Inner(BaseHTTPRequestHandler):
        def do_GET(self):
            asked_for.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

    inner = ThreadingHTTPServer(("127.0.0.1", 0), Inner)
    threading.Thread(target=inner.serve_forever, daemon=True).start()
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8), "red").save(secret)
    sources = (str(secret), f"http://127.0.0.1:{inner.server_port}/a.png", f"file://{secret}")
    with httpx.Client(base_url=page, timeout=60, trust_env=False) as client:
        config = client.get("config").json()
        kinds = {each["id"]: each["type"] for each in config["components"]}
        takers = [
            each
            for each in config["dependencies"]
            if {"multimodaltextbox", "chatbot"} & {kinds[one] for one in each["inputs"]}
        ]
        assert takers
        uploaded = client.post("gradio_api/upload", files={"files": ("a.png", secret.read_bytes())}).json()[0]

        def outcomes(source: str) -> list[bool]:
            file = {**PICTURE, "path": source}
            sent = {
                "multimodaltextbox": {"text": "何?", "files": [file]},
                "chatbot": [{"role": "user", "content": [{"type": "file", "file": file}]}],
            }
            seen = []
            for taker in takers:
                session = f"visitor{source}{taker['id']}"
                data = [sent.get(kinds[each]) for each in taker["inputs"]]
                body = {"data": data, "fn_index": taker["id"], "session_hash": session}
                client.post("gradio_api/queue/join", json=body)
                stream = client.get("gradio_api/queue/data", params={"session_hash": session}).text
                seen.append('"success":true' in stream.replace(" ", ""))
            return seen

        assert sum(outcomes(uploaded)) > 4  # what the page itself does, is done
        for source in sources:
            assert not any(outcomes(source))
    inner.shutdown()
    inner.server_close()
    assert asked_for == []


def test_the_demo_answers_the_examples_rightly():
    rightly = {
        "two": "左はりんご",
        "apple": "りんご",
        "cat": "動物",
        "hamburger": "ハンバーガーは食べられます",
        "fire_engine": "赤",
        "key": "鍵",
    }
    demo = load_checkpoint(DEMO)
    examples = web.example_questions()
    assert [file.stem for file, _ in examples] == list(rightly)
    for file, question in examples:
        assert rightly[file.stem] in ChatSession(*demo).ask(question, [file.read_bytes()]), file.stem


def test_every_response_guards_the_page(page):
    """No other page may show it in a frame; nothing of other hosts is loaded or asked; its types are what they say."""
    with httpx.Client(base_url=page, timeout=60, trust_env=False) as client:
        for path in ("", "config", "theme.css", "gradio_api/nothing", "gradio_api/file=/etc/passwd"):
            headers = client.get(path).headers
            assert headers["x-frame-options"] == "DENY" and headers["x-content-type-options"] == "nosniff"
            policy = dict(each.strip().split(" ", 1) for each in headers["content-security-policy"].split(";"))
            assert policy["default-src"] == "'self'" and policy["frame-ancestors"] == policy["object-src"] == "'none'"
            assert not any("http" in sources or "*" in sources for sources in policy.values())


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "192.0.2.1", "", "[::1"]
)
def test_a_foreign_host_is_refused(page, host, tmp_path):
    with httpx.Client(base_url=page, timeout=60, trust_env=False, headers={"Host": host}) as client:
        for answer in (client.get(""), client.get("config"), client.post("gradio_api/upload", files={"files": b"a"})):
            assert answer.status_code == 421 and answer.text == web.ELSEWHERE
        japanese = client.get("", headers={"Accept-Language": "ja"})
        assert japanese.text == JAPANESE[web.ELSEWHERE] and "x-frame-options" in japanese.headers


@pytest.mark.parametrize(
    ("header", "listening", "own"),
    [
        ("127.0.0.1:7860", "127.0.0.1", True),
        ("localhost", "127.0.0.1", True),
        ("LOCALHOST:80", "127.0.0.1", True),
        ("localhost.", "::1", True),
        ("[::1]:7860", "::1", True),
        ("127.0.0.2", "localhost", True),
        ("evil.example", "localhost", False),
        ("evil.example", "127.0.0.1", False),
        ("evil.example", "::1", False),
        ("localhost.evil.example", "127.0.0.1", False),
        ("0x7f.1", "127.0.0.1", False),
        ("user@127.0.0.1", "127.0.0.1", True),  # no browser sends it
        (None, "127.0.0.1", False),
        ("evil.example", "0.0.0.0", True),  # whoever listens to the network has names that nobody here knows
        ("evil.example", "192.0.2.1", True),
    ],
)
def test_whose_host_it_is(header, listening, own):
    assert is_own_host(header, listening) is own


def test_the_model_stands_on_the_page(chat_model, processor, tmp_path):
    (tmp_path / "わたし_の <b>モデル").mkdir()
    session = ChatSession(chat_model, processor)
    for model, title in (
        (None, "demo"),
        ("rinna/bilingual-gpt-neox-4b-minigpt4", "rinna/bilingual-gpt-neox-4b-minigpt4"),
        (str(tmp_path / "わたし_の <b>モデル"), "わたし_の bモデル"),
    ):
        interface, _ = web.build_page(session, Settings(model))
        assert interface.title == f"MiniGPT-4 · {title}" and str(tmp_path) not in repr(interface.config)


def test_settings_of_the_command_line_are_within_the_sliders(chat_model, processor):
    options = {"temperature": 3.0, "top_p": 0.01, "max_new_tokens": 4000, "do_sample": True}
    interface, _ = web.build_page(ChatSession(chat_model, processor), Settings(options=options))
    sample, *sliders = interface.additional_inputs
    assert sample.value is True and [slider.value for slider in sliders] == [3.0, 0.01, 4000]
    assert all(slider.minimum <= slider.value <= slider.maximum for slider in sliders)


def test_heic_is_offered_where_it_is_read(chat_model, processor, monkeypatch):
    """Where it is not, iPhones convert what they upload."""
    for reads in (True, False):
        monkeypatch.setattr(web, "reads_heic", lambda reads=reads: reads)
        interface, _ = web.build_page(ChatSession(chat_model, processor), Settings())
        assert (".heic" in interface.textbox.file_types) is reads


def test_a_port_that_is_taken(page_parts):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"Nobody can listen on 127.0.0.1, port {port}"):
            web.launch(page_parts[0], "127.0.0.1", port)


@pytest.fixture
def page_with_login(page_parts):
    interface, _ = page_parts
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    yield web.launch(interface, "127.0.0.1", port, ("わたし", "se:cret"))
    interface.close()


def test_a_login(page_with_login):
    with httpx.Client(base_url=page_with_login, timeout=60, trust_env=False) as client:
        assert client.get("config").status_code == 401 and "multimodaltextbox" not in client.get("").text
        assert client.post("gradio_api/upload", files={"files": ("a.png", b"a")}).status_code == 401
        joined = client.post("gradio_api/queue/join", json={"data": [], "fn_index": 0, "session_hash": "a"})
        assert joined.status_code == 401
        for user, password in (("わたし", "secret"), ("me", "se:cret"), ("", "")):
            assert client.post("login", data={"username": user, "password": password}).status_code in (400, 422)
        assert client.get("config").status_code == 401
        assert client.post("login", data={"username": "わたし", "password": "se:cret"}).status_code == 200
        cookies = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
        assert client.get("config", headers={"Cookie": cookies}).status_code == 200


def chromium() -> tuple[str, str]:
    """Browser and driver of the system; skips where they or selenium are missing."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (browser and driver):
        pytest.skip("needs a browser and its driver: apt-get install chromium chromium-driver")
    if importlib.util.find_spec("selenium") is None:
        pytest.skip("needs selenium: pip install selenium")
    return browser, driver


@pytest.fixture(scope="module")
def site(chat_model, processor, free_port):
    """Address of the page, served in threads, and its visitors."""
    session = ChatSession(chat_model, processor)
    interface, visitors = web.build_page(session, Settings(options=dict(OPTIONS)))
    yield web.launch(interface, "127.0.0.1", free_port), visitors
    interface.close()


@pytest.fixture(scope="module")
def page(site) -> str:
    return site[0]


class Browser:
    """A browser with the page; each tab is a visitor."""

    def __init__(self, address: str, visitors: web.Visitors):
        from selenium import webdriver

        browser, driver = chromium()
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1100,900", "--lang=ja")
        for flag in (*flags, "--disable-dev-shm-usage", "--disable-background-networking"):
            options.add_argument(flag)
        options.add_experimental_option("prefs", {"intl.accept_languages": "ja,en"})
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(driver))
        self.address = address
        self.visitors = visitors

    def open(self):
        self.driver.get(self.address)
        self.find("textarea")

    def wait(self, what, description: str, seconds: float = 45):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := what():
                return found
            time.sleep(0.05)
        raise AssertionError(f"waited for {description}; the page says: {self.text()}")

    def all(self, selector: str):
        return self.driver.find_elements("css selector", selector)

    def find(self, selector: str):
        return self.wait(lambda: self.all(selector), selector)[0]

    def press(self, selector: str, index: int = -1):
        """Clicks a button, one of several, when nothing lies over it any more."""
        from selenium.common.exceptions import WebDriverException

        def click() -> bool:
            try:
                self.all(selector)[index].click()
            except (WebDriverException, IndexError):
                return False
            return True

        self.wait(click, selector)

    def text(self) -> str:
        return self.driver.execute_script("return document.body.innerText")

    def said(self, role: str) -> list[str]:
        """What the bubbles of a role say; pictures say nothing."""
        script = "return [...document.querySelectorAll(`[data-testid=${arguments[0]}] .message-content`)]"
        return self.driver.execute_script(f"{script}.map(each => each.innerText.trim())", role)

    def answers(self) -> list[str]:
        return self.said("bot")

    def box(self) -> str:
        return self.find("textarea:not(.edit-textarea)").get_attribute("value")

    def thumbnails(self):
        return self.all(".thumbnail-item")

    def turns(self) -> list[tuple[str, int, str]]:
        """Question, number of pictures and answer of what the newest visitor's session holds."""
        session = next(reversed(self.visitors._present.values())).session
        return [(turn.question, len(turn.pictures), plain(turn.answer)) for turn in session.turns]

    def submit(self, question: str, *files: Path):
        """Types a question, with pictures, and sends it."""
        if files:
            self.driver.execute_script("arguments[0].value = ''", self.find("input[type=file]"))  # of earlier uploads
            self.find("input[type=file]").send_keys("\n".join(map(str, files)))
            self.wait(lambda: len(self.thumbnails()) >= len(files), "the uploads")
        if question:
            self.find("textarea").send_keys(question)
        self.press("button.submit-button")

    def finish(self, count: int) -> str:
        """Waits until so many answers stand on the page and nothing is spoken any more; returns the last."""
        self.wait(lambda: len(self.answers()) == count and all(self.answers()), f"{count} answers")
        self.wait(lambda: self.all("button.submit-button") and not self.all("button.stop-button"), "the end of it")
        self.wait(lambda: self.find("textarea:not(.edit-textarea)").is_enabled(), "the box")
        return plain("".join(self.answers()[-1:]))

    def ask(self, question: str, *files: Path) -> str:
        count = len(self.answers()) + 1
        self.submit(question, *files)
        return self.finish(count)

    def edit(self, index: int, question: str):
        self.press("button[aria-label='編集']", index)
        box = self.find("textarea.edit-textarea")
        box.clear()
        box.send_keys(question)
        self.press("button[aria-label='送信']", 0)

    def hosts(self) -> set[str]:
        """Whom the page has asked for anything."""
        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        sent = (
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        )
        return {urlsplit(url).hostname or "" for url in sent if url.startswith(("http", "ws"))}


@pytest.fixture(scope="module")
def window(request):
    chromium()
    window = Browser(*request.getfixturevalue("site"))
    yield window
    window.driver.quit()


@pytest.fixture
def browser(window) -> Browser:
    """A visitor who comes to an empty page."""
    window.open()
    return window


@pytest.fixture
def slowly(chat_model):
    """An event: while it is set, the model takes a second for three tokens."""
    slow = threading.Event()
    hook = chat_model.register_forward_pre_hook(lambda *_: time.sleep(1 / 3 if slow.is_set() else 0))
    yield slow
    hook.remove()


def plain(text: str) -> str:
    """Text as a page shows it: white space is one space."""
    return " ".join(text.split())


def test_two_visitors_in_a_browser(browser, slowly, chat_model, processor, pictures, picture_files):
    """Upload, ask, read the Japanese answer, ask on; a second visitor, at the same time, sees none of it."""
    told, other = ChatSession(chat_model, processor), ChatSession(chat_model, processor)
    expected = plain(told.ask("何が写ってる?", pictures[:1], **OPTIONS))
    expected_other = plain(other.ask("何が写ってる?", pictures[1:2], **OPTIONS))
    assert expected != expected_other
    assert "設定" in browser.text()  # Japanese labels for a Japanese browser
    first = browser.driver.current_window_handle
    slowly.set()
    browser.submit("何が写ってる?", picture_files[0])
    browser.wait(lambda: len(browser.answers()) == 1 and browser.answers()[0], "the first words")
    browser.driver.switch_to.new_window("tab")
    browser.open()
    assert browser.answers() == [] and browser.all(IMAGES) == []
    browser.submit("何が写ってる?", picture_files[1])  # waits in the queue
    slowly.clear()
    assert browser.finish(1) == expected_other
    theirs = browser.find(IMAGES).get_attribute("src")
    browser.driver.close()
    browser.driver.switch_to.window(first)
    assert browser.finish(1) == expected
    assert [image.get_attribute("src") for image in browser.all(IMAGES)] != [theirs]
    assert browser.ask("何色?") == plain(told.ask("何色?", **OPTIONS))
    assert len(browser.all(IMAGES)) == 1
    sharing = [button for button in browser.all("button[aria-label='共有']") if button.is_displayed()]
    assert sharing == []  # it would send the picture to a site on the Internet
    assert browser.hosts() <= {"127.0.0.1"}


def test_retry_edit_undo_and_clear_in_a_browser(browser, chat_model, processor, pictures, picture_files):
    def fresh(question: str, shown: int = 0) -> str:
        return plain(ChatSession(chat_model, processor).ask(question, pictures[:shown], **OPTIONS))

    answer = browser.ask("何が写ってる?", picture_files[0])
    browser.press("button[aria-label='再試行']")
    browser.wait(lambda: not browser.answers(), "the answer to go")
    assert browser.finish(1) == answer == fresh("何が写ってる?", 1)
    assert browser.turns() == [("何が写ってる?", 1, answer)]
    browser.ask("何色?")

    browser.edit(0, "何の仲間?")  # the first of two questions: the second goes, the picture stays
    browser.wait(lambda: browser.said("user") == ["何の仲間?"], "the edited question")
    answer = browser.finish(1)
    assert answer == fresh("何の仲間?", 1) and len(browser.all(IMAGES)) == 1
    assert browser.turns() == [("何の仲間?", 1, answer)]

    second = browser.ask("何色?")
    browser.press("button[aria-label='元に戻す']")
    browser.wait(lambda: browser.box() == "何色?", "the question in the box")
    assert browser.said("user") == ["何の仲間?"] and len(browser.answers()) == 1
    browser.press("button[aria-label='元に戻す']")
    browser.wait(lambda: browser.box() == "何の仲間?", "the first question in the box")
    assert browser.said("user") == browser.answers() == browser.all(IMAGES) == []
    assert len(browser.thumbnails()) == 1
    assert browser.ask("") == answer and browser.ask("何色?") == second
    assert browser.turns() == [("何の仲間?", 1, answer), ("何色?", 0, second)]

    browser.press("button[aria-label='会話をクリア']")
    browser.wait(lambda: not browser.answers(), "an empty page")
    assert browser.ask("何色?") == fresh("何色?")
    assert [question for question, _, _ in browser.turns()] == ["何色?"]


def test_stop_in_a_browser(browser, slowly, chat_model, processor, pictures, picture_files):
    """What was said until it was stopped stays; what was not, is not in the conversation."""
    told = ChatSession(chat_model, processor)
    whole = plain(told.ask("何が写ってる?", pictures[:1], **OPTIONS))
    slowly.set()
    browser.submit("何が写ってる?", picture_files[0])
    browser.wait(lambda: len(browser.answers()) == 1 and browser.answers()[0], "the first words")
    browser.press("button.stop-button")
    shown = browser.finish(1)
    slowly.clear()
    assert whole.startswith(shown) and len(shown) < len(whole)
    second = browser.ask("何色?")
    turns = browser.turns()
    assert [turn[:2] for turn in turns] == [("何が写ってる?", 1), ("何色?", 0)]
    assert turns[0][2].startswith(shown) and len(turns[0][2]) < len(whole) and turns[1][2] == second

    slowly.set()
    browser.submit("何の仲間?")
    browser.press("button.stop-button")  # before a word of it
    browser.wait(lambda: "答える前に止めました" in browser.text(), "the notice")
    slowly.clear()
    browser.finish(2)
    third = browser.ask("どこにある?")
    assert browser.said("user") == ["何が写ってる?", "何色?", "何の仲間?", "どこにある?"]
    assert browser.turns() == [*turns, ("どこにある?", 0, third)]
    browser.press("button[aria-label='元に戻す']")
    browser.wait(lambda: browser.box() == "どこにある?", "the last question alone in the box")


@pytest.fixture(params=["ja", "en"])
def language(request, window) -> str:
    """The language of a visitor's browser."""
    agent = window.driver.execute_script("return navigator.userAgent")
    override = "Emulation.setUserAgentOverride"
    accepted = {"ja": "ja,en", "en": "en-US,en"}
    window.driver.execute_cdp_cmd(override, {"userAgent": agent, "acceptLanguage": accepted[request.param]})
    yield request.param
    window.driver.execute_cdp_cmd(override, {"userAgent": agent, "acceptLanguage": "ja,en"})


def test_labels_in_a_browser(window, language):
    window.open()
    window.wait(lambda: TRANSLATIONS[language]["settings"] in window.text(), "the labels")
    other = TRANSLATIONS["en" if language == "ja" else "ja"]
    assert TRANSLATIONS[language]["about"] in window.text() and other["about"] not in window.text()
    assert window.driver.title == "MiniGPT-4 · demo" and "MiniGPT-4 · demo" in window.text()
    box = window.find("textarea")
    assert box.get_attribute("placeholder") == TRANSLATIONS[language]["placeholder"]


def test_a_hostile_upload_in_a_browser(browser, tmp_path):
    evil = tmp_path / "evil.png"
    evil.write_bytes(b"\x89PNG\r\n\x1a\n" + b"evil" * 50)
    before = len(browser.answers())
    browser.find("input[type=file]").send_keys(str(evil))
    browser.wait(lambda: browser.thumbnails(), "the upload")
    browser.find("textarea").send_keys("何?")
    browser.find("button.submit-button").click()
    browser.wait(lambda: "開ける形式の絵ではありません" in browser.text(), "the refusal")
    assert "Traceback" not in browser.text() and str(tmp_path) not in browser.text()
    browser.finish(before)


def in_language(language: str, english: str) -> str:
    return JAPANESE[english] if language == "ja" else english


def test_the_page_goes_on_after_each_refusal(
    window, language, chat_model, processor, picture_files, tmp_path, monkeypatch
):
    """In a browser, in both languages: what is refused is said, and the next question is answered."""
    browser = window
    browser.open()
    evil, bomb, huge = tmp_path / "evil.png", tmp_path / "bomb.png", tmp_path / "huge.png"
    evil.write_bytes(b"\x89PNG\r\n\x1a\n" + b"evil" * 50)
    Image.new("1", (6000, 5000)).save(bomb)
    huge.write_bytes(bytes(20_000_001))

    def notices() -> list[str]:
        script = "return [...document.querySelectorAll('[data-testid=toast-body]')].map(toast => toast.innerText)"
        return [plain(told) for told in browser.driver.execute_script(script)]

    def expect(title: str, message: str):
        told = browser.wait(lambda: [each for each in notices() if message in each], message)
        assert told[0].startswith(in_language(language, title))
        if language == "ja":
            assert not re.search("[A-Za-z]{3}", re.sub("PNG.*AVIF|huge.png|note.txt|\\.[a-z]+", "", told[0])), told[0]
        browser.driver.execute_script("document.querySelectorAll('[data-testid=toast-close]').forEach(e => e.click())")
        browser.wait(lambda: not notices(), "the notice to go")

    browser.ask("何色?", picture_files[0])
    refusals = [
        ({"en": "not a picture", "ja": "開ける形式の絵ではありません"}, "何?", [evil]),
        ({"en": "30,000,000 pixels", "ja": "30,000,000 画素"}, "何?", [bomb]),
        ({"en": "9 pictures at once; at most 8", "ja": "一度に 9 枚は多すぎます"}, "何?", [picture_files[0]] * 9),
        ({"en": "context window", "ja": "質問が長すぎます"}, "長" * 2000, []),
        ({"en": "Ask something", "ja": "質問を書くか"}, " ", []),
    ]
    for number, (messages, question, files) in enumerate(refusals, 1):
        copies = [shutil.copy(file, tmp_path / f"{number}-{place}.png") for place, file in enumerate(files)]
        browser.submit(question, *copies)
        expect("Warning", messages[language])
        browser.finish(number)
        browser.ask("鳥?")
    monkeypatch.setattr(ChatSession, "stream", lambda *given, **options: 1 / 0)
    browser.submit("何?")
    expect("Warning", in_language(language, web.FAILED))
    monkeypatch.undo()
    browser.finish(number + 1)
    browser.ask("鳥?")
    monkeypatch.setattr(web, "MAX_WAITING_PER_ADDRESS", 0)
    browser.submit("何?")
    expect("Error", in_language(language, web.BUSY))
    browser.wait(lambda: browser.all("button.submit-button") and browser.find("textarea").is_enabled(), "the box")
    monkeypatch.undo()
    browser.ask("鳥?")
    browser.find("input[type=file]").send_keys(str(huge))
    expect("Error", {"en": "exceed the maximum allowed size", "ja": "大きすぎます"}[language])
    script = """const files = new DataTransfer();
    files.items.add(new File(["x"], "note.txt", { type: "text/plain" }));
    arguments[0].files = files.files;
    arguments[0].dispatchEvent(new Event("change", { bubbles: true }));"""
    browser.driver.execute_script(script, browser.find("input[type=file]"))
    expect("Error", {"en": "Invalid file type: note.txt.", "ja": "絵ではないようです: note.txt。"}[language])
    browser.ask("鳥?")
    assert [question for question, _, _ in browser.turns()] == ["何色?", *["鳥?"] * (number + 3)]
    refused = [
        entry["message"] for entry in browser.driver.get_log("browser") if "Content Security" in entry["message"]
    ]
    assert refused == []  # by the policy: the page bears it


def test_an_answer_without_a_picture_says_so_on_the_page(window, language, picture_files):
    window.open()
    window.ask("何色?")
    window.wait(lambda: in_language(language, NO_PICTURE) in window.text(), "the notice")
    assert in_language(language, "Info") in window.text()
    window.open()
    window.ask("何色?", picture_files[0])
    window.ask("鳥?")
    assert in_language(language, NO_PICTURE) not in window.text()


def test_gradio_still_says_what_is_translated():
    """The sentences that the page's script looks for stand in the installed gradio's own scripts."""
    import gradio

    assets = Path(gradio.__file__).parent / "templates" / "frontend" / "assets"
    scripts = "".join(file.read_text(encoding="utf-8") for file in assets.glob("*.js"))
    for english in GRADIO_TEXTS:
        pieces = re.split(r"\{\w+\}", english.replace("types", "type").replace(": {names}", "{names}"))
        assert all(piece.strip() in scripts for piece in pieces), english
