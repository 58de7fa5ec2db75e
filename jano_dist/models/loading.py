"""From a folder to a loaded model: the same for every family."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jano_dist.mesh import Mesh
from jano_dist.models.base import DiffusionModel
from jano_dist.models.compiling import check_compiler, compile_blocks
from jano_dist.models.folder import Parts, sentence
from jano_dist.models.lora import Loras, fuse_loras
from jano_dist.models.placement import place
from jano_dist.models.read_ahead import read_ahead
from jano_dist.models.text import TextEncoder
from jano_dist.models.weights import stored_dtype, weight_files


@dataclass(frozen=True)
class Held:
    """How a model is held: the `model` section of the config, and where.

    Attributes:
        dtype: of transformer and text encoder; `auto` keeps what the files have. The modules that
            diffusers keeps in float32 stay so.
        vae_dtype: of the VAE.
        max_sequence_length: text tokens a prompt is padded to.
        device: where everything is computed.
        mesh: the ranks that load it together; None is this process alone.
        weights: where the transformer's lie: `replicated`, `fsdp` or `group_offload` (see `place`).
        experts: `both` on the device, or one at a time (`swap`).
        vae_parallel: `auto`: all ranks decode; `single`: the coordinator alone.
        vae_tiling: decode in overlapping tiles.
        text_encoder: `keep`: in host memory between prompts, its files read while the transformer loads;
            `reload`: in memory only while prompts are encoded.
        compile: whether the blocks of the transformer are compiled.
        loras: fused into the transformer, see `fuse_loras`. loras_2: into the second expert.
    """

    dtype: str
    vae_dtype: str
    max_sequence_length: int
    device: torch.device
    mesh: Mesh | None = None
    weights: str = "replicated"
    experts: str = "both"
    vae_parallel: str = "auto"
    vae_tiling: bool = False
    text_encoder: str = "reload"
    compile: bool = False
    loras: Loras = ()
    loras_2: Loras = ()

    @property
    def overlaps(self) -> bool:
        """Whether two forwards can be under way at once: not where weights come and go, or blocks are
        compiled (not tried)."""
        return self.weights == "replicated" and self.experts == "both" and not self.compile


@dataclass(frozen=True)
class Adapter:
    """What a family brings.

    Attributes:
        check: raises UserError for configs that do not go together.
        text: its text encoders.
        model: makes its model from diffusers' pipeline (see `load_pipeline`) and text encoders.
    """

    check: Callable[[Parts], None]
    text: type[TextEncoder]
    model: Callable[[Any, TextEncoder, Parts, Held], DiffusionModel]


# Parts that are loaded only while something is encoded.
_ENCODERS = ("text_encoder", "tokenizer", "image_encoder", "image_processor")


def load_pipeline(folder: Path, parts: Parts, held: Held) -> Any:
    """Diffusers' pipeline without its text encoders; the transformer's weights where they are to lie.

    The transformer is read once per node; every rank reads the VAE, which is small, for itself.
    """
    names = [name for name in ("transformer", "transformer_2") if name in parts.skeletons]
    placed = {name: _placed(name, folder, parts, held) for name in names}
    texts = {name: None for name in parts.index if name.startswith(_ENCODERS)}
    with sentence(str(folder)):
        return parts.pipeline.from_pretrained(
            folder, dtype={"vae": getattr(torch, held.vae_dtype)}, **placed, **texts
        )


def _placed(name: str, folder: Path, parts: Parts, held: Held) -> Any:
    """One of the transformers; the second waits in host memory where they take turns on the device."""
    dtype, loras = _dtype(folder / name, held), held.loras if name == "transformer" else held.loras_2

    def read() -> Any:
        with sentence(str(folder)):
            transformer = type(parts.skeletons[name]).from_pretrained(folder, subfolder=name, dtype=dtype)
        fuse_loras(loras, parts.pipeline, transformer)
        return transformer

    mesh = held.mesh or Mesh.single(held.device)
    waits = name == "transformer_2" and held.experts == "swap"
    device = torch.device("cpu") if waits else held.device
    placed = place(read, parts.skeletons[name], weights=held.weights, mesh=mesh, device=device)
    if held.compile:
        compile_blocks(placed)
    return placed


def load_adapter(adapter: Adapter, folder: Path, parts: Parts, held: Held) -> DiffusionModel:
    """The model behind a family's adapter.

    Raises:
        UserError: it is to be compiled, and there is nothing to do it with.
    """
    if held.compile:
        check_compiler(held.device)
    keep = held.text_encoder == "keep"
    _read_ahead(folder, parts, held.mesh or Mesh.single(held.device), texts=keep)
    pipeline = load_pipeline(folder, parts, held)
    dtype = _dtype(folder / "text_encoder", held)
    text = adapter.text(folder, parts, dtype, held.max_sequence_length, keep=keep)
    return adapter.model(pipeline, text, parts, held)


def _read_ahead(folder: Path, parts: Parts, mesh: Mesh, *, texts: bool) -> None:
    """What this rank will load: a node's first one the transformers, and the coordinator text encoders."""
    names = [name for name in parts.skeletons if name.startswith("transformer") and mesh.is_node_lead]
    if texts and mesh.is_coordinator:
        names += [name for name in parts.skeletons if name.startswith("text_encoder")]
    read_ahead([file for name in names for file in weight_files(folder / name)])


def _dtype(component: Path, held: Held) -> torch.dtype:
    return stored_dtype(component) if held.dtype == "auto" else getattr(torch, held.dtype)
