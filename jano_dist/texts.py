"""Text embeddings that are used more than once, so that the text encoder is loaded less often."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Texts:
    """Embeddings by text, in host memory: all that were prepared, and the last negative prompt's.

    Args:
        encode: texts -> embeddings [texts, L, text_dim]; it loads the text encoder, and is never called for
            nothing. A text's embedding must not depend on the others.
    """

    def __init__(self, encode: Callable[[Sequence[str]], Tensor]) -> None:
        self._encode = encode
        self._prepared: dict[str, Tensor] = {}  # each [L, text_dim]
        self._negative: dict[str, Tensor] = {}

    def prepare(self, texts: Sequence[str]) -> None:
        """Encode what is not kept yet, in one go, and keep it for good."""
        self._prepared |= self._encoded(texts)

    def embed(self, prompt: str, *negative: str) -> Tensor:
        """Embeddings [1 or 2, L, text_dim] of a prompt and, where it is given, of a negative one."""
        wanted = [prompt, *negative]
        known = self._prepared | self._negative | self._encoded(wanted)
        self._negative = {text: known[text] for text in negative}
        return torch.stack([known[text] for text in wanted])

    def _encoded(self, texts: Sequence[str]) -> dict[str, Tensor]:
        new = [text for text in dict.fromkeys(texts) if text not in self._prepared | self._negative]
        return dict(zip(new, self._encode(new).cpu(), strict=True)) if new else {}
