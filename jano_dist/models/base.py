"""What the engine knows of a model: its protocol, and what it keeps per branch.

Shapes: C channels, latent T x H x W, N tokens, n computed rows, P values per output row
(patch positions x output channels), L text tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from jano_dist.attention.distributed import Attend
from jano_dist.cache import Cache, untraced
from jano_dist.geometry import Geometry as Geometry
from jano_dist.mesh import Mesh
from jano_dist.tokens.grid import Shape3


@dataclass
class TextKV:
    """Cross-attention keys and values of one layer: computed by the first forward, then kept."""

    kept: tuple[Tensor, Tensor] | None = None

    @untraced
    def get(self, project: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The kept pair [L, H, D]; calls `project` the first time."""
        if self.kept is None:
            self.kept = project()
        return self.kept


# What prompts became, by name: each [prompts, ...], or [1, ...] where the prompts of a video share it.
# "text", [prompts, L, text_dim], is always there.
Conditions = dict[str, Tensor]


def split_conditions(conditions: Conditions, parts: int) -> list[Conditions]:
    """In equal parts by prompt; what all prompts share goes to each."""
    prompts = len(conditions["text"])
    cut = {
        name: [tensor] * parts if len(tensor) < prompts else list(tensor.chunk(parts))
        for name, tensor in conditions.items()
    }
    return [{name: tensors[part] for name, tensors in cut.items()} for part in range(parts)]


FIRST_FRAME = "first_frame"  # [1, C, 1, H, W]: what the latent begins with, whatever the step


def with_first_frame(latent: Tensor, conditions: Conditions) -> Tensor:
    """[C, T, H, W] with the first frame of the conditions, where they have one."""
    if FIRST_FRAME not in conditions:
        return latent
    first = conditions[FIRST_FRAME][0].to(latent)
    return torch.cat((first, latent[:, first.shape[1] :]), dim=1)


TEXT_LENGTH = "text_length"  # [prompts], where the texts of a video are cut to that of its prompt


def cut_texts(conditions: Conditions) -> Conditions:
    """Texts as long as the first one, the prompt, where lengths are given: as diffusers cuts them."""
    if TEXT_LENGTH not in conditions:
        return conditions
    length = int(conditions[TEXT_LENGTH][0])
    others = {name: tensor for name, tensor in conditions.items() if name != TEXT_LENGTH}
    return {**others, "text": conditions["text"][:, :length]}


@dataclass
class Branch:
    """One branch (cond or uncond) of one generation: its conditions and what is constant over the steps.

    Attributes:
        conditions: of one prompt, each [1, ...].
        guidance: where it is an input of the model (`Geometry.guidance`).
        expert: the transformer it is for.
        layers: of cross-attention; empty in a model that has none. pictures: the same for a picture's keys.
    """

    conditions: Conditions
    guidance: float = 1.0
    expert: int = 0
    layers: list[TextKV] = field(default_factory=list)
    pictures: list[TextKV] = field(default_factory=list)

    @property
    def text(self) -> Tensor:
        """[1, L, text_dim]."""
        return self.conditions["text"]

    @property
    def text_input(self) -> Tensor:
        """What the transformer is given as text: nothing once every layer keeps its keys and values."""
        return self.text[:, :0] if self._done else self.text

    @property
    def image_input(self) -> Tensor | None:
        """The same for a picture's states [1, K, image_dim]; None where there are none."""
        image = self.conditions.get("image")
        return image[:, :0] if image is not None and self._done else image

    @property
    def _done(self) -> bool:
        return bool(self.layers) and all(layer.kept is not None for layer in (*self.layers, *self.pictures))


class DiffusionModel(Protocol):
    """A model of videos or images as the engine sees it. Holds weights, nothing of a generation."""

    geometry: Geometry
    device: torch.device
    dtype: torch.dtype
    overlaps: bool  # whether two forwards may be under way at once

    def notes(self, prompt: str, negative_prompt: str = "") -> list[str]:
        """Sentences on what the text encoder will not see: unknown words of the prompt, a cut-off end."""

    def encode(self, prompts: Sequence[str]) -> Conditions:
        """What prompts become, each as if it were the only one; the text encoders are on the device
        only meanwhile."""

    def look(self, image: str, latent: Shape3) -> Conditions:
        """What a picture becomes, each [1, ...], in a model that needs one.

        Raises:
            UserError: it cannot be read, or the model takes none.
        """

    def branch(self, conditions: Conditions, guidance: float = 1.0, expert: int = 0) -> Branch:
        """A branch for the conditions of one prompt, run by one of the experts."""

    def use(self, expert: int) -> None:
        """From now on branches of this expert run; others may leave the device."""

    def noise(self, latent: Shape3, seed: int) -> Tensor:
        """The initial latent float32 [C, T, H, W]; drawn on the CPU, so the same on any device."""

    def scheduler(self, steps: int, shift: float | None, latent: Shape3) -> Any:
        """A fresh diffusers scheduler with its timesteps set."""

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        branch: Branch,
        rows: Tensor,
        cache: Cache,
        attend: Attend = ...,
        text_rows: Tensor | None = None,
    ) -> Tensor:
        """Run the transformer for the tokens `rows` int64 [n] of `latent` [C, T, H, W].

        Writes to `cache` and, the first time, to `branch.layers`. `attend` does the self-attention;
        left out, the tokens of this process are all there are.

        Args:
            text_rows: in a joint model the text tokens int64 [m] that this rank computes, None: all. In
                attention and in the cache they come before the others.

        Returns:
            [n, P] output rows, in the order of `rows`.
        """

    def unpatchify(self, rows: Tensor, latent: Shape3) -> Tensor:
        """Output rows of all tokens [N, P] in natural order -> [C, T, H, W]."""

    def decode(self, latent: Tensor, mesh: Mesh) -> np.ndarray:
        """[C, T, H, W], the same on every rank -> frames uint8 [frames, height, width, 3] on the
        coordinator, none [0, height, width, 3] on other ranks."""
