"""Text embeddings that are used more than once, so that the text encoder is loaded less often."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Named tensors, each [texts, ...]; see `jano_dist.models.base`.
Conditions = dict[str, Tensor]


class Texts:
    """Embeddings by text, in host memory: all that were prepared, and the last negative prompt's.

    Args:
        encode: texts -> their embeddings; it loads the text encoder, and is never called for nothing. A
            text's embedding must not depend on the others.
    """

    def __init__(self, encode: Callable[[Sequence[str]], Conditions]) -> None:
        self._encode = encode
        self._prepared: dict[str, Conditions] = {}  # each of one text
        self._negative: dict[str, Conditions] = {}

    def prepare(self, texts: Sequence[str]) -> None:
        """Encode what is not kept yet, in one go, and keep it for good."""
        self._prepared |= self._encoded(texts)

    def embed(self, prompt: str, *negative: str) -> Conditions:
        """Embeddings of a prompt and, where it is given, of a negative one."""
        wanted = [prompt, *negative]
        known = self._prepared | self._negative | self._encoded(wanted)
        self._negative = {text: known[text] for text in negative}
        return {name: torch.cat([known[text][name] for text in wanted]) for name in known[prompt]}

    def _encoded(self, texts: Sequence[str]) -> dict[str, Conditions]:
        new = [text for text in dict.fromkeys(texts) if text not in self._prepared | self._negative]
        if not new:
            return {}
        made = {name: tensor.cpu() for name, tensor in self._encode(new).items()}
        return {
            text: {name: tensor[place : place + 1] for name, tensor in made.items()}
            for place, text in enumerate(new)
        }
