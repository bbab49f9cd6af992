"""A processor that needs no files, drawings, and the tiny models' query features."""

import gc

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jminigpt4 import JMiniGPT4ImageProcessor, JMiniGPT4Processor

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}Q:"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}[<ImageHere>]{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}A:{% else %}{{ message['content'][0]['text'] }}{% endif %}"
    "{% endfor %}"
)


@pytest.fixture(scope="session")
def processor() -> JMiniGPT4Processor:
    """One token per character, ids as the tiny models expect: bos 2, eos 3, image 512, pictures of 28 pixels."""
    letters = {chr(code): code for code in range(10, 500)}
    japanese = "犬猫車赤青黄色何写いすがまでのはに真をて木花空"
    letters |= {character: 127 + index for index, character in enumerate(japanese)}
    vocabulary = {token: code for token, code in letters.items() if code < 500 and len(token) == 1}
    taken = {}
    for token, code in vocabulary.items():
        taken[code] = token  # the Japanese characters replace the controls and accents with the same ids
    vocabulary = {token: code for code, token in taken.items()}
    vocabulary |= {"<pad>": 0, "<unk>": 1, "<s>": 2, "</s>": 3, "<ImageHere>": 512}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.add_special_tokens({"additional_special_tokens": ["<ImageHere>"]})
    image_processor = JMiniGPT4ImageProcessor(size={"height": 28, "width": 28})
    return JMiniGPT4Processor(image_processor, fast, num_query_tokens=4, chat_template=TEMPLATE)


@pytest.fixture(scope="session", autouse=True)
def _cheap_collections():
    """The trainer collects garbage before every run; what was imported before is none, and looking at it is slow."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def query_features() -> torch.Tensor:
    """Query features of eight pictures for the tiny models, `(8, 4, 32)`."""
    return torch.randn(8, 4, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def make_article_processor(reference):
    """The article's processor over the fixtures' tokenizer, with their 8 query tokens."""

    def make() -> JMiniGPT4Processor:
        from jminigpt4.convert.formats import chat_template_for, prompt_format
        from jminigpt4.convert.tokenizer import prepare_tokenizer

        tokenizer = prepare_tokenizer(reference / "tokenizer", vocab_size=512)[0]
        article = prompt_format("article-3.6b")
        return JMiniGPT4Processor(
            JMiniGPT4ImageProcessor(size={"height": 56, "width": 56}),
            tokenizer,
            num_query_tokens=8,
            chat_template=chat_template_for(article, tokenizer),
            newline=article.newline,
            stop_strings=article.stop_strings,
        )

    return make
