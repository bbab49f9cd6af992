# Copyright 2026 The jminigpt4 authors.
#
# Licensed under the MIT License; you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     https://opensource.org/license/mit
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The language model's family: what its causal model does behind its base, and what keeps it from standing here."""

import copy
import functools
import inspect
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast

# transformers 5.24 calls `cache` what was `past_key_values` before, in arguments as in outputs.
BASE_OUTPUTS = {field.name for field in fields(BaseModelOutputWithPast)}
CACHE_NAME = "cache" if "cache" in BASE_OUTPUTS else "past_key_values"


def check_models(config: Any):
    """Refuses what is no causal language model of transformers.

    Raises:
        ValueError: There is no such model without a head, or none with one.
    """
    for door, lacking in ((AutoModel, "no model without a head"), (AutoModelForCausalLM, "no causal language model")):
        if type(config) not in door._model_mapping:
            raise ValueError(
                f"The language model is of type {config.model_type!r}, which has {lacking} in transformers: it cannot "
                "be the language model here. Take another one."
            )


def model_without_head(config: Any) -> Any:
    """The language model of a configuration, `AutoModel`'s.

    Raises:
        ValueError: It is no causal language model of transformers.
    """
    check_models(config)
    return AutoModel.from_config(config)


class Family:
    """What the language model's own `ForCausalLM` does around its linear head, done by its own code.

    Behind its base a family may do more than multiply with its head: Gemma 2 caps the logits, MiniCPM3 divides the
    hidden states. So its `forward` is run, on hidden states, base and head of the model at hand in the place of its
    own. This is no module: there is nothing in it to move, save or count.

    Attributes:
        base_name (`str`), head_name (`str`): Of base and head in the family's causal model.
        in_features (`int`), out_features (`int`), bias (`bool`): Of the family's head.
        is_plain (`bool`): The family multiplies with its head and does nothing else.
        text_scale (`float`): What the family multiplies embeddings with where it looks them up itself, and not where
            it is given them: Falcon-H1's `embedding_multiplier`.

    Raises:
        ValueError: The family's causal model is more than `language_model` and one linear layer behind it, or it
            takes no embeddings, no cache or no attention mask, or has no row for every token.
    """

    def __init__(self, config: Any, language_model: nn.Module):
        with torch.device("meta"), init.no_init_weights():
            self.shell: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
        head, children = self.shell.get_output_embeddings(), dict(self.shell.named_children())
        base_name = next((name for name, child in children.items() if isinstance(language_model, type(child))), None)
        head_name = next((name for name, child in children.items() if child is head), None)
        linear = [f"{base_name}.", f"{head_name}.weight", f"{head_name}.bias"]
        more = [key for key in self.shell.state_dict() if not key.startswith(tuple(linear))]
        arguments = inspect.signature(language_model.forward).parameters
        # A language model with code of its own may still call it by the old name.
        self.cache_name = next((name for name in (CACHE_NAME, "past_key_values") if name in arguments), "")
        table = type(language_model.get_input_embeddings())
        tables: list[Any] = [each for each in language_model.modules() if type(each) is table]
        by_ids = sorted({type(each).__name__ for each in language_model.modules() if _needs_ids(type(each))})
        for refused, trait in (
            (base_name is None, f"is not built on {type(language_model).__name__}"),
            (type(head) is not nn.Linear or more, f"has more than a linear layer behind its base ({', '.join(more)})"),
            ("inputs_embeds" not in arguments, "takes no embeddings, which is what pictures are"),
            (len(tables) > 1 and table is not nn.Embedding, "looks every token up in two tables"),
            (not self.cache_name, "keeps no keys and values"),
            ("attention_mask" not in arguments, "takes no attention mask, so that it would read padding as text"),
            (
                tables[0].weight.shape[0] < config.vocab_size,
                "has an embedding table that does not follow its vocab_size, so that the image token gets no row",
            ),
            (
                by_ids,
                f"looks tokens up by their ids behind its embeddings ({', '.join(by_ids)}), and a picture has none",
            ),
        ):
            if refused:
                raise self._refusal(trait)
        self.base_name, self.head_name = str(base_name), str(head_name)
        self.in_features, self.out_features, self.bias = head.in_features, head.out_features, head.bias is not None
        for name in (self.base_name, self.head_name):
            del self.shell._modules[name]
        try:
            probes = [self._probe(dtype, head, language_model) for dtype in (torch.float32, torch.bfloat16)]
        except Exception as error:
            raise self._refusal(f"does not make logits of hidden states alone ({error!r})") from error
        self.is_plain = all(probes)
        self.text_scale = _scale_of_text(language_model)

    def _refusal(self, trait: str) -> ValueError:
        return ValueError(
            f"The language model is of type {self.shell.config.model_type!r}, whose {type(self.shell).__name__} "
            f"{trait}: it cannot be the language model here. Take another one."
        )

    def _probe(self, dtype: torch.dtype, linear: nn.Linear, language_model: nn.Module) -> bool:
        """Whether random hidden states reach the head, and random logits the caller, as they are."""
        # A checkpoint is loaded while new tensors go to the meta device, where there is nothing to compare.
        with torch.no_grad(), torch.device("cpu"):
            random = torch.Generator().manual_seed(0)
            hidden_states = torch.randn(1, 2, linear.in_features, generator=random).to(dtype)
            head = _KnownLogits(100 * torch.randn(1, 2, linear.out_features, generator=random).to(dtype), linear)
            logits = self.logits(hidden_states, head, language_model)
        pairs = ((head.logits, logits), (hidden_states, head.hidden_states))
        return all(given.dtype == got.dtype and torch.equal(given, got) for given, got in pairs)

    def logits(self, hidden_states: torch.Tensor, head: nn.Module, language_model: nn.Module) -> torch.Tensor:
        """Logits, `(batch_size, positions, vocab_size)`, of hidden states, by the head as it now is: moved, quantised
        or wrapped by an adapter."""
        # A new instance for each call: two threads, or two replicas of a model, share no head.
        family = object.__new__(type(self.shell))
        parts = {self.base_name: _Base(language_model, hidden_states), self.head_name: head}
        family.__dict__.update(self.shell.__dict__, _modules={**self.shell._modules, **parts})
        return family.forward(inputs_embeds=hidden_states, return_dict=True).logits


