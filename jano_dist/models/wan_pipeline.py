"""A diffusers `WanPipeline` folder as a `VideoModel`: text, noise, scheduler and VAE are diffusers' own."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

from jano_dist.errors import UserError
from jano_dist.geometry import Geometry, find_model, wan_geometry
from jano_dist.mesh import Mesh
from jano_dist.models.base import Branch
from jano_dist.models.placement import place
from jano_dist.models.quiet import quiet
from jano_dist.models.wan import WanTransformer
from jano_dist.models.wan_vae import VideoDecoder
from jano_dist.models.weights import check_folder, check_weights, stored_dtype
from jano_dist.tokens.grid import Shape3

# What diffusers and transformers raise for a folder they cannot make sense of.
_BROKEN = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError)


class WanModel:
    """A Wan2.1 text-to-video pipeline. See `VideoModel` for the methods.

    Args:
        pipeline: transformer (its weights already where they are to lie), VAE and scheduler; the
            transformer gets our hooks, so the pipeline itself is no longer called.
        text: encodes prompts.
        device: where everything is computed.
        vae_parallel, vae_tiling: who decodes, and whether in tiles (`model` section of the config).
    """

    def __init__(
        self,
        pipeline: WanPipeline,
        text: "TextEncoder",
        device: torch.device,
        *,
        vae_parallel: str = "auto",
        vae_tiling: bool = False,
    ) -> None:
        self._pipeline, self._text = pipeline, text
        pipeline.vae.to(device)
        self._transformer = WanTransformer(pipeline.transformer)
        if vae_tiling:
            pipeline.vae.enable_tiling()
        self._decoder = VideoDecoder(pipeline.vae, parallel=vae_parallel)
        self.geometry = wan_geometry(pipeline.transformer.config, pipeline.vae.config)
        self.device, self.dtype = device, self._transformer.dtype
        self.forward = self._transformer.forward
        self.unpatchify = self._transformer.unpatchify

    def notes(self, prompt: str, negative_prompt: str = "") -> list[str]:
        return self._text.notes(prompt, negative_prompt)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        return self._text.encode(prompts, self.device).to(self.dtype)

    def branch(self, text: Tensor) -> Branch:
        return self._transformer.branch(text)

    def noise(self, latent: Shape3, seed: int) -> Tensor:
        frames, height, width = self._pixels(latent)
        noise: Tensor = self._pipeline.prepare_latents(
            1,
            self.geometry.channels,
            height,
            width,
            frames,
            torch.float32,
            self.device,
            torch.Generator("cpu").manual_seed(seed),
        )
        return noise[0]

    def scheduler(self, steps: int, shift: float | None) -> Any:
        old = self._pipeline.scheduler
        key = "flow_shift" if "flow_shift" in old.config else "shift"
        changes = {} if shift is None else {key: shift}
        scheduler = type(old).from_config(old.config, **changes)
        scheduler.set_timesteps(steps, device=self.device)
        scheduler.set_begin_index(0)
        return scheduler

    def decode(self, latent: Tensor, mesh: Mesh) -> np.ndarray:
        vae, processor = self._pipeline.vae, self._pipeline.video_processor
        mean, std = (
            torch.tensor(values, device=latent.device, dtype=vae.dtype).view(-1, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        with mesh.noticing_loss():
            video = self._decoder.decode((latent.to(vae.dtype) * std + mean).unsqueeze(0), mesh)
        if video is None or not mesh.is_coordinator:
            _, height, width = self._pixels(latent.shape)
            return np.zeros((0, height, width, 3), np.uint8)
        frames: np.ndarray = processor.postprocess_video(video.float(), output_type="np")[0]
        return (frames * 255).round().astype(np.uint8)

    def _pixels(self, latent: Sequence[int]) -> Shape3:
        """(frames, height, width) of a latent [..., T, H, W]."""
        stride_t, stride_h, stride_w = self.geometry.vae_stride
        t, h, w = latent[-3:]
        return (t - 1) * stride_t + 1, h * stride_h, w * stride_w


class TextEncoder:
    """UMT5, in memory only while a prompt is encoded: for 14B it is 11 GB in bf16.

    Args:
        folder: of the diffusers pipeline. tokenizer: of it.
        dtype: of the weights.
        max_sequence_length: text tokens a prompt is padded to.
    """

    def __init__(self, folder: Path, tokenizer: Any, dtype: torch.dtype, max_sequence_length: int) -> None:
        self._folder, self._tokenizer = folder, tokenizer
        self._dtype, self._limit = dtype, max_sequence_length

    def encode(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """[prompts, L, text_dim]. Loads the encoder and frees it again."""
        others = dict.fromkeys(("transformer", "vae", "scheduler"))
        with _sentence(str(self._folder)):
            pipeline = WanPipeline.from_pretrained(
                self._folder, tokenizer=self._tokenizer, dtype=self._dtype, **others
            ).to(device)
        # One by one, as the pipeline does it: a batch rounds differently, and a text may be wanted again.
        texts = [
            pipeline.encode_prompt(
                prompt, do_classifier_free_guidance=False, max_sequence_length=self._limit, device=device
            )[0]
            for prompt in prompts
        ]
        del pipeline  # nothing refers to it any more, so the encoder's memory is free now
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return torch.cat(texts)

    def notes(self, prompt: str, negative_prompt: str = "") -> list[str]:
        """Sentences on what the encoder will not see: words it does not know, an end that is cut off."""
        tokenizer = self._tokenizer
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


def read_wan_geometry(name: str) -> Geometry:
    """Sizes of a model by name or folder, from its config files alone.

    Raises:
        UserError: unknown model.
    """
    transformer, vae = _skeletons(name)
    with _sentence(find_model(name)):
        return wan_geometry(transformer.config, vae.config)


def load_wan(
    name: str,
    *,
    dtype: str,
    vae_dtype: str,
    max_sequence_length: int,
    device: torch.device,
    mesh: Mesh | None = None,
    weights: str = "replicated",
    vae_parallel: str = "auto",
    vae_tiling: bool = False,
    begin: Callable[[], object] = lambda: None,
) -> WanModel:
    """Load a model by name or folder, after looking whether its files are whole.

    The transformer is read once per node; every rank reads the VAE, which is small, for itself.

    Args:
        name: `wan-tiny`, a diffusers folder, or a hub name.
        dtype: of transformer and text encoder; `auto` keeps what the files have. The modules that
            diffusers keeps in float32 stay so.
        vae_dtype: of the VAE.
        max_sequence_length: text tokens a prompt is padded to.
        device: where everything is computed.
        mesh: the ranks that load it together; None is this process alone.
        weights: where the transformer's lie: `replicated`, `fsdp` or `group_offload` (see `place`).
        vae_parallel: `auto`: all ranks decode; `single`: the coordinator alone.
        vae_tiling: decode in overlapping tiles.
        begin: called when the files have been found whole and reading them begins.

    Raises:
        UserError: unknown model, or files missing, truncated or without weights the model has.
    """
    folder, skeleton, tokenizer = check_wan(name)
    begin()
    kept = {part: stored_dtype(folder / part) for part in ("transformer", "text_encoder")}
    asked = kept if dtype == "auto" else dict.fromkeys(kept, getattr(torch, dtype))

    def read() -> Any:
        with _sentence(str(folder)):
            return WanTransformer3DModel.from_pretrained(
                folder, subfolder="transformer", dtype=asked["transformer"]
            )

    placed = place(read, skeleton, weights=weights, mesh=mesh or Mesh.single(device), device=device)
    with _sentence(str(folder)):
        pipeline = WanPipeline.from_pretrained(
            folder,
            transformer=placed,
            dtype={"vae": getattr(torch, vae_dtype)},
            text_encoder=None,
            tokenizer=None,
        )
    text = TextEncoder(folder, tokenizer, asked["text_encoder"], max_sequence_length)
    return WanModel(pipeline, text, device, vae_parallel=vae_parallel, vae_tiling=vae_tiling)


def check_wan(name: str) -> tuple[Path, Any, Any]:
    """The folder of a model whose files are whole, its transformer without memory, and its tokenizer.

    Raises:
        UserError: files are missing, truncated or without weights the model has.
    """
    transformer, vae = _skeletons(name)
    folder = model_folder(name)
    check_folder(folder, "WanPipeline", ("transformer", "vae", "text_encoder"))
    if any(WanPipeline.load_config(folder).get("transformer_2") or ()):
        raise UserError(
            f"{folder} has two experts (Wan2.2), of which only one would run: give a Wan2.1 model"
        )
    with _sentence(str(folder)), torch.device("meta"):
        text_encoder = UMT5EncoderModel(UMT5Config.from_pretrained(folder / "text_encoder"))
    for component, skeleton in (("transformer", transformer), ("vae", vae), ("text_encoder", text_encoder)):
        check_weights(folder / component, skeleton)
    with _sentence(str(folder)):
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    return folder, transformer, tokenizer


def _skeletons(name: str) -> tuple[Any, Any]:
    """Transformer and VAE without memory: every size, default and weight name, and no weights."""
    source = find_model(name)
    with _sentence(source), torch.device("meta"):
        transformer = WanTransformer3DModel.from_config(
            WanTransformer3DModel.load_config(source, subfolder="transformer")
        )
        vae = AutoencoderKLWan.from_config(AutoencoderKLWan.load_config(source, subfolder="vae"))
        _check_vae(source, transformer.config, vae.config)
    return transformer, vae


def _check_vae(source: str, transformer: Any, vae: Any) -> None:
    """What the VAE's config says of the latent; loading it would not look, and decoding comes last."""
    sizes = {"z_dim": vae.z_dim} | {name: len(vae[name]) for name in ("latents_mean", "latents_std")}
    for name, size in sizes.items():
        if size != transformer.in_channels:
            raise UserError(
                f"{Path(source, 'vae', 'config.json')}: {name} is for {size} channels, but the transformer's "
                f"latent has {transformer.in_channels}: fetch the model again, whole"
            )
    torch.tensor([vae.latents_mean, vae.latents_std], device="cpu")  # raises where one is no number


@contextmanager
def _sentence(source: str) -> Iterator[None]:
    """Let the libraries work in silence, and turn what they raise over a broken model into one sentence."""
    try:
        with quiet():
            yield
    except _BROKEN as error:
        if not Path(source).is_dir():
            raise UserError(
                f"model {source!r} is neither a folder here nor can it be fetched from the hub: "
                "check the name and the network"
            ) from error
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(". ") or type(error).__name__
        raise UserError(
            f"{source} does not load as a Wan pipeline ({reason}): fetch the model again, whole"
        ) from error


def model_folder(name: str) -> Path:
    """The folder with a model's files; fetches it from the hub when `name` is a hub name.

    Raises:
        UserError: it cannot be fetched.
    """
    source = find_model(name)
    if Path(source).is_dir():
        return Path(source)
    with _sentence(source):
        return Path(WanPipeline.download(source))
