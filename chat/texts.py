"""What terminal and web page say, in English and Japanese: one table, and how an error comes by its Japanese."""

import functools
import locale
import os
import re
import string
from collections.abc import Mapping
from typing import Literal

Language = Literal["en", "ja"]

# Said beside every answer of a conversation without a picture.
NO_PICTURE = "No picture was shown: the model answered without seeing one."
# English to Japanese; what stands in braces is filled in. Errors are raised in English, and found here by their text.
JAPANESE = {
    # The conversation in a terminal.
    "Show a picture and talk about it in Japanese: /image FILE, or drag a file in.  /help  /exit": (
        "絵を見せて、日本語で話しましょう。 /image FILE かドラッグで絵が入ります。  /help  /exit"
    ),
    "show pictures with the next question; so does a file dragged in": "次の質問で絵を見せる（ドラッグでも）",
    "list the pictures for the next question": "次の質問で見せる絵の一覧",
    "take these pictures back, or all": "見せる絵を番号で、またはすべて取り消す",
    "take the last question back": "一つ戻る",
    "forget the conversation": "最初から",
    "write the conversation and its pictures": "会話と絵を保存",
    "go on with a saved conversation": "保存した会話の続き",
    "who the model is to be; nothing: no one": "モデルの役柄（空にすると無し）",
    "this list": "この一覧",
    "leave (also Ctrl-D)": "終わる（Ctrl-D でも）",
    "Ctrl-C stops the answer only. Tab completes commands and files.": (
        "Ctrl-C は答えだけを止めます。Tab でコマンドとファイルを補います。"
    ),
    "For the next question ({count}):": "次の質問で見せる絵（{count} 枚）:",
    "No pictures wait for the next question.": "次の質問で見せる絵はありません。",
    "There is no picture {number}: /pictures lists them.": "{number} 番の絵はありません。/pictures で一覧できます。",
    "undone: {question}": "取り消しました: {question}",
    "saved: {path}": "保存しました: {path}",
    "not saved": "保存しませんでした",
    "forgotten": "忘れました",
    "(stopped)": "（止めました）",
    "/exit leaves.": "終わるには /exit",
    "persona: {persona}": "役柄: {persona}",
    "persona: none": "役柄: なし",
    "{path} exists. Overwrite it? [y/N] ": "{path} はもうあります。上書きしますか? [y/N] ",
    "{path} exists already, and nobody can be asked here: choose another name.": (
        "{path} はもうあります。ここでは確かめられないので、別の名前にしてください。"
    ),
    "(The oldest turns are forgotten, {count} of them: the context window is full.)": (
        "（会話が長くなったので、古いやりとりを {count} 回分忘れました。）"
    ),
    # The same in both.
    NO_PICTURE: "絵が見せられていません。モデルは何も見ずに答えました。",
    "Ask something, or show a picture.": "質問を書くか、絵を見せてください。",
    "The question takes {tokens} tokens with its {pictures} pictures, the persona and the examples, but the context "
    "window of this model has {window}: ask shorter, or show fewer pictures.": (
        "質問が長すぎます（絵 {pictures} 枚と合わせて {tokens} トークン、上限は {window}）。"
        "短くするか、絵を減らしてください。"
    ),
    # Commands that cannot be carried out.
    "There is no command {command}; /help lists them.": "{command} というコマンドはありません。/help で一覧できます。",
    "Name a file: {command} FILE": "ファイルを指定してください: {command} FILE",
    "There is nothing to undo.": "取り消すものがありません。",
    "{path} is not a transcript written by this program: {reason}": (
        "{path} はこのプログラムが保存した会話ではありません。"
    ),
    "{path} is not a transcript written by this program: `{field}`{reason}": (
        "{path} はこのプログラムが保存した会話ではありません（{field} が違います）。"
    ),
    "{path} is not the picture that the transcript was made with.": "{path} は会話を保存したときの絵ではありません。",
    "Message {number} is by {role}, expected {expected}.": "{number} 番目の発言の順番が違います（{role}）。",
    "Message {number} is a question without an answer.": "{number} 番目の発言は、答えのない質問です。",
    "Message {number} has content that is neither text nor a list of image and text parts.": (
        "{number} 番目の発言は、文でも、絵と文の並びでもありません。"
    ),
    "{what} is not UTF-8 but {text}: convert it, for instance with iconv.": (
        "{what}が UTF-8 ではありません（{text}）。iconv などで変換してください。"
    ),
    "The line": "この行",
    "The question": "質問",
    "The persona": "役柄",
    "Line {number} of standard input": "標準入力の {number} 行目",
    "Standard input is closed, so nothing can be asked there: give a QUESTION.": (
        "標準入力が閉じているので、そこでは質問できません。質問をコマンドに書いてください。"
    ),
    # The command line.
    "Expected a MODEL and a QUESTION, got {count} words: put the question in quotes.": (
        "MODEL と QUESTION のところに {count} 語あります。質問を引用符で囲んでください。"
    ),
    "--port must be from 0 to 65535, got {port}.": "--port は 0 から 65535 までです（{port}）。",
    "--temperature must be a finite number, got {number}.": "--temperature には数を書いてください（{number}）。",
    "--web takes no {option}.": "--web では{option}は使えません。",
    "a QUESTION": "質問",
    "Only --web takes {option}.": "{option} は --web のときだけ使えます。",
    "--greedy takes no {option}.": "--greedy のとき {option} は使えません。",
    "--auth is USER:PASSWORD, and one of them is missing.": "--auth は「名前:パスワード」の形で書いてください。",
    "The web page needs gradio: {command}.": "ウェブページには gradio が要ります。{command} で入ります。",
    # What the system refuses.
    "{path}: No such file or directory.": "{path} が見つかりません。",
    "{path}: Permission denied.": "{path} を開く権限がありません。",
    "{path}: Is a directory.": "{path} はフォルダーです。",
    "{path}: Not a directory.": "{path} の途中がフォルダーではありません。",
    "{path}: No space left on device.": "ディスクがいっぱいで {path} を書けません。",
    "{path}: Read-only file system.": "{path} は書き込めない場所にあります。",
    "{path}: File name too long.": "{path} は名前が長すぎます。",
    "{path}: File exists.": "{path} はもうあります。",
    # Pictures that are refused.
    "picture {number}": "{number} 枚目の絵",
    "picture": "絵",
    "No picture at {path}.": "{path} に絵がありません。",
    "{path} is not a file.": "{path} はファイルではありません。",
    "{name} names the home of a user whom this machine does not know.": "{name} というユーザーはこの機械にいません。",
    "{name} is an address: pictures are fetched with --allow-addresses only.": (
        "{name} はアドレスです。--allow-addresses を付けたときだけ取りに行きます。"
    ),
    "{name} is empty (0 bytes).": "{name}は空です（0 バイト）。",
    "{name} is empty ({width} x {height} pixels).": "{name}は空です（{width} x {height} 画素）。",
    "{name} has {size} bytes; at most {limit} are taken.": (
        "{name}が大きすぎます（{size} バイト）。{limit} バイトまでです。"
    ),
    "{name} has more than {limit} bytes.": "{name}が大きすぎます。{limit} バイトまでです。",
    "{name} has {width} x {height} = {pixels} pixels; at most {limit} are decoded.": (
        "{name}が大きすぎます（{width} x {height} = {pixels} 画素）。{limit} 画素までです。"
    ),
    "{name} has {width} x {height} = {pixels} pixels; at most {limit} are decoded. Shrink it, or raise the image "
    "processor's `max_pixels`.": (
        "{name}が大きすぎます（{width} x {height} = {pixels} 画素）。{limit} 画素までに縮めてください。"
    ),
    "{name} has {width} x {height} pixels; a side has at most {limit}.": (
        "{name}が細長すぎます（{width} x {height} 画素）。一辺は {limit} 画素までです。"
    ),
    "{name} has more pixels than Pillow opens: shrink it.": "{name}が大きすぎます。縮めてください。",
    "{name} is not a picture of a known format ({formats}).": "{name}は開ける形式の絵ではありません（{formats}）。",
    "{name} is of the format {kind}; decoded are {formats}: convert it.": (
        "{name}の形式 {kind} は開けません。{formats} に変換してください。"
    ),
    "{name} is an HEIC picture: pip install pillow-heif, or save it as JPEG.": (
        "{name}は HEIC 形式です。pip install pillow-heif で読めるようになります。または JPEG で保存し直してください。"
    ),
    "{name} is damaged or cut off: it cannot be decoded to its end.": "{name}は壊れているか、途中で切れています。",
    "{name} is damaged: it cannot be decoded.": "{name}は壊れていて開けません。",
    "{name} is damaged: it holds fewer pixels than its header states.": "{name}は壊れています（画素が足りません）。",
    "{name} is damaged: its TIFF tags are larger than the file.": "{name}は壊れています（TIFF のタグが多すぎます）。",
    "{name} is a JPEG of more than {limit} scans.": (
        "{name}は走査が多すぎる JPEG です（{limit} 回まで）。保存し直してください。"
    ),
    "{name} has more than {limit} pieces beside its pixels: save it anew.": (
        "{name}は画素のほかの部品が多すぎます（{limit} 個まで）。保存し直してください。"
    ),
    "{name} is a TIFF of {count} strips or tiles; at most {limit} are decoded.": (
        "{name}は {count} 片に分かれた TIFF です（{limit} 片まで）。保存し直してください。"
    ),
    "{name} is a TIFF with tiles of {width} x {height} pixels, larger than it is itself.": (
        "{name}は絵より大きなタイル（{width} x {height} 画素）の TIFF です。保存し直してください。"
    ),
    "{name} holds values that are not finite.": "{name}に数でない値があります。",
    "{url} answered with status {status}.": "{url} の返事は {status} でした。",
    "{url} took longer than {seconds} seconds.": "{url} は {seconds} 秒たっても終わりません。",
    "{url} is no http or https address.": "{url} は http や https のアドレスではありません。",
    "{url} is behind more than {count} redirections.": "{url} は {count} 回より多く転送されます。",
    "{url} could not be fetched.": "{url} を取ってこられません。",
    "{count} pictures at once; at most {limit} are taken.": "一度に {count} 枚は多すぎます。{limit} 枚までです。",
    "{name} was not uploaded.": "{name}は送られていません。",
    "Pictures are uploaded here, not fetched from addresses.": "絵は送ってください。アドレスからは取りに行きません。",
    # The web page.
    "Show a picture and talk about it in Japanese.": "絵や写真を見せて、日本語で話しましょう。",
    "Add a picture and ask": "絵を入れて、質問してください",
    "Settings": "設定",
    "Another answer each time (sampling)": "毎回ちがう答え（サンプリング）",
    "Temperature (higher is freer)": "温度（高いほど自由に）",
    "top-p (lower is safer)": "top-p（低いほど手堅く）",
    "Length of answers (tokens)": "答えの長さ（トークン）",
    "The oldest turns are forgotten: the context window is full.": "会話が長くなったので、古い部分を忘れました。",
    "The conversation is no longer there; this is a new one.": "会話を続けられません。最初からになります。",
    "Stopped before an answer; edit the question to ask again.": "答える前に止めました。編集するとまた聞けます。",
    "Something went wrong here; the operator can see what.": "答えられませんでした。詳しいことは運営者が見られます。",
    "Nobody can listen on {host}, port {port}: it is taken, or not of this machine.": (
        "{host} のポート {port} では待ち受けできません。使われているか、この機械のアドレスではありません。"
    ),
    "{address}  (Ctrl-C ends)": "{address}  （Ctrl-C で終わります）",
    "This page is at another address.": "このページのアドレスではありません。",
    # What gradio's page says by itself, in English only.
    "Error": "エラー",
    "Warning": "ご注意",
    "Info": "お知らせ",
    "File(s) exceed the maximum allowed size of {limit}: {names}": "大きすぎます（{limit} まで）: {names}",
    "Invalid file type: {names}. Only {kinds} allowed.": "絵ではないようです: {names}。開ける形式は {kinds} です。",
    "Invalid file types: {names}. Only {kinds} allowed.": "絵ではないようです: {names}。開ける形式は {kinds} です。",
    "This application is currently busy. Please try again.": "順番待ちが多すぎます。少し待って、もう一度どうぞ。",
    "Connection errored out.": "接続に失敗しました。",
    "Connection Lost": "接続が切れました",
    "Connection to the server was lost. Attempting reconnection...": "サーバーにつなぎ直しています…",
}


