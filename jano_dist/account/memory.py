"""Bytes that a rank needs, part by part, from shapes alone. The caches are exact, activations estimated.

The rank accounted for is the one that needs most: rank 0, which encodes the text and has the one token
more where the tokens do not divide.

Shapes: N tokens, S = kv x ulysses ranks that share them; N_s tokens of this rank's shard, N_r its own;
L layers, H heads, h = H / ulysses, D head dimension, W = H x D, F of the FFN, P values per output row;
e bytes per element.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch

from jano_dist.account.caches import (
    Taken,
    block_cache_bytes,
    cache_bytes,
    host_cache_bytes,
    own_rows,
    shard_rows,
    working_bytes,
)
from jano_dist.account.coding import Parts, decoding, encoding, vae_element
from jano_dist.config import CacheConfig, Config
from jano_dist.config.policies import KV_POLICIES
from jano_dist.degrees import Degrees
from jano_dist.geometry import Geometry
from jano_dist.groups import DECODERS, lines
from jano_dist.models.sizes import ModelSizes
from jano_dist.pinned import exact_sizes, pinned_bytes

# NCCL's buffers on a GPU, read and not measured: the rings of a group that broadcasts; and what all-to-all
# takes per peer (3.3 GB for 7 of them on H100, github.com/NVIDIA/nccl/issues/1685); more are no node's.
_RINGS, _PEER, _MOST_PEERS = 2**29, 450 * 2**20, 7


@dataclass(frozen=True)
class Memory:
    """Bytes of the rank that needs most.

    Attributes:
        resident: on the accelerator from the first step to the last, by part.
        denoise: on top of them at the peak of a full step.
        decode: on top of them, less the caches, at the peak of decoding.
        encode: while text and picture are encoded, when there are weights, but no caches yet.
        host: in host memory for as long as the generation takes, as much as PyTorch takes there.
    """

    resident: Parts
    denoise: Parts
    decode: Parts
    encode: Parts
    host: Parts

    @property
    def phases(self) -> Parts:
        """Peak on the accelerator in each phase."""
        resident = sum(self.resident.values())
        return {
            "encode": sum(self.encode.values()),
            "denoise": resident + sum(self.denoise.values()),
            "decode": resident - self.freed + sum(self.decode.values()),
        }

    @property
    def freed(self) -> int:
        """Of `resident`: caches and their buffers, which go before decoding."""
        return self.resident["cache"] + self.resident["working buffers"]

    @property
    def peak(self) -> int:
        """The largest of the phases."""
        return max(self.phases.values())

    @property
    def host_bytes(self) -> int:
        """All of `host`."""
        return sum(self.host.values())


def token_count(geometry: Geometry, config: Config) -> int:
    """N, tokens of the config's video."""
    video = config.video
    latent = geometry.latent_shape(video.frames, video.height, video.width)
    return math.prod(size // edge for size, edge in zip(latent, geometry.patch, strict=True))


def sequence_length(geometry: Geometry, config: Config) -> int:
    """Tokens that attention sees: those of the video and, in a joint model, of the text."""
    return token_count(geometry, config) + geometry.joint_tokens(config.model.max_sequence_length)


def branches_on_rank(geometry: Geometry, config: Config, degrees: Degrees) -> int:
    """How many branches a rank runs."""
    return geometry.branches(config.sampling.guidance) // degrees.cfg


def model_elements(sizes: ModelSizes, config: Config) -> tuple[int, int]:
    """Bytes per element of transformer (and its activations) and of the text encoder."""
    if config.model.dtype == "auto":
        return sizes.stored_elements
    element = getattr(torch, config.model.dtype).itemsize
    return element, element


def nccl_bytes(degrees: Degrees) -> int:
    """What NCCL takes on a GPU for the groups of a mesh (`form_groups`), estimated: rings of the world and of
    the node, of those that decode where they are not the world, and every peer along a dimension."""
    world = math.prod(degrees)
    if world == 1:
        return 0
    sizes = [len(ranks[0]) for ranks in lines(degrees).values()]
    rings = 3 if world > DECODERS else 2
    return rings * _RINGS + sum(min(size - 1, _MOST_PEERS) for size in sizes) * _PEER


def caches_anything(config: Config) -> bool:
    """Whether any step leaves something behind: not where every step computes every token."""
    policy = config.policy
    if not isinstance(policy, KV_POLICIES):  # those that reuse parts of blocks: see `block_cache_bytes`
        return False
    return policy.warmup < config.sampling.steps


def text_bytes(geometry: Geometry, text_tokens: int, element: int) -> int:
    """Cross-attention K/V of one branch, whole on every rank (2 L text W e; none in a joint model), and the
    embeddings."""
    kept = 0 if geometry.joint else 2 * geometry.layers * geometry.width
    return text_tokens * element * (kept + geometry.text_dim)


def picture_bytes(geometry: Geometry, element: int) -> int:
    """The same of a picture: its own K/V (2 L K W e), and its states; 0 without an image encoder."""
    kept = 2 * geometry.layers * geometry.width
    return geometry.image_tokens * element * (kept + geometry.image_dim)


def memory_of(sizes: ModelSizes, config: Config, degrees: Degrees, *, gpu: bool = True) -> Memory:
    """What the rank that needs most needs, for this config on this mesh.

    Args:
        gpu: with NCCL, cuDNN and pinned host memory; False: on a CPU, which has none of them.
    """
    geometry, cache = sizes.geometry, config.cache
    element, text_element = model_elements(sizes, config)
    tokens, branches = sequence_length(geometry, config), branches_on_rank(geometry, config, degrees)
    text_tokens = geometry.text_tokens(config.model.max_sequence_length)
    joint = geometry.joint_tokens(config.model.max_sequence_length)
    # DistVAE works on a copy of its own.
    spread = math.prod(degrees) > 1 and config.model.vae_parallel == "auto" and not geometry.images
    vae = sizes.vae * vae_element(config) * (2 if spread else 1)
    taken: Taken = partial(pinned_bytes, exact=exact_sizes()) if gpu else int
    here, offloaded = _weights(sizes, config, math.prod(degrees), element, taken)
    kept = in_host = working = 0
    if geometry.regions and caches_anything(config):
        kept = branches * cache_bytes(geometry, tokens, degrees, cache, element, text=joint)
        working = working_bytes(geometry, tokens, degrees, cache, element, text=joint)
    if kept and cache.device == "cpu":
        in_host = branches * host_cache_bytes(geometry, tokens, degrees, cache, element, taken, text=joint)
        kept = 0
    inside = block_cache_bytes(geometry, config.policy, own_rows(tokens, degrees), branches, element)
    pictured = branches * picture_bytes(geometry, element)
    libraries = {"NCCL": nccl_bytes(degrees)} if gpu and math.prod(degrees) > 1 else {}
    resident = {
        "transformer": here,
        "VAE": vae,
        "text K/V": branches * text_bytes(geometry, text_tokens, element),
        **({"picture K/V": pictured} if pictured else {}),
        "cache": kept,
        "working buffers": working,
        **({"block caches": inside} if inside else {}),
        "latents": _latents(geometry, token_count(geometry, config), element),
        **libraries,
    }
    texts = sizes.text_encoder * text_element if config.model.text_encoder == "keep" else 0
    # On a CPU a kept encoder is used where it lies.
    coding = encoding(sizes, config, text_element if gpu or not texts else 0, gpu=gpu)
    host = {"transformer": offloaded, "cache": in_host, "text encoder": texts}
    return Memory(
        resident=resident,
        denoise=_activations(
            geometry,
            tokens,
            degrees,
            cache,
            element,
            caches=bool(kept or in_host),
            times=geometry.first_frame and config.sampling.image is not None,
        ),
        decode=decoding(sizes, config, math.prod(degrees), gpu=gpu),
        encode={"transformer": here, "VAE": vae, **coding, **libraries},
        host={name: size for name, size in host.items() if size},
    )


def _weights(sizes: ModelSizes, config: Config, world: int, element: int, taken: Taken) -> tuple[int, int]:
    """Bytes of all transformers on the accelerator and in host memory; of two experts one may wait there."""
    here, offloaded = _placed(sizes, config, world, element, taken)
    if sizes.geometry.experts == 1:
        return here, offloaded
    if config.model.experts == "swap":
        return here, offloaded + sizes.transformer.nbytes(element)
    return 2 * here, 2 * offloaded


def _placed(sizes: ModelSizes, config: Config, world: int, element: int, taken: Taken) -> tuple[int, int]:
    """The same of one transformer.

    What passes by: two layers, one in use and the next arriving, and what is outside of the layers. With
    fsdp it comes on top of a rank's share, with group_offload all of the transformer is in host memory.
    """
    whole, layers = sizes.transformer.nbytes(element), [each.nbytes(element) for each in sizes.layers]
    passing = whole - sum(layers) + 2 * max(layers)
    if config.model.weights == "fsdp" and world > 1:
        return -(-whole // world) + passing, 0
    if config.model.weights == "group_offload":
        return passing, sum(map(taken, sizes.transformer.tensor_bytes(element)))
    return whole, 0


def _latents(geometry: Geometry, tokens: int, element: int) -> int:
    """Whole on every rank: the latent, its noise, UniPC's history of two and the step's temporaries, 8 in
    float32; 4 sets of output rows: those kept, one per branch, the guided ones; and a picture's channels."""
    positions = tokens * geometry.patch_positions
    pictured = positions * geometry.condition_channels * element
    return 8 * positions * geometry.channels * 4 + 4 * tokens * geometry.row_width * element + pictured


def _activations(
    geometry: Geometry,
    tokens: int,
    degrees: Degrees,
    cache: CacheConfig,
    element: int,
    *,
    caches: bool,
    times: bool = False,
) -> Parts:
    """The peak of one forward of a full step, estimated: what is alive at once in its largest moment.

    It is in the first layer, while the patch embedding of the whole sequence is still there. A layer's
    moments come one after the other, so only the largest counts. A test compares the sum with what
    PyTorch's memory profiler sees.

    Args:
        caches: whether steps leave something behind. times: whether each token has a timestep of its own.
    """
    own, shard, d = own_rows(tokens, degrees), shard_rows(tokens, degrees), geometry.width
    row, heads_width = own * d * element, d // degrees.ulysses
    attention = {"q, k, v": 3 * row, "attention output": 2 * row}
    if degrees.ulysses > 1:
        attention["exchange"] = 6 * row  # q, k, v as sent and as received
    if degrees.kv > 1:
        # Queries of all shards as sent and as received, and the partial outputs the same way.
        attention["KV-resident exchange"] = 4 * tokens * heads_width * element
    if caches and cache.dtype == "fp8":
        # One tensor at a time: its absolute values and its scaled values, float32.
        kept = own * d if cache.kind == "hidden" else shard * heads_width
        attention["8-bit temporaries"] = 2 * kept * 4
    moments = (
        {"float32 norms": 3 * own * d * 4},
        {"q, k, v": 3 * row, "rotary temporaries": 2 * own * d * 4},
        attention,
        {"FFN": 2 * own * geometry.ffn_dim * element + row},
    )
    # What a timestep becomes, and its six projections; a layer has these with its own added, in float32.
    timed = {"timesteps of tokens": 7 * row + 6 * own * d * 4} if times else {}
    return {
        **timed,
        "patch embedding": tokens * d * element,
        "rotary table": own * geometry.head_dim * 4,
        "layer input": 3 * row,  # the rows picked, the rows now, and their normed copy
        **max(moments, key=lambda parts: sum(parts.values())),
    }
