"""A diffusers `LattePipeline` as a `DiffusionModel`: every forward computes all tokens, as diffusers does.

Its blocks attend within the frames and within the places in turn, so no sequence of chosen tokens runs
through them (`Geometry.regions`); guidance may still lie on two ranks, and steps may be skipped as a whole.

Shapes: C channels, latent T x H x W, N tokens, n computed rows, P values per output row.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jano_dist.attention.distributed import Attend, attend_locally
from jano_dist.cache import Cache
from jano_dist.errors import UserError
from jano_dist.geometry.latte import TEXT_TOKENS
from jano_dist.mesh import Mesh
from jano_dist.models.base import TEXT_LENGTH, Branch, Conditions
from jano_dist.models.folder import Parts, sentence
from jano_dist.models.loading import Adapter, Held
from jano_dist.models.pixels import to_frames
from jano_dist.models.quiet import quiet
from jano_dist.models.text import TextEncoder, to_dtype
from jano_dist.tokens.grid import Shape3

# They draw no noise between the steps, which every rank would draw for itself.
_SCHEDULERS = ("DDIMScheduler", "UniPCMultistepScheduler")


class LatteModel:
    """A Latte text-to-video pipeline. See `DiffusionModel` for the methods.

    Args:
        pipeline: transformer (its weights already where they are to lie), VAE and scheduler.
        text: encodes prompts.
        parts: its sizes. held: where it computes.
    """

    def __init__(self, pipeline: Any, text: TextEncoder, parts: Parts, held: Held) -> None:
        self._pipeline, self._text = pipeline, text
        pipeline.vae.to(held.device)
        if held.vae_tiling:
            pipeline.vae.enable_tiling()
        self.geometry, self.device = parts.geometry, held.device
        self.dtype: torch.dtype = pipeline.transformer.dtype

    def notes(self, prompt: str, negative_prompt: str = "") -> list[str]:
        return self._text.notes(prompt, negative_prompt)

    def encode(self, prompts: Sequence[str]) -> Conditions:
        return to_dtype(self._text.encode(prompts, self.device), self.dtype)

    def look(self, image: str, latent: Shape3) -> Conditions:
        self.geometry.check_image(image)  # refuses it
        return {}

    overlaps = False  # ranks share branches only

    def branch(self, conditions: Conditions, guidance: float = 1.0, expert: int = 0) -> Branch:
        return Branch(conditions)

    def use(self, expert: int) -> None:
        pass  # there is one

    def noise(self, latent: Shape3, seed: int) -> Tensor:
        frames, height, width = latent
        _, stride_h, stride_w = self.geometry.vae_stride
        noise: Tensor = self._pipeline.prepare_latents(
            1,
            self.geometry.channels,
            frames,
            height * stride_h,
            width * stride_w,
            torch.float32,
            self.device,
            torch.Generator("cpu").manual_seed(seed),
        )
        return noise[0]

    def scheduler(self, steps: int, shift: float | None, latent: Shape3) -> Any:
        if shift is not None:
            raise UserError(
                f"sampling.shift {shift:g} is for flow-matching models, which this one is not: leave it out"
            )
        old = self._pipeline.scheduler
        scheduler = type(old).from_config(old.config)
        scheduler.set_timesteps(steps, device=self.device)
        return scheduler

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        branch: Branch,
        rows: Tensor,
        cache: Cache,
        attend: Attend = attend_locally,
        text_rows: Tensor | None = None,
    ) -> Tensor:
        """See `DiffusionModel.forward`. All tokens are computed, whichever are asked for."""
        output: Tensor = self._pipeline.transformer(
            latent.unsqueeze(0).to(self.dtype),
            timestep=timestep.expand(1),
            encoder_hidden_states=branch.text,
            return_dict=False,
        )[0]
        # The other half of the channels is the predicted variance.
        return self._patchify(output[0, : self.geometry.channels]).index_select(0, rows)

    def _patchify(self, latent: Tensor) -> Tensor:
        """[C, T, H, W] -> rows [N, P], each (ph, pw, C)."""
        channels, t, h, w = latent.shape
        _, ph, pw = self.geometry.patch
        boxes = latent.reshape(channels, t, h // ph, ph, w // pw, pw).permute(1, 2, 4, 3, 5, 0)
        return boxes.reshape(-1, ph * pw * channels)

    def unpatchify(self, rows: Tensor, latent: Shape3) -> Tensor:
        t, h, w = latent
        _, ph, pw = self.geometry.patch
        boxes = rows.reshape(t, h // ph, w // pw, ph, pw, -1)
        return boxes.permute(5, 0, 1, 3, 2, 4).reshape(-1, t, h, w)

    def decode(self, latent: Tensor, mesh: Mesh) -> np.ndarray:
        """See `DiffusionModel.decode`; the coordinator decodes alone, frame by frame."""
        pipeline, (frames, height, width) = self._pipeline, latent.shape[1:]
        _, stride_h, stride_w = self.geometry.vae_stride
        if not mesh.is_coordinator:
            return np.zeros((0, height * stride_h, width * stride_w, 3), np.uint8)
        given = latent[None].to(pipeline.vae.dtype)
        return to_frames(pipeline.decode_latents(given, frames, decode_chunk_size=1)[0])


class LatteText(TextEncoder):
    """T5. The texts of a video are cut to the length of its prompt, so each comes with its length."""

    def __init__(
        self, folder: Path, parts: Parts, dtype: torch.dtype, max_sequence_length: int, *, keep: bool = False
    ) -> None:
        super().__init__(folder, parts, dtype, TEXT_TOKENS, keep=keep)

    def embed(self, pipeline: Any, prompt: str, device: torch.device) -> Conditions:
        with quiet():  # where beautifulsoup is not installed, diffusers says so, and cleans less
            text, _ = pipeline.encode_prompt(
                prompt,
                do_classifier_free_guidance=False,
                device=device,
                clean_caption=True,
                mask_feature=False,
            )
            (clean,) = pipeline._text_preprocessing(prompt, clean_caption=True)
            length = len(pipeline.tokenizer(clean, truncation=True, max_length=TEXT_TOKENS).input_ids)
        return {"text": text, TEXT_LENGTH: torch.tensor([length], device=device)}


def check_latte(parts: Parts) -> None:
    """What only diffusers' pipeline would notice, or nobody.

    Raises:
        UserError: configs that do not go together, or a scheduler that draws noise.
    """
    transformer, vae = (parts.skeletons[part].config for part in ("transformer", "vae"))
    with sentence(parts.source):
        channels = transformer.in_channels, vae.latent_channels, transformer.out_channels
    if channels != (channels[0], channels[0], 2 * channels[0]):
        raise UserError(
            f"{parts.source}: the transformer takes {channels[0]} channels and gives {channels[2]}, and the "
            f"VAE has {channels[1]}, where it should be c, 2c and c: fetch the model again, whole"
        )
    scheduler = (parts.index.get("scheduler") or ("", _SCHEDULERS[0]))[1]
    if scheduler not in _SCHEDULERS:
        raise UserError(
            f"{parts.source} has a {scheduler}: put one of {', '.join(_SCHEDULERS)} into its folder scheduler"
        )


LATTE = Adapter(check_latte, LatteText, LatteModel)
