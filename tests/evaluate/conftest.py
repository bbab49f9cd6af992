"""Small benchmark files in their owners' layouts, and a tiny checkpoint to be examined."""

import io
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def picture_bytes(seed: int, kind: str = "PNG") -> bytes:
    """A small picture of noise; another seed is another picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def cell(seed: int) -> dict:
    """A picture as `datasets` stores it in Parquet."""
    return {"bytes": picture_bytes(seed), "path": f"{seed}.png"}


def write_table(path: Path, columns: dict):
    """Parquet as `datasets` writes it: the columns of pictures are declared in the schema's metadata."""
    table = pa.table(columns)
    pictures = [name for name in columns if name.startswith("image") and name != "image_id"]
    features = {name: {"_type": "Image"} for name in pictures}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_answers(path: Path, answers: dict[str, str]) -> Path:
    """Answers in the layout of `predictions.jsonl`."""
    return write_lines(path, [{"id": name, "question": "", "answer": said} for name, said in answers.items()])


@pytest.fixture
def stair(tmp_path) -> Path:
    """STAIR Captions v1.2: two pictures with three and two captions, and one without any."""
    folder = tmp_path / "stair"
    (folder / "val2014").mkdir(parents=True)
    names = {
        42: "COCO_val2014_000000000042.jpg",
        73: "COCO_val2014_000000000073.jpg",
        99: "COCO_val2014_000000000099.jpg",
    }
    for number, name in names.items():
        (folder / "val2014" / name).write_bytes(picture_bytes(number, "JPEG"))
    images = [{"id": number, "file_name": name, "height": 24, "width": 32} for number, name in names.items()]
    captions = [
        (73, "茶色の犬が草の上を走っている"),
        (42, "白い猫がソファーの上で寝ている"),
        (42, "ソファーで猫が眠っている"),
        (73, "犬が芝生を走っている"),
        (42, "白い猫が寝ている"),
    ]
    annotations = [{"id": n, "image_id": image, "caption": text} for n, (image, text) in enumerate(captions)]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
    (folder / "stair_captions_v1.2_val.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "stair_captions_v1.2_val.json"


@pytest.fixture
def visual_genome(tmp_path) -> Path:
    """Yahoo Japan's `question_answers.json`, with pictures in both of Visual Genome's folders."""
    folder = tmp_path / "vg"
    for number, place in ((2317429, "VG_100K"), (498335, "VG_100K_2")):
        (folder / place).mkdir(parents=True)
        (folder / place / f"{number}.jpg").write_bytes(picture_bytes(number % 1000, "JPEG"))

    def qa(qa_id: int, image_id: int, question: str, answer: str) -> dict:
        common = {"a_objects": [], "q_objects": []}
        return {"qa_id": qa_id, "image_id": image_id, "question": question, "answer": answer, **common}

    entries = [
        {"id": 2317429, "qas": [qa(1, 2317429, "何色ですか?", "赤"), qa(2, 2317429, "いつですか?", "日中")]},
        {"id": 498335, "qas": [qa(3, 498335, "動物は何ですか?", "犬です。"), qa(4, 498335, "何人いますか?", "2人")]},
    ]
    (folder / "question_answers.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder / "question_answers.json"


@pytest.fixture
def vg500(tmp_path) -> Path:
    """Sakana AI's JA-VG-VQA-500: a folder with `data/test-….parquet`; `coco_id` is a float, or NaN."""
    folder = tmp_path / "JA-VG-VQA-500" / "data"
    folder.mkdir(parents=True)

    def qas(*pairs: tuple[int, str, str]) -> list[dict]:
        return [{"qa_id": n, "question": q, "answer": a, "a_objects": [], "q_objects": []} for n, q, a in pairs]

    rows = {
        "image_id": [11, 12],
        "url": ["", ""],
        "width": [32, 32],
        "height": [24, 24],
        "coco_id": [9.0, float("nan")],
        "flickr_id": [1.0, 2.0],
        "image": [cell(11), cell(12)],
        "qas": [
            qas((101, "これは何ですか?", "赤い消防車"), (102, "色は?", "赤")),
            qas((103, "空の色は何ですか?", "青い"), (104, "何頭いますか?", "3頭の牛")),
        ],
    }
    write_table(folder / "test-00000-of-00001.parquet", rows)
    return folder.parent


@pytest.fixture
def wild(tmp_path) -> Path:
    """JA-VLM-Bench-In-the-Wild: two questions on one picture, one on another."""
    folder = tmp_path / "wild"
    folder.mkdir()
    rows = {
        "image": [cell(21), cell(21), cell(22)],
        "question": ["ここはどこですか?", "季節はいつですか?", "何が写っていますか?"],
        "answer": ["京都の金閣寺です。", "紅葉しているので秋です。", "富士山と桜が写っています。"],
    }
    write_table(folder / "test-00000-of-00001.parquet", rows)
    return folder


@pytest.fixture
def heron(tmp_path) -> Path:
    """Turing's Japanese-Heron-Bench: questions, contexts, GPT-4's answers, pictures in `images/`."""
    folder = tmp_path / "heron"
    (folder / "images").mkdir(parents=True)
    for number in (1, 2):
        (folder / "images" / f"00{number}.jpg").write_bytes(picture_bytes(30 + number, "JPEG"))
    kinds = ["conv", "detail", "complex", "conv"]
    images = ["001.jpg", "001.jpg", "002.jpg", "002.jpg"]
    texts = ["鳥は何羽いますか？", "詳しく説明してください。", "なぜ有名ですか？", "何色ですか？"]
    both = zip(kinds, images, texts, strict=True)
    write_lines(
        folder / "questions_ja.jsonl",
        [
            {"question_id": n, "image": image, "category": kind, "image_category": "art", "text": text}
            for n, (kind, image, text) in enumerate(both)
        ],
    )
    write_lines(
        folder / "context_ja.jsonl",
        [{"id": f"00{n}", "image": f"00{n}.jpg", "caption": f"{n}羽の鳥の絵です。"} for n in (1, 2)],
    )
    write_lines(
        folder / "answers_gpt4.jsonl",
        [{"question_id": n, "images": images[n], "prompt": texts[n], "text": f"答え{n}"} for n in range(4)],
    )
    return folder


@pytest.fixture
def jmmmu(tmp_path) -> Path:
    """JMMMU: a folder a subject; `options` is a Python list written as text, up to seven pictures."""
    folder = tmp_path / "JMMMU"

    def write(subject: str, rows: list[dict]):
        (folder / subject).mkdir(parents=True)
        images = {f"image_{n}": [row.get(f"image_{n}") for row in rows] for n in range(1, 8)}
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns = {name: pa.array(column, kind) for name, column in images.items()}
        for name in ("id", "question", "options", "answer", "question_type", "explanation"):
            columns[name] = pa.array([row.get(name, "") for row in rows])
        write_table(folder / subject / "test-00000-of-00001.parquet", columns)

    choice, free = "multiple-choice", "open"
    question = "<image 1>と<image 2>のうち、正しいのはどれですか。"
    options = "['自由の女神', '富士山', '東京塔', '<image 3>']"
    write(
        "Japanese_Art",
        [
            {
                "id": "validation_Japanese_Art_1",
                "question": question,
                "options": options,
                "answer": "B",
                "question_type": choice,
                "image_1": cell(41),
                "image_2": cell(42),
                "image_3": cell(43),
                "image_4": cell(44),
            }
        ],
    )
    write(
        "Math",
        [
            {
                "id": "validation_Math_7",
                "question": "<image 1> 長さはいくつですか。",
                "options": "[]",
                "answer": "12.5",
                "question_type": free,
                "image_1": cell(45),
            },
            {
                "id": "validation_Math_8",
                "question": "<image1> 答えはどれですか。",
                "options": "['1', '2']",
                "answer": "A",
                "question_type": choice,
                "image_1": cell(46),
            },
        ],
    )
    return folder


@pytest.fixture
def mecha(tmp_path) -> Path:
    """MECHA-ja: two questions with four options each, `answer` from 0."""
    folder = tmp_path / "MECHA-ja"
    folder.mkdir()
    rows = {
        "question": ["これは何祭りですか?", "場所は?"],
        "options": [["祇園祭", "ねぶた祭", "七夕", "天神祭"], ["京都", "青森", "仙台", "大阪"]],
        "answer": [1, 3],
        "answer_type": [0, 1],
        "background_text": ["青森の祭り", None],
        "image": [cell(61), cell(62)],
    }
    write_table(folder / "test-0.parquet", rows)
    return folder


@pytest.fixture
def jdocqa(tmp_path) -> Path:
    """JDocQA: three questions on one page or two, of the types factoid, yesno and open-ended."""
    folder = tmp_path / "JDocQA"
    folder.mkdir()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = {
        "question_id": [11, 12, 13],
        "question": ["締切は?", "載っていますか?", "要約してください。"],
        "answer": ["10月3日", "はい", "事業の目的を説明している。"],
        "answer_type": [1, 0, 3],
        "image_0": [cell(71), cell(72), cell(73)],
        "image_1": pa.array([cell(74), None, None], kind),
        "image_2": pa.array([None, None, cell(75)], kind),
        "image_3": pa.array([None, None, None], kind),
    }
    write_table(folder / "test-0.parquet", rows)
    return folder


@pytest.fixture
def own(tmp_path) -> Path:
    """JSON lines of messages with two fields, three questions on each of four drawings."""
    (tmp_path / "drawings").mkdir()
    rows = []
    for number in range(4):
        name = f"drawings/{number}.png"
        (tmp_path / name).write_bytes(picture_bytes(50 + number))
        for category, question, answer in (
            ("name", "何が写ってる?", "犬が写っています。"),
            ("colour", "何色?", "赤いです。"),
            ("edible", "食べられる?", "いいえ、食べられません。"),
        ):
            content = [{"type": "image"}, {"type": "text", "text": question}]
            messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
            fields = {"category": category, "artist": "twemoji" if number % 2 else "openmoji"}
            rows.append({"id": f"{number}-{category}", "images": [name], "messages": messages, **fields})
    return write_lines(tmp_path / "held_out.jsonl", rows)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, make_model, processor) -> Path:
    """A tiny checkpoint folder whose model ends its answers now and then."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    model = make_model()
    model.generation_config.eos_token_id = 3
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lines():
    """`lines(path, rows)` writes JSON lines; see [`write_lines`]."""
    return write_lines


@pytest.fixture(scope="session")
def answers():
    """`answers(path, {id: answer})`; see [`write_answers`]."""
    return write_answers


@pytest.fixture
def serve_checkpoint():
    """`serve_checkpoint(folder)` serves it on loopback by `jminigpt4 serve`'s server, and gives its address."""
    pytest.importorskip("uvicorn")
    from jminigpt4.chat import serving

    started = []

    def serve(folder: Path) -> str:
        server = serving.build_server(str(folder), "cpu", "float32")
        bound = serving._bound_socket("127.0.0.1", 0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        started.append((server, bound, thread))
        return f"http://127.0.0.1:{bound.getsockname()[1]}"

    yield serve
    for server, bound, thread in started:
        server.should_exit = True
        thread.join(20)
        bound.close()
