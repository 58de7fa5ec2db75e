"""A diffusers `WanPipeline` as a `DiffusionModel`: text, noise, scheduler and VAE are diffusers' own."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from jano_dist.errors import UserError
from jano_dist.mesh import Mesh
from jano_dist.models.base import Branch, Conditions
from jano_dist.models.folder import Parts, sentence
from jano_dist.models.loading import Adapter, Held
from jano_dist.models.pixels import to_frames
from jano_dist.models.text import TextEncoder, to_dtype
from jano_dist.models.twins import Twins
from jano_dist.models.wan import WanTransformer
from jano_dist.models.wan_i2v import look
from jano_dist.models.wan_vae import VideoDecoder
from jano_dist.tokens.grid import Shape3


class WanModel:
    """A Wan pipeline, of text or of an image. See `DiffusionModel` for the methods.

    Args:
        pipeline: transformer (its weights already where they are to lie), VAE and scheduler; the
            transformer gets our hooks, so the pipeline itself is no longer called.
        text: encodes prompts.
        parts: its sizes. held: where it computes, and who decodes.
    """

    def __init__(self, pipeline: WanPipeline, text: TextEncoder, parts: Parts, held: Held) -> None:
        self._pipeline, self._text = pipeline, text
        pipeline.vae.to(held.device)
        self.overlaps = held.overlaps
        bodies = [Twins(WanTransformer, each, two=self.overlaps) for each in _transformers(pipeline)]
        self._bodies, self._experts = bodies, [each.first for each in bodies]
        self._swaps = held.experts == "swap" and len(self._experts) > 1
        if held.vae_tiling:
            pipeline.vae.enable_tiling()
        self._decoder = VideoDecoder(pipeline.vae, parallel=held.vae_parallel)
        self.geometry, self._parts = parts.geometry, parts
        self.device, self.dtype = held.device, self._experts[0].dtype
        self.unpatchify = self._experts[0].unpatchify

    def notes(self, prompt: str, negative_prompt: str = "") -> list[str]:
        return self._text.notes(prompt, negative_prompt)

    def encode(self, prompts: Sequence[str]) -> Conditions:
        return to_dtype(self._text.encode(prompts, self.device), self.dtype)

    def look(self, image: str, latent: Shape3) -> Conditions:
        self.geometry.check_image(image)
        return look(self._pipeline, self._parts, image, self._pixels(latent), self.device, self.dtype)

    def branch(self, conditions: Conditions, guidance: float = 1.0, expert: int = 0) -> Branch:
        return replace(self._experts[expert].branch(conditions), expert=expert)

    def use(self, expert: int) -> None:
        if self._swaps:
            for place, each in enumerate(self._experts):  # the one that leaves makes room first
                if place != expert:
                    each.module.to("cpu")
            self._experts[expert].module.to(self.device)

    def forward(self, latent: Tensor, timestep: Tensor, branch: Branch, *rest: Any, **options: Any) -> Tensor:
        return self._bodies[branch.expert].forward(latent, timestep, branch, *rest, **options)

    def noise(self, latent: Shape3, seed: int) -> Tensor:
        shape, generator = (1, self.geometry.channels, *latent), torch.Generator("cpu").manual_seed(seed)
        drawn: Tensor = randn_tensor(shape, generator=generator, device=self.device, dtype=torch.float32)
        return drawn[0]

    def scheduler(self, steps: int, shift: float | None, latent: Shape3) -> Any:
        old = self._pipeline.scheduler
        key = "flow_shift" if "flow_shift" in old.config else "shift"
        changes = {} if shift is None else {key: shift}
        scheduler = type(old).from_config(old.config, **changes)
        scheduler.set_timesteps(steps, device=self.device)
        scheduler.set_begin_index(0)
        return scheduler

    def decode(self, latent: Tensor, mesh: Mesh) -> np.ndarray:
        vae = self._pipeline.vae
        mean, std = (
            torch.tensor(values, device=latent.device, dtype=vae.dtype).view(-1, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        with mesh.noticing_loss():
            video = self._decoder.decode((latent.to(vae.dtype) * std + mean).unsqueeze(0), mesh)
        if video is None or not mesh.is_coordinator:
            _, height, width = self._pixels(latent.shape)
            return np.zeros((0, height, width, 3), np.uint8)
        return to_frames(video[0])

    def _pixels(self, latent: Sequence[int]) -> Shape3:
        """(frames, height, width) of a latent [..., T, H, W]."""
        stride_t, stride_h, stride_w = self.geometry.vae_stride
        t, h, w = latent[-3:]
        return (t - 1) * stride_t + 1, h * stride_h, w * stride_w


def _transformers(pipeline: Any) -> list[Any]:
    second = getattr(pipeline, "transformer_2", None)
    return [pipeline.transformer, *([] if second is None else [second])]


class WanText(TextEncoder):
    """UMT5."""

    def embed(self, pipeline: Any, prompt: str, device: torch.device) -> Conditions:
        text, _ = pipeline.encode_prompt(
            prompt, do_classifier_free_guidance=False, max_sequence_length=self._limit, device=device
        )
        return {"text": text}


def check_wan(parts: Parts) -> None:
    """What the VAE's config says of the latent; loading it would not look, and decoding comes last.

    Raises:
        UserError: it does not go together with the transformer's.
    """
    transformer, vae = (parts.skeletons[part].config for part in ("transformer", "vae"))
    with sentence(parts.source):
        sizes = {"z_dim": vae.z_dim} | {name: len(vae[name]) for name in ("latents_mean", "latents_std")}
        for name, size in sizes.items():
            if size != transformer.out_channels:
                raise UserError(
                    f"{Path(parts.source, 'vae', 'config.json')}: {name} is for {size} channels, but the "
                    f"transformer's latent has {transformer.out_channels}: fetch the model again, whole"
                )
        torch.tensor([vae.latents_mean, vae.latents_std], device="cpu")  # raises where one is no number
        if parts.geometry.needs_image and not parts.geometry.first_frame:
            _check_picture(parts)


def _check_picture(parts: Parts) -> None:
    """What a transformer takes of a picture, against what makes it."""
    geometry, source, config = parts.geometry, parts.source, parts.skeletons["transformer"].config
    if config.pos_embed_seq_len is not None:
        raise UserError(
            f"{source} makes videos between a first and a last frame, which is not supported: give a model "
            "that begins with an image, as Wan2.1-I2V-14B"
        )
    joined = geometry.channels + geometry.vae_stride[0]  # the encoded picture, and its mask
    if geometry.condition_channels != joined:
        raise UserError(
            f"{source}: the transformer takes {geometry.condition_channels} channels of a picture, which has "
            f"{joined}: fetch the model again, whole"
        )
    encoder = parts.skeletons.get("image_encoder")
    given = encoder.config.hidden_size if encoder is not None else None
    if config.image_dim and config.image_dim != given:
        raise UserError(
            f"{source}: the transformer takes states of {config.image_dim} from an image encoder, which "
            f"gives {given or 'none'}: fetch the model again, whole"
        )


WAN = Adapter(check_wan, WanText, WanModel)
