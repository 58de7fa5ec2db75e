"""Adapters over diffusers' `FluxTransformer2DModel` and `SD3Transformer2DModel`, in which text tokens are
part of the sequence: their own `forward`, for some of the tokens.

Hooks pick the computed rows where a stream begins, and an attention processor keeps what the other rows left
behind. Text rows are computed in every step; in attention and in the cache they come first:

    Flux: x_embedder, context_embedder, pos_embed (rotary tables)  output  -> pick rows
    SD3:  pos_embed (which embeds the patches), context_embedder   output  -> pick rows
          proj_out                                                 output  -> the result, [n, P]
    attn of every block         -> attention of text and image rows through the cache
    attn2, where SD3.5 has one  -> the same of image rows alone, through layers that come after all others

Shapes: N image tokens, n computed ones, L text tokens, m computed ones, H heads, D head dimension, W = H D.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jano_dist.attention.distributed import Attend, attend_locally
from jano_dist.cache import Cache, LayerKV, NoCache, Rope, untraced
from jano_dist.models.base import Branch, Conditions
from jano_dist.models.placement import repeated_blocks
from jano_dist.models.wan import rotate, turns
from jano_dist.tokens.grid import Shape3


@dataclass
class _Call:
    """One running forward, as its hooks see it."""

    rows: Tensor  # int64 [n]
    text_rows: Tensor  # int64 [m]
    tokens: int  # N
    text: int  # L
    output: Tensor


class JointAttention:
    """Processor of a block's `attn`: rows of text and image attend to all rows through the layer's cache."""

    kv: LayerKV
    attend: Attend

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rope | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """[1, n, W], and the text's [1, m, W] where it has weights of its own, -> the same.

        Where it has none its rows are the first of the [1, m + n, W]. Writes to `self.kv`.
        """
        own_text = hidden_states[:, :0] if encoder_hidden_states is None else encoder_hidden_states
        x, text = torch.cat((own_text, hidden_states), dim=1)[0], own_text.shape[1]
        rope = x[:0] if image_rotary_emb is None else image_rotary_emb
        q_nhd = _turned(_project(attn, "q", x, text), rope)
        kept, kept_rope = self.kv.inputs(x, rope)
        k_nhd = _turned(_project(attn, "k", kept, text), kept_rope)
        out = self._attended(q_nhd, k_nhd, _project(attn, "v", kept, text)).flatten(1)
        if encoder_hidden_states is None:
            return out[None]
        own, image = out[:text], attn.to_out[0](out[text:])  # to_out[1] is dropout, idle at inference
        projected = own if attn.context_pre_only else attn.to_add_out(own)
        return image[None], projected[None]

    @untraced
    def _attended(self, q_nhd: Tensor, k_nhd: Tensor, v_nhd: Tensor) -> Tensor:
        return self.attend(q_nhd, k_nhd, v_nhd, self.kv)


class SecondAttention(JointAttention):
    """Processor of a block's `attn2`: image rows attend to all image rows."""

    def __call__(self, attn: Any, hidden_states: Tensor, *none: Any, **nothing: Any) -> Tensor:
        """[1, n, W] -> the same. Writes to `self.kv`."""
        projected: Tensor = attn.to_out[0](super().__call__(attn, hidden_states))
        return projected

    @untraced
    def _attended(self, q_nhd: Tensor, k_nhd: Tensor, v_nhd: Tensor) -> Tensor:
        return self.attend(q_nhd, k_nhd, v_nhd, self.kv, text=False)


def _turned(x_nhd: Tensor, rope: Rope) -> Tensor:
    return rotate(x_nhd, rope) if rope.is_complex() else x_nhd


def _project(attn: Any, name: str, x: Tensor, text: int) -> Tensor:
    """Rows [m + n, W], of which the first `text` have weights of their own -> [m + n, H, D]."""
    image = _normed(getattr(attn, f"to_{name}")(x[text:]), getattr(attn, f"norm_{name}", None), attn.heads)
    if not text:
        return image
    norm = getattr(attn, f"norm_added_{name}", None)
    return torch.cat((_normed(getattr(attn, f"add_{name}_proj")(x[:text]), norm, attn.heads), image))


