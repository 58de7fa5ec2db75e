"""A forward with compiled blocks against the same one as it is, wan-tiny, one process, in turns.

    python -m benchmarks.repeat 5 compiled

For 320 and 1,440 tokens and shares of them: median milliseconds of both, and their ratio: above 1 it gains.
"""

from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.common import PROMPTS, save
from benchmarks.probes import seconds_of
from jano_dist import Engine, load_config
from jano_dist.cache import KVCache
from jano_dist.models import DiffusionModel

LATENTS = ((5, 16, 16), (5, 32, 36))  # 320 and 1,440 tokens
SHARES = (1.0, 0.5, 0.2)
TURNS = 15


class Forward:
    """One branch's forward of some of the tokens, with a cache that is filled."""

    def __init__(self, model: DiffusionModel, latent: tuple[int, int, int]) -> None:
        geometry, self._model = model.geometry, model
        self.tokens = latent[0] * latent[1] * latent[2] // geometry.patch_positions
        shape = (geometry.layers, self.tokens, geometry.heads, geometry.head_dim)
        self._cache = KVCache(*shape, model.dtype, model.device)
        self._latent, self._branch = model.noise(latent, 0), model.branch(model.encode(PROMPTS[:1]))
        self(1.0)

    def __call__(self, share: float) -> None:
        rows = torch.arange(round(self.tokens * share))
        self._model.forward(self._latent, torch.tensor(600.0), self._branch, rows, self._cache)


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    models = [
        Engine(load_config("wan-tiny", overrides={"model.compile": how})).model for how in (False, True)
    ]
    rows: list[dict[str, Any]] = []
    for latent in LATENTS:
        forwards = [Forward(model, latent) for model in models]
        for share in SHARES:
            turns = [
                [seconds_of(partial(each, share), torch.device("cpu"), 1) for each in forwards]
                for _ in range(TURNS)
            ]
            plain, compiled = (1000 * median(each) for each in zip(*turns, strict=True))
            row = {"tokens": forwards[0].tokens, "share": share, "milliseconds": plain}
            rows.append({**row, "compiled_milliseconds": compiled, "gain": plain / compiled})
            print(rows[-1], flush=True)
    save("compiled", {"rows": rows})


if __name__ == "__main__":
    main()
