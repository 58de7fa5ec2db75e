"""Flux.1 and Stable Diffusion 3 pipelines as `DiffusionModel`s: text, noise, scheduler and VAE are
diffusers' own."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from jano_dist.errors import UserError
from jano_dist.mesh import Mesh
from jano_dist.models.base import Branch, Conditions
from jano_dist.models.folder import Parts
from jano_dist.models.joint import FluxTransformer, JointTransformer, StableDiffusion3Transformer
from jano_dist.models.loading import Adapter, Held
from jano_dist.models.pixels import to_frames
from jano_dist.models.text import TextEncoder, to_dtype
from jano_dist.models.twins import Twins
from jano_dist.tokens.grid import Shape3

_SHIFTS = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5}  # diffusers' defaults


class ImageModel(ABC):
    """A text-to-image pipeline. See `DiffusionModel` for the methods.

    Args:
        pipeline: transformer (its weights already where they are to lie), VAE and scheduler.
        text: encodes prompts.
        parts: its sizes. held: where it computes. Decoding is the coordinator's: an image is small.
    """

    transformer: type[JointTransformer]
    max_shift: float  # where the scheduler's config does not say

    def __init__(self, pipeline: Any, text: TextEncoder, parts: Parts, held: Held) -> None:
        self._pipeline, self._text = pipeline, text
        pipeline.vae.to(held.device)
        if held.vae_tiling:
            pipeline.vae.enable_tiling()
        self.overlaps = held.overlaps
        bodies = Twins(self.transformer, pipeline.transformer, two=self.overlaps)
        self._transformer = bodies.first
        self.geometry = parts.geometry
        self.device, self.dtype = held.device, self._transformer.dtype
        self.forward = bodies.forward
        self.unpatchify = self._transformer.unpatchify

    @abstractmethod
    def _sigmas(self, scheduler: Any, steps: int) -> list[float] | None:
        """The noise levels that diffusers' pipeline gives the scheduler; None: its own."""

    def notes(self, prompt: str, negative_prompt: str = "") -> list[str]:
        return self._text.notes(prompt, negative_prompt)

    def encode(self, prompts: Sequence[str]) -> Conditions:
        return to_dtype(self._text.encode(prompts, self.device), self.dtype)

    def look(self, image: str, latent: Shape3) -> Conditions:
        self.geometry.check_image(image)  # refuses it
        return {}

    def branch(self, conditions: Conditions, guidance: float = 1.0, expert: int = 0) -> Branch:
        return self._transformer.branch(conditions, guidance)

    def use(self, expert: int) -> None:  # noqa: B027 - there is one
        pass

    def noise(self, latent: Shape3, seed: int) -> Tensor:
        _, height, width = latent
        shape = (1, self.geometry.channels, height, width)
        generator = torch.Generator("cpu").manual_seed(seed)
        # In the model's dtype, as diffusers draws it: other numbers come out in another one.
        drawn: Tensor = randn_tensor(shape, generator=generator, device=self.device, dtype=self.dtype)
        return drawn[0].unsqueeze(1).float()

    def scheduler(self, steps: int, shift: float | None, latent: Shape3) -> Any:
        old = self._pipeline.scheduler
        changes = {} if shift is None else {"shift": shift, "use_dynamic_shifting": False}
        scheduler = type(old).from_config(old.config, **changes)
        options: dict[str, Any] = {}
        if scheduler.config.get("use_dynamic_shifting"):
            tokens = latent[1] * latent[2] // self.geometry.patch_positions
            shifts = {name: scheduler.config.get(name, value) for name, value in _SHIFTS.items()}
            most = scheduler.config.get("max_shift", self.max_shift)
            options["mu"] = calculate_shift(tokens, *shifts.values(), most)
        sigmas = self._sigmas(scheduler, steps)
        given = {"num_inference_steps": steps} if sigmas is None else {"sigmas": sigmas}
        scheduler.set_timesteps(**given, device=self.device, **options)
        scheduler.set_begin_index(0)
        return scheduler

    def decode(self, latent: Tensor, mesh: Mesh) -> np.ndarray:
        _, _, height, width = latent.shape
        if not mesh.is_coordinator:
            _, down, right = self.geometry.vae_stride
            return np.zeros((0, height * down, width * right, 3), np.uint8)
        vae = self._pipeline.vae
        scaled = latent[:, 0].unsqueeze(0).to(vae.dtype) / vae.config.scaling_factor
        image = vae.decode(scaled + (vae.config.shift_factor or 0), return_dict=False)[0]
        return to_frames(image.transpose(0, 1))  # one frame


class FluxModel(ImageModel):
    """Flux.1-dev and -schnell. One branch: guidance is an input of the model, or there is none."""

    transformer = FluxTransformer
    max_shift = 1.15

    def _sigmas(self, scheduler: Any, steps: int) -> list[float] | None:
        if scheduler.config.get("use_flow_sigmas"):
            return None
        levels: list[float] = np.linspace(1.0, 1 / steps, steps).tolist()
        return levels


class StableDiffusion3Model(ImageModel):
    """Stable Diffusion 3 and 3.5."""

    transformer = StableDiffusion3Transformer
    max_shift = 1.16

    def _sigmas(self, scheduler: Any, steps: int) -> list[float] | None:
        return None


class FluxText(TextEncoder):
    """CLIP for the pooled embedding, T5 for the tokens."""

    def embed(self, pipeline: Any, prompt: str, device: torch.device) -> Conditions:
        text, pooled, _ = pipeline.encode_prompt(
            prompt, prompt_2=None, device=device, max_sequence_length=self._limit
        )
        return {"text": text, "pooled": pooled}


class StableDiffusion3Text(TextEncoder):
    """Two CLIPs, and T5."""

    def embed(self, pipeline: Any, prompt: str, device: torch.device) -> Conditions:
        text, _, pooled, _ = pipeline.encode_prompt(
            prompt,
            prompt_2=None,
            prompt_3=None,
            device=device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._limit,
        )
        return {"text": text, "pooled": pooled}


def check_flux(parts: Parts) -> None:
    """Raise UserError for a VAE of another latent."""
    _check_latent(parts, parts.skeletons["transformer"].config.in_channels // 4)


def check_sd3(parts: Parts) -> None:
    """Raise UserError for a VAE of another latent."""
    _check_latent(parts, parts.skeletons["transformer"].config.in_channels)


def _check_latent(parts: Parts, channels: int) -> None:
    found = parts.skeletons["vae"].config.latent_channels
    if found != channels:
        raise UserError(
            f"{parts.source}: the VAE's latent has {found} channels, but the transformer's has {channels}: "
            "fetch the model again, whole"
        )


FLUX = Adapter(check_flux, FluxText, FluxModel)
SD3 = Adapter(check_sd3, StableDiffusion3Text, StableDiffusion3Model)