def _normed(x: Tensor, norm: nn.Module | None, heads: int) -> Tensor:
    x_nhd = x.view(len(x), heads, x.shape[1] // heads)
    return x_nhd if norm is None else norm(x_nhd)


class JointTransformer(ABC):
    """What both have in common.

    Args:
        transformer: diffusers', loaded. Hooks and processors are installed in it; diffusers' own pipeline no
            longer works with it.
    """

    def __init__(self, transformer: Any) -> None:
        self.module = transformer
        # Of the activations. Once: diffusers looks through all modules for it.
        self.dtype: torch.dtype = transformer.dtype
        self._call: _Call
        blocks = repeated_blocks(transformer)
        second = [block.attn2 for block in blocks if getattr(block, "attn2", None) is not None]
        self._attention = [*(JointAttention() for _ in blocks), *(SecondAttention() for _ in second)]
        modules = [*(block.attn for block in blocks), *second]
        for module, processor in zip(modules, self._attention, strict=True):
            module.set_processor(processor)  # type: ignore[operator, union-attr]
        transformer.context_embedder.register_forward_hook(self._pick_text)
        transformer.proj_out.register_forward_hook(self._take_output)
        self._hook()

    @abstractmethod
    def _hook(self) -> None:
        """Hooks of one of them."""

    @abstractmethod
    def _run(self, latent: Tensor, timestep: Tensor, branch: Branch) -> None:
        """Diffusers' forward for a latent [1, C, H, W] in the model's dtype."""

    @abstractmethod
    def unpatchify(self, rows: Tensor, latent: Shape3) -> Tensor:
        """See `DiffusionModel.unpatchify`."""

    def branch(self, conditions: Conditions, guidance: float = 1.0) -> Branch:
        """A branch for one prompt: text [1, L, text_dim] and pooled [1, pooled_dim]."""
        return Branch({name: each.to(self.dtype) for name, each in conditions.items()}, guidance)

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
        """See `DiffusionModel.forward`."""
        _, _, height, width = latent.shape
        text = branch.text.shape[1]
        every = torch.arange(text, device=rows.device) if text_rows is None else text_rows
        self._call = _Call(rows, every, height * width // 4, text, latent.new_empty(0))
        self._bind(cache, attend)
        try:
            self._run(latent[:, 0].unsqueeze(0).to(self.dtype), timestep, branch)
            return self._call.output
        finally:  # the module outlives the generation, so it must not hold on to its caches
            del self._call
            self._bind(NoCache(len(self._attention)), attend_locally)

    def _bind(self, cache: Cache, attend: Attend) -> None:
        for processor, kv in zip(self._attention, cache.layers, strict=True):
            processor.kv, processor.attend = kv, attend

    def _pick_text(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output.index_select(1, self._call.text_rows)

    def _pick_rows(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output.index_select(1, self._call.rows)

    def _take_output(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        self._call.output = output[0]
        # diffusers may go on to reshape all N rows; what it makes of these zeros is not used.
        return output.new_zeros(()).expand(1, self._call.tokens, output.shape[-1])


class FluxTransformer(JointTransformer):
    """A `FluxTransformer2DModel` that computes the rows it is asked for. A row holds (C, ph, pw)."""

    def _hook(self) -> None:
        self.module.x_embedder.register_forward_hook(self._pick_rows)
        self.module.pos_embed.register_forward_hook(self._pick_rope)

    def _run(self, latent: Tensor, timestep: Tensor, branch: Branch) -> None:
        _, channels, height, width = latent.shape
        packed = latent.view(channels, height // 2, 2, width // 2, 2).permute(1, 3, 0, 2, 4).flatten(2)
        guidance = None
        if self.module.config.guidance_embeds:
            guidance = latent.new_full((1,), branch.guidance, dtype=torch.float32)
        self.module(
            hidden_states=packed.flatten(0, 1).unsqueeze(0),
            timestep=timestep.expand(1).to(self.dtype) / 1000,
            guidance=guidance,
            pooled_projections=branch.conditions["pooled"],
            encoder_hidden_states=branch.text,
            txt_ids=latent.new_zeros(branch.text.shape[1], 3),
            img_ids=_places(height // 2, width // 2, latent),
            return_dict=False,
        )

    def _pick_rope(self, module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> Rope:
        call = self._call
        rows = torch.cat((call.text_rows, call.text + call.rows))
        cos, sin = (table.index_select(0, rows).unsqueeze(1) for table in output)
        return turns(cos, sin)  # [m + n, 1, D/2]

    def unpatchify(self, rows: Tensor, latent: Shape3) -> Tensor:
        """See `DiffusionModel.unpatchify`."""
        _, height, width = latent
        boxes = rows.view(height // 2, width // 2, -1, 2, 2)
        return boxes.permute(2, 0, 3, 1, 4).reshape(-1, 1, height, width)


class StableDiffusion3Transformer(JointTransformer):
    """An `SD3Transformer2DModel` that computes the rows it is asked for. A row holds (ph, pw, C)."""

    def _hook(self) -> None:
        self.module.pos_embed.register_forward_hook(self._pick_rows)

    def _run(self, latent: Tensor, timestep: Tensor, branch: Branch) -> None:
        self.module(
            hidden_states=latent,
            encoder_hidden_states=branch.text,
            pooled_projections=branch.conditions["pooled"],
            timestep=timestep.expand(1),
            return_dict=False,
        )

    def unpatchify(self, rows: Tensor, latent: Shape3) -> Tensor:
        """See `DiffusionModel.unpatchify`."""
        _, height, width = latent
        boxes = rows.view(height // 2, width // 2, 2, 2, -1)
        return boxes.permute(4, 0, 2, 1, 3).reshape(-1, 1, height, width)


def _places(height: int, width: int, like: Tensor) -> Tensor:
    """(0, row, column) of every token, as Flux's rotary embedding takes them: [N, 3]."""
    axes = torch.arange(1), torch.arange(height), torch.arange(width)
    return torch.cartesian_prod(*axes).to(like)
