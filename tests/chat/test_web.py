"""The web page: what its functions do, and what a visitor sees in a real browser."""

import importlib.util
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from PIL import Image

from jminigpt4.chat import ChatSession, web
from jminigpt4.chat.pictures import PictureLimits
from jminigpt4.chat.settings import Settings
from jminigpt4.chat.turns import Turn

pytest.importorskip("gradio", reason="needs gradio: pip install 'jminigpt4[chat]'")


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


def test_uploads_are_limited(picture_files, tmp_path):
    files = [str(file) for file in picture_files]
    assert [picture.size for picture in web.uploads(files, PictureLimits())] == [(40, 30)] * 3
    with pytest.raises(ValueError, match="3 pictures at once; at most 2"):
        web.uploads(files, PictureLimits(max_pictures=2))
    with pytest.raises(ValueError, match="picture 1 has more than 10 bytes"):
        web.uploads(files, PictureLimits(max_bytes=10))
    (tmp_path / "evil.png").write_bytes(b"%!PS (%pipe%id) (r) file")
    with pytest.raises(ValueError, match="picture 2 is not a picture") as raised:
        web.uploads([files[0], str(tmp_path / "evil.png")], PictureLimits())
    assert str(tmp_path) not in str(raised.value)


PICTURE = {"orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}


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
        boxes = [each["id"] for each in config["components"] if each["type"] == "multimodaltextbox"]
        takers = [each for each in config["dependencies"] if set(boxes) & set(each["inputs"])]
        assert takers
        uploaded = client.post("gradio_api/upload", files={"files": ("a.png", secret.read_bytes())}).json()[0]

        def outcomes(source: str) -> list[bool]:
            message = {"text": "何?", "files": [{**PICTURE, "path": source}]}
            seen = []
            for taker in takers:
                session = f"visitor{source}{taker['id']}"
                data = [message if each in boxes else None for each in taker["inputs"]]
                body = {"data": data, "fn_index": taker["id"], "session_hash": session}
                client.post("gradio_api/queue/join", json=body)
                stream = client.get("gradio_api/queue/data", params={"session_hash": session}).text
                seen.append('"success":true' in stream.replace(" ", ""))
            return seen

        assert any(outcomes(uploaded))  # what the page itself does, is done
        for source in sources:
            assert not any(outcomes(source))
    inner.shutdown()
    inner.server_close()
    assert asked_for == []


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
def page(chat_model, processor, free_port):
    """Address of the page, served in threads."""
    session = ChatSession(chat_model, processor)
    interface, _ = web.build_page(session, Settings(options={"do_sample": False, "max_new_tokens": 24}))
    yield web.launch(interface, "127.0.0.1", free_port)
    interface.close()


class Browser:
    """A visitor with a browser."""

    def __init__(self, address: str):
        from selenium import webdriver

        browser, driver = chromium()
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1100,900", "--lang=ja")
        for flag in (*flags, "--disable-dev-shm-usage", "--disable-background-networking"):
            options.add_argument(flag)
        options.add_experimental_option("prefs", {"intl.accept_languages": "ja,en"})
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(driver))
        self.driver.get(address)
        self.find("textarea")

    def wait(self, what, description: str, seconds: float = 90):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := what():
                return found
            time.sleep(0.1)
        raise AssertionError(f"waited for {description}; the page says: {self.text()}")

    def all(self, selector: str):
        return self.driver.find_elements("css selector", selector)

    def find(self, selector: str):
        return self.wait(lambda: self.all(selector), selector)[0]

    def text(self) -> str:
        return self.driver.execute_script("return document.body.innerText")

    def answers(self) -> list[str]:
        script = (
            "return [...document.querySelectorAll('.message.bot, .bot.message')].map(each => each.innerText.trim())"
        )
        return self.driver.execute_script(script)

    def ask(self, question: str, *files: Path) -> str:
        """Types a question, with pictures, and returns the answer when it has been spoken to its end."""
        before = len(self.answers())
        if files:
            self.find("input[type=file]").send_keys("\n".join(map(str, files)))
            self.wait(lambda: len(self.all(".thumbnail-item, .thumbnail-image")) >= len(files), "the uploads")
        box = self.find("textarea")
        box.send_keys(question)
        self.find("button.submit-button").click()
        self.wait(lambda: len(self.answers()) > before and self.answers()[-1], "an answer")
        self.wait(lambda: self.all("button.submit-button") and not self.all("button.stop-button"), "the end of it")
        return self.answers()[-1]

    def hosts(self) -> set[str]:
        """Whom the page has asked for anything."""
        import json
        from urllib.parse import urlsplit

        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        sent = (
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        )
        return {urlsplit(url).hostname or "" for url in sent if url.startswith(("http", "ws"))}


@pytest.fixture
def browser(request):
    chromium()
    page = request.getfixturevalue("page")
    browser = Browser(page)
    yield browser
    browser.driver.quit()


def plain(text: str) -> str:
    """Text as a page shows it: white space is one space."""
    return " ".join(text.split())


def test_in_a_browser(browser, page, chat_model, processor, pictures, picture_files):
    """Upload, ask, read the streamed Japanese answer, ask on, be refused, clear; another visitor sees none of it."""
    told = ChatSession(chat_model, processor)
    options = {"do_sample": False, "max_new_tokens": 24}
    assert plain(browser.ask("何が写ってる?", picture_files[0])) == plain(
        told.ask("何が写ってる?", pictures[:1], **options)
    )
    assert plain(browser.ask("何色?")) == plain(told.ask("何色?", **options))
    assert "設定" in browser.text()  # Japanese labels for a Japanese browser
    assert browser.all(".user img")
    sharing = [button for button in browser.all("button[aria-label='共有']") if button.is_displayed()]
    assert sharing == []  # it would send the picture to a site on the Internet

    other = Browser(page)
    try:
        assert other.answers() == []
        assert plain(other.ask("何色?")) == plain(ChatSession(chat_model, processor).ask("何色?", **options))
        assert other.all(".user img") == []
    finally:
        other.driver.quit()

    browser.find("button[aria-label='会話をクリア']").click()
    browser.wait(lambda: not browser.answers(), "an empty page")
    assert plain(browser.ask("何色?")) == plain(ChatSession(chat_model, processor).ask("何色?", **options))
    assert browser.hosts() <= {"127.0.0.1"}


def test_a_hostile_upload_in_a_browser(browser, tmp_path):
    evil = tmp_path / "evil.png"
    evil.write_bytes(b"\x89PNG\r\n\x1a\n" + b"evil" * 50)
    before = len(browser.answers())
    browser.find("input[type=file]").send_keys(str(evil))
    browser.wait(lambda: browser.all(".thumbnail-item, .thumbnail-image"), "the upload")
    browser.find("textarea").send_keys("何?")
    browser.find("button.submit-button").click()
    browser.wait(lambda: "is not a picture of a known format" in browser.text(), "the refusal")
    assert "Traceback" not in browser.text() and str(tmp_path) not in browser.text()
    assert len(browser.answers()) <= before + 1