def _scale_of_text(language_model: nn.Module) -> float:
    """What embeddings are multiplied with when the model is given ids, over that when it is given embeddings."""
    table, factors = language_model.get_input_embeddings(), []
    for name in ("input_ids", "inputs_embeds"):
        embeddings = _Embeddings()
        handle = table.register_forward_hook(lambda *_, found=embeddings: found)
        ids = torch.zeros(1, 1, dtype=torch.long, device=table.weight.device)
        try:
            language_model(**{name: ids if name == "input_ids" else embeddings})
        except Exception:  # it goes on to what takes a tensor, whatever that raises
            pass
        finally:
            handle.remove()
        factors.append(embeddings.factor)
    return factors[0] / factors[1]


class _Embeddings:
    """Stands for embeddings, and notes what they are multiplied with."""

    factor = 1.0

    def __mul__(self, factor: Any) -> "_Embeddings":
        self.factor *= float(factor)
        return self

    __rmul__ = __mul__


@functools.cache
def _needs_ids(kind: type[nn.Module]) -> bool:
    """Whether a layer computes with hidden states and, beside them, cannot do without the tokens' ids."""
    arguments = inspect.signature(kind.forward).parameters
    needed = {name for name, argument in arguments.items() if argument.default is argument.empty}
    return needed >= {"hidden_states", "input_ids"}


class _Base:
    """Stands for a base model, or for its decoder, that has been run: called, it returns the hidden states."""

    def __init__(self, module: nn.Module, hidden_states: torch.Tensor):
        self.module, self.outputs = module, _Outputs(hidden_states)

    def __call__(self, *args, **kwargs) -> "_Outputs":
        return self.outputs

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.module, name)
        return _Base(value, self.outputs.last_hidden_state) if isinstance(value, nn.Module) else value


class _Outputs:
    """Outputs of a base model, of whichever class: of all there might be only the hidden states."""

    def __init__(self, last_hidden_state: torch.Tensor):
        self.last_hidden_state = last_hidden_state

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, index: int) -> torch.Tensor:
        return (self.last_hidden_state,)[index]


class _KnownLogits(nn.Module):
    """A head that notes what it is given and returns the logits it was made with."""

    def __init__(self, logits: torch.Tensor, linear: nn.Linear):
        super().__init__()
        self.logits, self.weight = logits, logits.new_zeros(()).expand(linear.weight.shape)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        self.hidden_states = hidden_states
        return self.logits.clone()


__all__ = ["BASE_OUTPUTS", "CACHE_NAME", "Family", "check_models", "model_without_head"]
