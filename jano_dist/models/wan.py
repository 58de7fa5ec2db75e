"""Adapter over diffusers' `WanTransformer3DModel`: its own `forward`, for some of the tokens.

Nothing of the model is rewritten. Hooks at the boundaries the model names for context parallelism
pick the computed rows, and attention processors keep what the other rows left behind:

    embedder      output  -> pick each row's timestep, where the first frame has its own
    rope          output  -> pick rows
    blocks[0]     input   -> pick rows
    attn1         -> self-attention through the cache, over all ranks that share the sequence
    attn2         -> cross-attention with the text K/V kept
    proj_out      output  -> the result, [n, P]

Where the cache is one inside the blocks, every block and its parts are handed to it before they run.

Shapes: N tokens, n computed rows, H heads, D head dimension, L text tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from jano_dist.attention.distributed import Attend, attend_locally
from jano_dist.attention.kernels import TORCH
from jano_dist.cache import Cache, LayerKV, NoCache, Rope, untraced
from jano_dist.models.base import FIRST_FRAME, Branch, Conditions, TextKV
from jano_dist.reuse import BlockCache
from jano_dist.reuse.base import PARTS
from jano_dist.tokens.grid import Shape3


@dataclass
class _Call:
    """One running forward, as its hooks see it."""

    rows: Tensor  # int64 [n]
    tokens: int
    output: Tensor
    time: Tensor
    times: Tensor | None = None  # int64 [n]: which of the timesteps is a row's; None where there is one


class SelfAttention:
    """Processor of `attn1`: project the computed rows, attend to all rows through the layer's cache."""

    kv: LayerKV
    attend: Attend

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Rope | None = None,
    ) -> Tensor:
        """[1, n, H*D] -> [1, n, H*D]. Writes to `self.kv`."""
        assert rotary_emb is not None
        x, rope = hidden_states[0], rotary_emb
        q_nhd = rotate(_heads(attn.norm_q(attn.to_q(x)), attn.heads), rope)
        x, rope = self.kv.inputs(x, rope)
        k_nhd = rotate(_heads(attn.norm_k(attn.to_k(x)), attn.heads), rope)
        v_nhd = _heads(attn.to_v(x), attn.heads)
        return _output(attn, self._attended(q_nhd, k_nhd, v_nhd))

    @untraced
    def _attended(self, q_nhd: Tensor, k_nhd: Tensor, v_nhd: Tensor) -> Tensor:
        return self.attend(q_nhd, k_nhd, v_nhd, self.kv)


class CrossAttention:
    """Processor of `attn2`: the text's keys and values are constant over a generation and kept."""

    text: TextKV
    picture: TextKV | None = None
    pictured: int = 0  # keys of the picture, which come before the text's
    heard: Callable[[Tensor, Tensor], None] | None = None  # is told the queries and keys

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """[1, n, H*D] attends to the text [1, L, H*D] -> [1, n, H*D]. Writes to `self.text`."""

        text = encoder_hidden_states[0, self.pictured :]

        def project() -> tuple[Tensor, Tensor]:
            return _heads(attn.norm_k(attn.to_k(text)), attn.heads), _heads(attn.to_v(text), attn.heads)

        q_nhd = _heads(attn.norm_q(attn.to_q(hidden_states[0])), attn.heads)
        k_nhd, v_nhd = self.text.get(project)
        if self.heard is not None:
            self.heard(q_nhd, k_nhd)
        out = TORCH.attention(q_nhd, k_nhd, v_nhd)  # of few keys; `attention.backend` is for the others
        if self.picture is not None:
            kept = self.picture.get(lambda: self._of_picture(attn, encoder_hidden_states))
            out = out + TORCH.attention(q_nhd, *kept)
        return _output(attn, out)

    def _of_picture(self, attn: Any, states: Tensor) -> tuple[Tensor, Tensor]:
        image = states[0, : self.pictured]
        k_nhd = _heads(attn.norm_added_k(attn.add_k_proj(image)), attn.heads)
        return k_nhd, _heads(attn.add_v_proj(image), attn.heads)


