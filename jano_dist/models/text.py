"""Text encoders: on the device only while prompts are encoded."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import nn

from jano_dist.models.base import Conditions
from jano_dist.models.folder import Parts, sentence
from jano_dist.models.quiet import quiet


class TextEncoder(ABC):
    """A pipeline's text encoders: for Wan 14B they take 11 GB in bf16, so they are loaded only when needed.

    Args:
        folder: of the diffusers pipeline. parts: of it, with tokenizers.
        dtype: of the weights.
        max_sequence_length: text tokens a prompt is padded to.
        keep: whether they stay in host memory once they are loaded.
    """

    def __init__(
        self, folder: Path, parts: Parts, dtype: torch.dtype, max_sequence_length: int, *, keep: bool = False
    ) -> None:
        self._folder, self._dtype, self._limit, self._keep = folder, dtype, max_sequence_length, keep
        self._kept: Any = None
        self._pipeline = parts.pipeline
        self.tokenizers = parts.tokenizers
        kept = ("text_encoder", "tokenizer")
        # What the pipeline has besides text encoders and tokenizers, so that it is not loaded.
        self._others = {
            name: None
            for name, kind in parts.index.items()
            if isinstance(kind, list | tuple) and not name.startswith(kept)
        }

    @abstractmethod
    def embed(self, pipeline: Any, prompt: str, device: torch.device) -> Conditions:
        """What one prompt becomes; `pipeline` is diffusers' with nothing but its text encoders."""

    def encode(self, prompts: Sequence[str], device: torch.device) -> Conditions:
        """See `DiffusionModel.encode`. Loads the encoders, and frees them again where they are not kept."""
        pipeline = self._kept or self._load()
        self._kept = pipeline if self._keep else None
        modules = [each for each in pipeline.components.values() if isinstance(each, nn.Module)]
        with lent(modules, device):
            # One by one, as the pipeline does it: a batch rounds differently, and a text may be wanted again.
            each = [self.embed(pipeline, prompt, device) for prompt in prompts]
        del pipeline, modules  # where it is not kept, the encoders' memory is free now
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return join_conditions(each)

    def _load(self) -> Any:
        """Diffusers' pipeline with nothing but the encoders, in host memory."""
        # Tensors of inference mode, such as CLIP's positions, could not be used outside of it later.
        with torch.inference_mode(False), sentence(str(self._folder)):
            return self._pipeline.from_pretrained(
                self._folder, dtype=self._dtype, **self.tokenizers, **self._others
            )

    def notes(self, prompt: str, negative_prompt: str = "") -> list[str]:
        """Sentences on what the encoder will not see: words it does not know, an end that is cut off."""
        tokenizer = self.tokenizers[max(self.tokenizers)]  # of several the last one reads most
        with quiet():
            words = prompt_clean(prompt).split()
            unknown = [
                word
                for word in words
                if tokenizer.unk_token_id in tokenizer(word, add_special_tokens=False).input_ids
            ]
            texts = {"prompt": prompt, "negative prompt": negative_prompt}
            lengths = {name: len(tokenizer(prompt_clean(text)).input_ids) for name, text in texts.items()}
        notes = []
        if unknown:
            notes.append(
                f"the model does not know {', '.join(unknown)}: what it makes of the prompt may surprise"
            )
        for name, length in lengths.items():
            if length > self._limit:
                notes.append(
                    f"the {name} is longer than {self._limit} tokens (model.max_sequence_length): "
                    "its end is cut off"
                )
        return notes


@contextmanager
def lent(modules: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Modules on a device, and back in host memory afterwards.

    Nothing is copied back, since weights do not change: the host's tensors wait, and take their places again.
    """
    places: list[tuple[dict[str, Any], str, torch.Tensor, torch.Tensor]] = [
        (store, name, tensor, tensor.data)
        for module in modules
        for owner in module.modules()
        for store in (owner._parameters, owner._buffers)
        for name, tensor in store.items()
        if tensor is not None
    ]
    try:
        for module in modules:
            module.to(device)
        yield
    finally:
        for store, name, tensor, data in places:
            tensor.data = data
            store[name] = tensor  # of a buffer `to` makes another one


def join_conditions(each: Sequence[Conditions]) -> Conditions:
    """Those of several prompts, one after the other."""
    return {name: torch.cat([one[name] for one in each]) for name in each[0]}


def to_dtype(conditions: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Conditions:
    """All in the transformer's dtype; whole numbers stay so."""
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in conditions.items()
    }
