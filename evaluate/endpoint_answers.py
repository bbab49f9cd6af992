"""A model behind an OpenAI-compatible server that answers the items of a benchmark."""

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from ..data.pictures import Picture
from ..inference.endpoint import Endpoint, RefusedRequest, image_part
from .generation import Generation
from .items import Item, picture_content
from .predictions import Prediction

PICTURES_HELD = 64  # encoded, for the other questions about them


class EndpointAnswerer:
    """Asks a server what [`Answerer`] asks a model of ours, `batch_size` requests at a time.

    Args:
        endpoint: The server.
        generation: How answers are generated.
        items: All items of the benchmark.

    Raises:
        ValueError: Answers are to be found by beam search, which the interface does not have.
    """

    unanswerable: Sequence[Item] = ()

    def __init__(self, endpoint: Endpoint, generation: Generation, items: Sequence[Item]):
        if generation.num_beams > 1:
            raise ValueError("A server is not asked for beam search: leave --num-beams out.")
        self.endpoint, self.generation, self.items = endpoint, generation, items
        self._image_part = functools.lru_cache(PICTURES_HELD)(_image_part)

    def answers(self, done: frozenset[str] | set[str] = frozenset()) -> Iterator[list[Prediction]]:
        """Answers as they come.

        A request that the server refuses counts as answered with nothing and bears the reason, unless it is the first
        that comes back: then the model is probably none for such questions.

        Args:
            done: Ids that have been answered before; they are not asked again.

        Raises:
            ValueError: A picture cannot be read, or the server takes no such request.
            ConnectionError: The server stopped answering.
        """
        with ThreadPoolExecutor(self.generation.batch_size) as pool:
            try:
                asked = [pool.submit(self._answer, item) for item in self.items if item.id not in done]
                for number, answered in enumerate(as_completed(asked)):
                    prediction = answered.result()
                    if prediction.refused and not number and not done:
                        raise ValueError(prediction.refused)
                    yield [prediction]
            finally:
                pool.shutdown(cancel_futures=True)

    def _answer(self, item: Item) -> Prediction:
        chosen = self.generation
        options: dict[str, Any] = {"temperature": 0.0}
        if chosen.do_sample:
            options = {"temperature": chosen.temperature, "top_p": chosen.top_p, "seed": chosen.seed}
        try:
            said = self.endpoint.complete(self._messages(item), chosen.max_new_tokens, **options)
        except RefusedRequest as error:
            return Prediction(item.id, item.question, "", refused=str(error))
        return Prediction(item.id, item.question, said.text.strip(), not said.finished)

    def _messages(self, item: Item) -> list[dict[str, Any]]:
        """The item's conversation with its pictures in their places."""
        pictures = iter(item.pictures)
        messages = []
        for message in item.messages:
            content = message["content"]
            if not isinstance(content, str):
                content = [self._image_part(next(pictures)) if part["type"] == "image" else part for part in content]
            messages.append({**message, "content": content})
        return messages


def _image_part(picture: Picture) -> dict[str, Any]:
    return image_part(picture_content(picture), f"The picture {picture.name}")