class WanTransformer:
    """A `WanTransformer3DModel` that computes the rows it is asked for.

    Args:
        transformer: a loaded (or randomly initialised) `WanTransformer3DModel`, text-to-video. Hooks
            and processors are installed in it; diffusers' own pipeline no longer works with it.
    """

    def __init__(self, transformer: Any) -> None:
        self.module = transformer
        # Of the activations. Once: diffusers looks through all modules for it.
        self.dtype: torch.dtype = transformer.dtype
        self._call: _Call
        self._reuse: BlockCache | None = None
        self._self_attention = [SelfAttention() for _ in transformer.blocks]
        self._cross_attention = [CrossAttention() for _ in transformer.blocks]
        for block, own, cross in zip(
            transformer.blocks, self._self_attention, self._cross_attention, strict=True
        ):
            block.attn1.set_processor(own)
            block.attn2.set_processor(cross)
        for layer, block in enumerate(transformer.blocks):
            for name in PARTS:
                part = getattr(block, name)
                part.forward = self._through_part(layer, name, part.forward)
            block.forward = self._through_block(layer, block.forward)
        embedder = transformer.condition_embedder
        embedder.time_embedder.register_forward_hook(self._note_time)
        embedder.time_proj.register_forward_hook(self._begin_reuse)
        embedder.register_forward_hook(self._pick_times)
        transformer.rope.register_forward_hook(self._pick_rope)
        transformer.blocks[0].register_forward_pre_hook(self._pick_hidden)
        transformer.proj_out.register_forward_hook(self._take_output)

    def branch(self, conditions: Conditions) -> Branch:
        """A branch for the conditions of one prompt: text embeddings [1, L, text_dim]."""
        own = {name: each.to(self.dtype) for name, each in conditions.items()}
        pictures = [TextKV() for _ in self.module.blocks] if "image" in own else []
        return Branch(own, layers=[TextKV() for _ in self.module.blocks], pictures=pictures)

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
        patch = self.module.config.patch_size
        tokens = 1
        for size, edge in zip(latent.shape[1:], patch, strict=True):
            tokens *= size // edge
        self._call = _Call(rows, tokens, latent.new_empty(0), latent.new_empty(0))
        self._bind(cache, branch, attend)
        given, times = latent.unsqueeze(0).to(self.dtype), timestep.expand(1)
        if "latent" in branch.conditions:
            given = torch.cat((given, branch.conditions["latent"]), dim=1)
        if FIRST_FRAME in branch.conditions:
            times = torch.stack((torch.zeros_like(timestep), timestep)).unsqueeze(0)
            self._call.times = (rows >= tokens * patch[0] // latent.shape[1]).long()
        try:
            self.module(
                hidden_states=given,
                timestep=times,
                encoder_hidden_states=branch.text_input,
                encoder_hidden_states_image=branch.image_input,
                return_dict=False,
            )
            return self._call.output
        finally:  # the module outlives the generation, so it must not hold on to its caches
            del self._call
            idle = Branch({}, layers=[TextKV() for _ in branch.layers])
            self._bind(NoCache(len(branch.layers)), idle, attend_locally)

    def unpatchify(self, rows: Tensor, latent: Shape3) -> Tensor:
        """See `DiffusionModel.unpatchify`; a Wan row holds (pt, ph, pw, C)."""
        pt, ph, pw = self.module.config.patch_size
        t, h, w = latent
        boxes = rows.reshape(t // pt, h // ph, w // pw, pt, ph, pw, -1)
        return boxes.permute(6, 0, 3, 1, 4, 2, 5).reshape(-1, t, h, w)

    def _bind(self, cache: Cache, branch: Branch, attend: Attend) -> None:
        for own, kv in zip(self._self_attention, cache.layers, strict=True):
            own.kv, own.attend = kv, attend
        self._reuse = cache if isinstance(cache, BlockCache) else None
        listener = self._reuse if self._reuse is not None and self._reuse.listens else None
        image = branch.image_input if branch.pictures else None
        for index, (cross, layer) in enumerate(zip(self._cross_attention, branch.layers, strict=True)):
            cross.text = layer
            cross.picture = branch.pictures[index] if branch.pictures else None
            cross.pictured = 0 if image is None else image.shape[1]
            cross.heard = partial(listener.attended, index) if listener else None

    def _through_block(self, layer: int, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def through(x: Tensor, *rest: Any, **options: Any) -> Tensor:
            if self._reuse is None:
                return forward(x, *rest, **options)
            return self._reuse.block(layer, x, lambda rows: forward(rows, *rest, **options))

        return through

    def _through_part(self, layer: int, name: str, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def through(x: Tensor, *rest: Any, **options: Any) -> Tensor:
            if self._reuse is None:
                return forward(x, *rest, **options)
            return self._reuse.part(layer, name, x, lambda rows: forward(rows, *rest, **options))

        return through

    def _note_time(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self._call.time = output

    def _begin_reuse(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if self._reuse is not None:
            width = output.shape[-1]  # the last one, where a first frame has a timestep of its own
            self._reuse.begin(self._call.time.view(-1, width // 6)[-1:], output.view(-1, width)[-1:])

    def _pick_times(self, module: nn.Module, args: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self._call.times is None:
            return output
        time, projected, *rest = output  # [1, 2, W], [1, 2, 6 W]
        return (time[:, self._call.times], projected[:, self._call.times], *rest)

    def _pick_rope(self, module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> Rope:
        cos, sin = (table[0].index_select(0, self._call.rows) for table in output)  # [n, 1, D]
        return turns(cos, sin)

    def _pick_hidden(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = args
        return (hidden.index_select(1, self._call.rows), *rest)

    def _take_output(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        self._call.output = output[0]
        # diffusers goes on to reshape all N rows; what it makes of these zeros is not used.
        return output.new_zeros(()).expand(1, self._call.tokens, output.shape[-1])


def turns(cos: Tensor, sin: Tensor) -> Rope:
    """Rotary tables [n, 1, D], with each pair's angle twice, as complex numbers [n, 1, D/2]."""
    return torch.complex(cos[..., 0::2].float(), sin[..., 1::2].float())


def rotate(x_nhd: Tensor, rope: Rope) -> Tensor:
    """Rotary embedding on interleaved pairs, [n, H, D]: one product, not eight operations with temporaries.

    Su et al., "RoFormer" (2021), eq. 13.
    """
    pairs = torch.view_as_complex(x_nhd.float().unflatten(-1, (-1, 2)))  # [n, H, D/2]
    return torch.view_as_real(pairs * rope).flatten(-2).type_as(x_nhd)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.view(len(x), heads, x.shape[1] // heads)  # [n, H, D]; n may be 0


def _output(attn: Any, out_nhd: Tensor) -> Tensor:
    projected: Tensor = attn.to_out[0](out_nhd.flatten(1))  # to_out[1] is dropout, idle at inference
    return projected.unsqueeze(0)