def terminal_language(environment: Mapping[str, str] | None = None) -> Language:
    """Japanese where the locale of messages is Japanese, English elsewhere: the first that is set of `LC_ALL`,
    `LC_MESSAGES` and `LANG` (POSIX, section 8.2), or without any, as on Windows, the user's own locale.

    Args:
        environment: Environment variables; the process's own by default.
    """
    given = os.environ if environment is None else environment
    names = (given.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    name = next(filter(None, names), None) or locale.getlocale()[0] or ""
    return "ja" if re.match(r"ja([_.@-]|$)|japanese", name, re.IGNORECASE) else "en"


def browser_language(accept_language: str | None) -> Language:
    """Japanese where the language that a browser names first is Japanese, as its page then is, too; English elsewhere.

    Args:
        accept_language: Value of the request's header `Accept-Language`; browsers name the preferred one first.
    """
    return "ja" if re.match(r"\s*ja\b", accept_language or "", re.IGNORECASE) else "en"


def phrase(language: Language, english: str, **values: object) -> str:
    """A text of the table with its values.

    Raises:
        KeyError: The table does not have it.
    """
    return (JAPANESE[english] if language == "ja" else english).format(**values)


def explained(error: Exception, language: Language) -> str:
    """What is said of an error, in one line: its own words, or their Japanese where the table has them."""
    said = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror is not None:  # else the number of the error would come first
        said = f"{error.filename}: {error.strerror}." if error.filename is not None else f"{error.strerror}."
    return translated(said, language)


def translated(said: str, language: Language) -> str:
    """An English text that was filled in, in another language; as it is where the table does not have it."""
    if language == "en":
        return said
    for pattern, japanese in _patterns():
        if found := pattern.fullmatch(said):
            return japanese.format(**{name: translated(value, language) for name, value in found.groupdict().items()})
    return said


@functools.cache
def _patterns() -> list[tuple[re.Pattern, str]]:
    """Patterns of the English texts, those with the most words first, and their Japanese."""
    patterns = []
    for english, japanese in JAPANESE.items():
        parsed = list(string.Formatter().parse(english))
        expression = "".join(re.escape(words) + (f"(?P<{name}>.+?)" if name else "") for words, name, _, _ in parsed)
        patterns.append((sum(len(words) for words, *_ in parsed), re.compile(expression, re.DOTALL), japanese))
    return [(pattern, japanese) for _, pattern, japanese in sorted(patterns, key=lambda each: -each[0])]
