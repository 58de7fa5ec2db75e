"""The account against numbers worked out by hand, the buffers themselves, and the profiler."""

import json
import math
import re
from dataclasses import replace
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from jano_dist import Engine, cli
from jano_dist.account import (
    Room,
    cache_bytes,
    cheapest,
    check_fit,
    complaint,
    memory_of,
    sent_bytes,
    step_work,
    steps_of,
    working_bytes,
)
from jano_dist.account import fit as fit_module
from jano_dist.account.memory import _activations, token_count
from jano_dist.cache import CacheSizes, Keeping, NoCache, make_caches
from jano_dist.config import CacheConfig, load_config
from jano_dist.degrees import Degrees, choose_degrees, valid_degrees
from jano_dist.denoise import Denoiser
from jano_dist.errors import UserError
from jano_dist.geometry import WanGeometry
from jano_dist.mesh import Mesh
from jano_dist.models.base import FIRST_FRAME
from jano_dist.models.sizes import read_sizes
from jano_dist.observe import NullObserver
from jano_dist.policies import make_policy
from jano_dist.snapshot import NoSnapshots
from jano_dist.tokens.schedule import StepKind
from tests.cli.sentence import assert_sentence

GB, GIB = 1e9, 2**30
CPU = torch.device("cpu")
N = 75_600  # tokens of 1280x720, 81 frames: 21 x 45 x 80
ALONE = Degrees(1, 1, 1)
KINDS = [(kind, dtype) for kind in ("kv", "hidden") for dtype in ("native", "fp8")]


@pytest.fixture(scope="module")
def large():
    return read_sizes("Wan-AI/Wan2.1-T2V-14B-Diffusers", local=True)


def config(name="wan2.1-14b-720p", **overrides):
    return load_config(name, overrides={key.replace("__", "."): value for key, value in overrides.items()})


def mesh(sizes, world, local_world=8, **rest):
    return choose_degrees(
        config().mesh, world=world, heads=sizes.geometry.heads, guided=True, local_world=local_world, **rest
    )


class TestSizes:
    def test_14b(self, large):
        d, f, layers = 5120, 13824, 40
        layer = 8 * (d * d + d) + 4 * d + 2 * d + (d * f + f) + (f * d + d) + 6 * d
        outside = (16 * 4 * d + d) + (256 * d + d) + (d * d + d) + (6 * d * d + 6 * d)
        outside += (4096 * d + d) + (d * d + d) + (64 * d + 64) + 2 * d
        in_float32 = (256 * d + d) + (d * d + d) + 2 * d + layers * (2 * d + 6 * d)
        assert large.transformer.float32 == in_float32
        assert large.transformer.plain + in_float32 == layers * layer + outside
        assert large.transformer.nbytes(2) / GB == pytest.approx(28.6, abs=0.05)
        assert [each.plain + each.float32 for each in large.layers] == [layer] * layers

    def test_other_parts(self, large):
        assert large.text_encoder == pytest.approx(5.68e9, rel=1e-3)
        assert large.vae == pytest.approx(127e6, rel=1e-2)
        assert large.vae_channels == 96

    def test_1_3b(self):
        sizes = read_sizes("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", local=True)
        assert (sizes.geometry.layers, sizes.geometry.width, sizes.geometry.ffn_dim) == (30, 1536, 8960)
        assert sizes.transformer.plain + sizes.transformer.float32 == pytest.approx(1.42e9, rel=1e-2)

    def test_a_folder_is_asked_itself(self):
        sizes = read_sizes("wan-tiny", local=True)
        assert not sizes.from_table
        assert sizes.stored_elements in ((2, 2), (2, 4), (4, 4))

    def test_unknown(self):
        with pytest.raises(UserError, match="fetch it, or name one of"):
            read_sizes("nobody/nothing", local=True)


class TestCache:
    def test_published(self, large):
        """DESIGN section 6: the published code takes 269 - 65 = 204 GB for 14B; K/V is 0.8 MB per token."""
        both = 2 * cache_bytes(large.geometry, N, ALONE, CacheConfig(), 2)
        assert both == 2 * 2 * 40 * N * 40 * 128 * 2
        assert both / GB == pytest.approx(123.9, abs=0.05)
        assert both / 2 / N == pytest.approx(0.82e6, rel=0.01)
        assert 2 * cache_bytes(large.geometry, 32_760, ALONE, CacheConfig(), 2) / GB == pytest.approx(
            53.7, abs=0.05
        )

    @pytest.mark.parametrize(
        ("kind", "dtype", "share"),
        [
            ("kv", "native", 1),
            ("kv", "fp8", 132 / 256),
            ("hidden", "native", 1 / 2),
            ("hidden", "fp8", 0.2578125),
        ],
    )
    @pytest.mark.parametrize("world", [1, 2, 4, 8, 16])
    def test_per_rank(self, large, kind, dtype, share, world):
        """Whatever the mesh, a rank has its part of the whole: 75,600 is divisible by 16."""
        settings = config(cache__kind=kind, cache__dtype=dtype)
        for degrees in valid_degrees(world=world, heads=40, guided=True):
            kept = memory_of(large, settings, degrees).resident["cache"]
            assert kept == pytest.approx(123.863e9 * share / world, rel=1e-4)

    @given(
        tokens=st.integers(1, 500),
        kv=st.integers(1, 5),
        ulysses=st.sampled_from([1, 2, 3, 6]),
        kind_dtype=st.sampled_from(KINDS),
    )
    def test_ranks_sum_to_the_whole(self, tokens, kv, ulysses, kind_dtype):
        geometry = WanGeometry(16, 16, (4, 8, 8), (1, 2, 2), 3, 6, 8, 64, 32, 16)
        degrees, cache = Degrees(1, kv, ulysses), CacheConfig(kind=kind_dtype[0], dtype=kind_dtype[1])
        whole = cache_bytes(geometry, tokens, ALONE, cache, 2)
        ranks = range(kv * ulysses)
        assert sum(cache_bytes(geometry, tokens, degrees, cache, 2, rank) for rank in ranks) == whole
        assert cache_bytes(geometry, tokens, degrees, cache, 2) == max(
            cache_bytes(geometry, tokens, degrees, cache, 2, rank) for rank in ranks
        )

    @pytest.mark.parametrize("device", ["accelerator", "cpu"])
    @pytest.mark.parametrize(("kind", "dtype"), KINDS)
    @pytest.mark.parametrize("degrees", [ALONE, Degrees(1, 1, 2), Degrees(2, 3, 1), Degrees(1, 2, 3)])
    def test_is_what_the_buffers_take(self, kind, dtype, device, degrees):
        geometry = WanGeometry(16, 16, (4, 8, 8), (1, 2, 2), 3, 6, 8, 64, 32, 16)
        cache = CacheConfig(kind=kind, dtype=dtype, device=device)
        for rank in range(math.prod(degrees)):
            # One token after the other is dealt to the ranks that share a branch.
            sharing = degrees.kv * degrees.ulysses
            place, dealt = rank % sharing, [token % sharing for token in range(53)]
            own = dealt.count(place)
            shard = sum(other // degrees.ulysses == place // degrees.ulysses for other in dealt)
            sizes = CacheSizes(3, own, shard, 6, 6 // degrees.ulysses, 8)
            caches, working = make_caches(
                kind, Keeping(dtype, device), sizes, 2, torch.bfloat16, torch.device("cpu")
            )
            assert [each.nbytes for each in caches] == [
                cache_bytes(geometry, 53, degrees, cache, 2, rank)
            ] * 2
            assert working == working_bytes(geometry, 53, degrees, cache, 2, rank)

    @pytest.mark.parametrize("device", ["accelerator", "cpu"])
    @pytest.mark.parametrize(("kind", "dtype"), KINDS)
    def test_second_attentions_keep_no_text(self, kind, dtype, device):
        """13 tokens of 53 are of the text, dealt one by one before the others; of 3 layers 2 have one."""
        geometry = replace(WanGeometry(16, 16, (4, 8, 8), (1, 2, 2), 3, 6, 8, 64, 32, 16), second_layers=2)
        cache, degrees = CacheConfig(kind=kind, dtype=dtype, device=device), Degrees(1, 2, 3)
        for rank in range(6):
            dealt = [token % 6 for token in range(53)]
            first, second = (
                CacheSizes(
                    layers,
                    tokens.count(rank),
                    sum(other // 3 == rank // 3 for other in tokens),
                    6, 2, 8,
                )
                for layers, tokens in ((3, dealt), (2, dealt[13:]))
            )  # fmt: skip
            (kept,), working = make_caches(
                kind, Keeping(dtype, device), replace(first, second=second), 1, torch.bfloat16, CPU
            )
            assert len(kept.layers) == geometry.attentions == 5
            assert kept.nbytes == cache_bytes(geometry, 53, degrees, cache, 2, rank, text=13)
            assert working == working_bytes(geometry, 53, degrees, cache, 2, rank, text=13)

    def test_in_host_memory(self, large):
        memory = memory_of(large, config(cache__device="cpu"), ALONE)
        assert memory.resident["cache"] == 0
        assert memory.host == {"cache": pytest.approx(123.863e9, rel=1e-4)}
        # Two layers of one branch: 1/40 of its 61.9 GB each.
        assert memory.resident["working buffers"] == pytest.approx(2 * 123.863e9 / 80, rel=1e-4)

    def test_none_without_sparse_steps(self, large):
        settings = load_config("wan2.1-14b-720p", policy="full")
        memory = memory_of(large, settings, ALONE)
        assert memory.resident["cache"] == memory.resident["working buffers"] == 0


class TestWeights:
    OTHERS = ("transformer", "VAE", "NCCL")  # in memory while something is encoded

    def test_replicated(self, large):
        for world in (1, 8):
            memory = memory_of(large, config(), mesh(large, world))
            assert memory.resident["transformer"] / GB == pytest.approx(28.6, abs=0.05)

    def test_fsdp(self, large):
        settings = config(model__weights="fsdp")
        memory = memory_of(large, settings, mesh(large, 8))
        # A layer has 351 M parameters, 0.70 GB; two are gathered, and the 0.5 GB outside of the layers.
        passing = 28.63 - 38 * 0.703
        assert memory.resident["transformer"] / GB == pytest.approx(28.63 / 8 + passing, abs=0.05)
        assert memory_of(large, settings, ALONE).resident["transformer"] / GB == pytest.approx(28.6, abs=0.05)

    def test_group_offload(self, large):
        memory = memory_of(large, config(model__weights="group_offload"), ALONE)
        assert memory.host["transformer"] / GB == pytest.approx(28.6, abs=0.05)
        assert memory.resident["transformer"] / GB == pytest.approx(28.63 - 38 * 0.703, abs=0.05)

    def test_layers_that_differ(self):
        """Of Flux.1's layers, 19 of two streams and 38 of one, two of the larger ones are on the device at
        once, in bf16, and what is outside of all."""
        d = 3072
        row, norms = d * d + d, 2 * 128
        double = 12 * row + 8 * row + 2 * norms + 2 * (8 * d * d + 5 * d)
        single = 3 * row + norms + 3 * row + (4 * d * d + 4 * d) + (5 * d * d + d)
        sizes = read_sizes("black-forest-labs/FLUX.1-dev", local=True)
        assert [each.plain for each in sizes.layers] == [double] * 19 + [single] * 38
        own = {"model.weights": "group_offload", "model.dtype": "bfloat16"}
        settings = load_config("flux.1-dev-1024", overrides=own)
        outside = sizes.transformer.plain - 19 * double - 38 * single
        assert outside > 0
        resident = memory_of(sizes, settings, ALONE).resident["transformer"]
        assert resident == 2 * (2 * double + outside)

    def test_text(self, large):
        """0.42 GB per branch (DESIGN section 5); the encoder's 11.4 GB only while it encodes."""
        memory = memory_of(large, config(), ALONE)
        assert memory.resident["text K/V"] / GB == pytest.approx(2 * 0.42, abs=0.02)
        assert memory.encode["text encoder"] / GB == pytest.approx(11.36, abs=0.01)
        assert memory.phases["encode"] == sum(memory.encode.values()) < memory.peak

    def test_a_picture(self, large):
        """Wan2.1's I2V: 257 states of 1280, projected to keys and values of their own in every layer; and 20
        channels beside the latent's, the same for both branches."""
        sizes = read_sizes("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", local=True)
        own, plain = memory_of(sizes, config(), ALONE).resident, memory_of(large, config(), ALONE).resident
        assert own["picture K/V"] == 2 * 257 * 2 * (2 * 40 * 5120 + 1280)
        assert own["text K/V"] == plain["text K/V"]
        assert own["latents"] - plain["latents"] == 20 * 21 * 90 * 160 * 2
        assert "picture K/V" not in plain

    @pytest.mark.parametrize("name", ["Wan2.1-I2V-14B-480P", "Wan2.2-I2V-A14B"])
    def test_the_picture_is_encoded_after_the_text(self, name):
        """At 720p the VAE's way with it takes more than the text encoder, at 480p less; never both."""
        sizes, encoding = read_sizes(f"Wan-AI/{name}-Diffusers", local=True), {}
        for height, width in ((480, 832), (720, 1280)):
            settings = config(video__height=height, video__width=width)
            parts = memory_of(sizes, settings, Degrees(1, 1, 8)).encode
            encoding[height] = {part: size for part, size in parts.items() if part not in self.OTHERS}
        assert encoding[480] == {"text encoder": sizes.text_encoder * 2}
        decoded = memory_of(sizes, config(), ALONE).decode  # on one rank: it is the coordinator's alone
        assert encoding[720] == {f"{part}, of the picture": size for part, size in decoded.items()}
        assert sizes.text_encoder == pytest.approx(5.68e9, rel=1e-3)
        assert sizes.image_encoder == pytest.approx(0.632e9 if "2.1" in name else 0, rel=1e-2)

    def test_the_image_encoder_may_take_most(self):
        """In float32, beside a small text encoder and for a small video."""
        sizes = read_sizes("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", local=True)
        settings = config(video__frames=5, video__height=64, video__width=64)
        parts = memory_of(replace(sizes, text_encoder=10**9), settings, ALONE).encode
        assert parts["image encoder"] == 4 * sizes.image_encoder > 2 * 10**9
        assert not parts.keys() - {*self.OTHERS, "image encoder"}

    @pytest.mark.parametrize(("world", "tiling"), [(1, True), (8, False)])
    def test_decoding_takes_less(self, large, world, tiling):
        alone = memory_of(large, config(), ALONE).decode
        less = memory_of(large, config(model__vae_tiling=tiling), mesh(large, world)).decode
        assert less["VAE activations"] < alone["VAE activations"] / 7

    def test_the_coordinator_decodes_alone(self, large):
        less = memory_of(large, config(model__vae_parallel="single"), mesh(large, 8))
        one = memory_of(large, config(), ALONE)
        assert less.decode == one.decode
        assert less.resident["VAE"] == one.resident["VAE"] == large.vae * 4
        # DistVAE replaces modules, so what the ranks do together they do with a copy.
        assert memory_of(large, config(), mesh(large, 8)).resident["VAE"] == 2 * large.vae * 4


def rounded(nbytes):
    """The power of two from `nbytes` on, counted up."""
    size = 1
    while size < nbytes:
        size *= 2
    return size


def tensors_14b():
    """Bytes of every parameter of the 14B transformer in bfloat16, from its shapes."""
    d, f = 5120, 13824
    layer = [2 * each for each in [d * d, d] * 8 + [d] * 4 + [d * f, f, f * d, d]] + [4 * d] * 2 + [4 * 6 * d]
    outside = [16 * 4 * d, d, 6 * d * d, 6 * d, 4096 * d, d, d * d, d, 64 * d, 64]
    return 40 * layer + [2 * each for each in outside] + [4 * each for each in (256 * d, d, d * d, d, 2 * d)]


class TestHostMemory:
    """Of 14B at 720p on 8 GPUs, cfg 2 x ulysses 4: K and V of 10 heads, 40 layers, one branch."""

    MESH = Degrees(2, 1, 4)

    def host(self, large, exact, mesh=MESH, **settings):
        with mock.patch("jano_dist.account.memory.exact_sizes", return_value=exact):
            return memory_of(large, config(**settings), mesh).host

    @pytest.mark.parametrize(
        ("exact", "one"), [(False, 256 * 2**20), (True, N * 10 * 128 * 2)], ids=["rounded", "exact"]
    )
    def test_a_cache_lies_there_tensor_by_tensor(self, large, exact, one):
        assert self.host(large, exact, cache__device="cpu") == {"cache": 2 * 40 * one}  # 20 GiB, or 14.4

    @pytest.mark.parametrize("kind", ["kv", "hidden"])
    def test_an_8_bit_cache(self, large, kind):
        settings = {"cache__device": "cpu", "cache__dtype": "fp8", "cache__kind": kind}
        rows, tensors = (N * 10, 2) if kind == "kv" else (N // 4 * 40, 1)
        for exact, size in ((True, int), (False, rounded)):
            kept = 40 * tensors * (size(rows * 128) + size(rows * 4))
            assert self.host(large, exact, **settings) == {"cache": kept}

    def test_offloaded_weights(self, large):
        sizes = tensors_14b()
        whole = self.host(large, False, model__weights="group_offload")["transformer"]
        assert whole == sum(map(rounded, sizes))
        assert whole / GIB == pytest.approx(40.8, abs=0.05)
        exact = self.host(large, True, model__weights="group_offload")["transformer"]
        assert exact == sum(size if size > 2**20 else rounded(size) for size in sizes)
        assert exact / GIB == pytest.approx(26.7, abs=0.05)

    def test_on_a_cpu_nothing_is_pinned(self, large):
        settings = config(cache__device="cpu", model__weights="group_offload")
        host = memory_of(large, settings, self.MESH, gpu=False).host
        assert host == {"cache": 2 * 40 * N * 10 * 128 * 2, "transformer": sum(tensors_14b())}


class TestKeptTextEncoder:
    """In host memory for as long as the run takes; on a CPU it is used where it lies, and counted once."""

    def test_row(self, large):
        kept, anew = (memory_of(large, config(model__text_encoder=how), ALONE) for how in ("keep", "reload"))
        assert kept.host == {"text encoder": large.text_encoder * 2}
        assert anew.host == memory_of(large, config(), ALONE).host == {}
        assert kept.phases == anew.phases

    def test_on_a_cpu(self, large):
        kept, anew = (
            memory_of(large, config(model__text_encoder=how), ALONE, gpu=False) for how in ("keep", "reload")
        )
        assert anew.encode["text encoder"] == kept.host["text encoder"]
        assert not kept.encode["text encoder"]

    @pytest.mark.parametrize(("host", "wanted"), [(14, "keep"), (10, "reload"), (None, "keep")])
    def test_auto_keeps_it_where_it_fits(self, monkeypatch, host, wanted):
        """11.4 GB of it; a made-up GPU and host, or one that does not say."""
        monkeypatch.setattr(fit_module, "room_on", lambda *_: Room(200 * GIB, host * GIB) if host else None)
        settings = config()
        device = torch.device("cuda", 0)
        monkeypatch.setattr(fit_module, "read_sizes", lambda name: read_sizes(name, local=True))
        assert check_fit(settings, ALONE, device) == wanted
        assert check_fit(config(model__text_encoder="reload"), ALONE, device) == "reload"

    def test_what_helps_where_it_does_not_fit(self, large):
        room = Room(200 * GIB, 5 * GIB)
        said = complaint(large, config(model__text_encoder="keep"), ALONE, room, local_world=1)
        assert "needs about 10.6 GiB of host memory but 5.0 GiB are free" in said
        assert said.endswith(f"use --set model.text_encoder=reload ({gib(room, large)} per rank)")

    def test_reload_is_no_saving_where_it_is_not_kept(self, large):
        found = cheapest(large, config(), Room(80 * GIB), world=1, local_world=1)
        assert "text_encoder" not in found[0]


def gib(room, sizes):
    return fit_module.gib(room.needed(memory_of(sizes, config(), ALONE)))


class TestLibraries:
    """Estimates; only their form can be checked: what grows with what, and that nothing counts twice."""

    @pytest.mark.parametrize(
        ("degrees", "rings", "peers"),
        [
            ((2, 1, 1), 2, 1),
            ((2, 1, 4), 2, 1 + 3),
            ((1, 1, 8), 2, 7),
            ((1, 2, 4), 2, 1 + 3 + 7),  # and those that share the sequence
            ((2, 4, 8), 3, 1 + 3 + 7 + 7),  # 31 of them, of which 7 have channels of their own; 8 decode
        ],
    )
    def test_nccl_by_peers(self, large, degrees, rings, peers):
        memory = memory_of(large, config(), Degrees(*degrees))
        assert memory.resident["NCCL"] == memory.encode["NCCL"] == rings * 2**29 + peers * 450 * 2**20

    def test_eight_ranks_decode_at_most(self, large):
        """A rank's band of the rows: an eighth of them, also with more ranks."""
        alone, eight, sixteen = (
            memory_of(large, config(), degrees, gpu=False).decode["VAE activations"]
            for degrees in (ALONE, Degrees(2, 1, 4), Degrees(2, 1, 8))
        )
        assert alone == 8 * eight == 8 * sixteen

    def test_none_alone_or_on_cpus(self, large):
        for memory in (
            memory_of(large, config(), ALONE),
            memory_of(large, config(), mesh(large, 8), gpu=False),
        ):
            assert "NCCL" not in memory.resident | memory.encode
        assert "cuDNN workspace" not in memory.decode

    def test_cudnn_turns_a_convolutions_input_and_output(self, large):
        """Float32, 96 channels at 720p: 6 frames, and 4."""
        assert memory_of(large, config(), ALONE).decode["cuDNN workspace"] == (6 + 4) * 96 * 4 * 720 * 1280

    def test_what_nccl_has_taken_is_not_asked_for_again(self, large):
        memory = memory_of(large, config(), mesh(large, 8))
        taken = memory.resident["NCCL"]
        assert Room(80 * GIB, taken=taken).needed(memory) == memory.peak - taken

    def test_check(self, monkeypatch):
        """Of a made-up GPU a GiB is free. NCCL would take more; or it has, and the model is small."""
        settings, device, degrees = config("wan-tiny"), torch.device("cuda", 0), Degrees(2, 1, 1)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (GIB, 80 * GIB))
        check_fit(settings, degrees, device, formed=True)
        with pytest.raises(UserError, match=r"\(NCCL 1.4 GiB, .* but 1.0 GiB are free"):
            check_fit(settings, degrees, device)


class TestWork:
    def test_forward(self, large):
        """6.523 PFLOP per forward at 75,600 tokens (DESIGN section 6); two branches."""
        work = step_work(large, config(), ALONE, StepKind.FULL, N)
        assert work.flops == work.rank_flops
        assert work.flops / 2e15 == pytest.approx(6.523, abs=0.005)

    @pytest.mark.parametrize("world", [2, 4, 8, 16])
    def test_ranks_share_it(self, large, world):
        for degrees in valid_degrees(world=world, heads=40, guided=True):
            work = step_work(large, config(), degrees, StepKind.ACTIVE, 16_000)
            assert world * work.rank_flops == pytest.approx(work.flops, rel=2e-3)

    def test_hidden_makes_keys_and_values_again(self, large):
        kept, again = (
            step_work(large, config(cache__kind=kind), ALONE, StepKind.ACTIVE, 20_000).flops
            for kind in ("kv", "hidden")
        )
        assert again - kept == 2 * 40 * 4 * (N - 20_000) * 5120**2

    def test_ulysses(self, large):
        """4 ranks, both branches on each: 4 tensors of n/4 rows, of which 3/4 go to others."""
        sent = sent_bytes(large, config(), Degrees(1, 1, 4), 20_000)
        assert sent.ulysses == 2 * 40 * 4 * 5_000 * 5120 * 2 * 3 / 4
        assert (sent.kv, sent.ring) == (0, 0)
        assert sent.output == 5_000 * 64 * 2 * 3

    def test_ulysses_hidden(self, large):
        sent = sent_bytes(large, config(cache__kind="hidden"), Degrees(1, 1, 4), 20_000)
        assert sent.ulysses == 2 * 40 * (2 * 5_000 + 2 * N / 4) * 5120 * 2 * 3 / 4

    def test_kv_resident(self, large):
        sent = sent_bytes(large, config(), Degrees(2, 2, 2), 20_000)
        queries, partial = 10_000 * 2560 * 2, 10_000 * (2560 * 2 + 20 * 4)
        assert sent.kv == 40 * (queries + partial)
        assert sent.ring == 40 * 2 * N / 2 * 2560 * 2
        assert sent.output == 5_000 * 64 * 2 * (1 + 3)

    def test_steps(self, large):
        steps = {step.kind: step for step in steps_of(large, config(), ALONE, active=0.25, moderate=0.2)}
        assert {kind: step.tokens for kind, step in steps.items()} == {
            "full": N,
            "refresh": N,
            "moderate": 34_020,
            "active": 18_900,
        }
        assert sum(step.steps for step in steps.values()) == 50
        assert steps["full"].steps == 10


class TestFit:
    @pytest.mark.parametrize(("world", "local_world"), [(8, 8), (16, 8)])
    def test_14b_720p_on_80_gib(self, large, world, local_world):
        degrees = mesh(large, world, local_world)
        assert complaint(large, config(), degrees, Room(80 * GIB), local_world=local_world) is None

    @pytest.mark.parametrize(
        ("world", "gpu", "host", "options"),
        [
            (4, 67, None, "--cfg 1 --kv 1 --ulysses 4"),  # the branches' activations one after the other
            (2, 99, None, "--cfg 1 --kv 1 --ulysses 2"),
            (2, 80, None, "--set cache.dtype=fp8"),
            (4, 54, None, "--set cache.kind=hidden"),
            (1, 80, None, "--set cache.device=cpu"),
            (1, 80, 64, "--set cache.dtype=fp8 --set cache.kind=hidden"),
            (1, 64, 64, "--set cache.dtype=fp8 --set cache.device=cpu"),
            (8, 30, None, "--set model.weights=fsdp"),
            (
                1,
                24,
                None,
                "--set cache.device=cpu --set model.weights=group_offload --set model.vae_tiling=true",
            ),
            (8, 10, None, None),
        ],
    )
    def test_cheapest(self, large, world, gpu, host, options):
        room = Room(gpu * GIB, host and host * GIB)
        found = cheapest(large, config(), room, world=world, local_world=min(world, 8))
        assert (found and found[0]) == options
        if found:
            assert room.holds(found[1])

    def test_sentence(self, large):
        sentence = complaint(large, config(), mesh(large, 2), Room(80 * GIB), local_world=8)
        assert "cache 57.7 GiB" in sentence
        assert "use --set cache.dtype=fp8" in sentence
        assert ". " not in sentence

    def test_sentence_names_what_lies_on_the_device(self, large):
        settings = config(model__weights="group_offload", cache__device="cpu")
        sentence = complaint(large, settings, ALONE, Room(20 * GIB), local_world=1)
        assert re.search(r"to decode \(decoding 2\d.\d GiB, transformer 1.\d GiB, ", sentence)

    def test_sentence_names_host_memory(self, large):
        sentence = complaint(large, config(), ALONE, Room(80 * GIB), local_world=1)
        assert sentence.endswith("GiB and 115.4 GiB of host memory per rank)")

    def test_shared_memory_counts_once(self, large):
        """On a CPU what is kept in host memory is no less memory."""
        memory = memory_of(large, config(cache__device="cpu"), ALONE)
        assert Room(200 * GIB, 200 * GIB, shared=True).needed(memory) == memory.peak + memory.host_bytes
        assert not Room(100 * GIB, 100 * GIB, shared=True).holds(memory)
        assert not Room(100 * GIB, 50 * GIB).holds(memory)
        assert Room(100 * GIB, 200 * GIB).holds(memory)

    def test_check(self, monkeypatch):
        settings, device = config("wan-tiny"), torch.device("cpu")
        monkeypatch.setattr(fit_module, "host_memory", lambda: {"free_bytes": GIB})
        check_fit(settings, ALONE, device)
        monkeypatch.setattr(fit_module, "host_memory", lambda: {"free_bytes": None})
        check_fit(settings, ALONE, device)
        monkeypatch.setattr(fit_module, "host_memory", lambda: {"free_bytes": 2**23})
        with pytest.raises(UserError, match=r"a rank needs about .* MiB to decode .* free for it .*: "):
            check_fit(settings, ALONE, device)


def peak_bytes(call, folder):
    """The most that a call holds at once of what it allocates, on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled, torch.inference_mode():
        call()
    profiled.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


_480P = {"video.frames": 33, "video.height": 480, "video.width": 832, "sampling.steps": 5}


class TestEstimates:
    @pytest.mark.parametrize("times", [False, True])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_activations(self, dtype, times, tmp_path):
        from diffusers import WanTransformer3DModel

        from jano_dist.models.wan import WanTransformer

        torch.manual_seed(0)
        transformer = WanTransformer3DModel(
            num_layers=2, num_attention_heads=4, ffn_dim=1382, text_dim=64, freq_dim=32
        ).to(dtype)
        model = WanTransformer(transformer)
        latent, rows = torch.zeros(16, 5, 32, 48), torch.arange(5 * 16 * 24)
        first = {FIRST_FRAME: latent[None, :, :1]} if times else {}
        branch = model.branch({"text": torch.zeros(1, 8, 64), **first})

        def forward():
            model.forward(latent, torch.tensor(5.0), branch, rows, NoCache(2))

        with torch.inference_mode():
            forward()  # makes the text's keys and values
        geometry = WanGeometry(16, 16, (4, 8, 8), (1, 2, 2), 2, 4, 128, 1382, 64, 32)
        shapes = (geometry, len(rows), ALONE, CacheConfig(), dtype.itemsize)
        parts = _activations(*shapes, caches=False, times=times)
        assert sum(parts.values()) == pytest.approx(peak_bytes(forward, tmp_path), rel=0.1)

    def test_latents(self, tmp_path):
        """The whole loop at 480p, in which the model's own work is left out."""
        settings = load_config("wan-tiny", policy="full", overrides=_480P)
        model = Engine(load_config("wan-tiny", policy="full")).model
        latent = model.geometry.latent_shape(33, 480, 832)
        denoiser = Denoiser(settings, model, Mesh.single(), latent)
        shape = token_count(model.geometry, settings), model.geometry.row_width
        text = {"text": torch.zeros(2, 32, model.geometry.text_dim)}
        policy = make_policy(settings.policy.model_dump(), steps=5, latent=latent, patch=model.geometry.patch)

        def denoise():
            denoiser.run(denoiser.begin(text, seed=0), policy, NullObserver(), NoSnapshots(), {})

        def forward(*_):
            return torch.zeros(shape, dtype=model.dtype)

        with mock.patch.object(model, "forward", forward):
            denoise()  # imports
            measured = peak_bytes(denoise, tmp_path)
        predicted = memory_of(read_sizes("wan-tiny", local=True), settings, ALONE).resident["latents"]
        assert predicted == pytest.approx(measured, rel=0.15)

    def test_encoding_a_picture(self, tmp_path):
        """Estimated as decoding is: from above."""
        from diffusers import AutoencoderKLWan

        sizes = read_sizes("Wan-AI/Wan2.2-I2V-A14B-Diffusers", local=True)
        sizes = replace(sizes, text_encoder=0)
        settings = config(video__frames=5, video__height=64, video__width=64)
        parts = memory_of(sizes, settings, ALONE, gpu=False).encode
        estimate = sum(size for part, size in parts.items() if part.endswith("of the picture"))
        vae, video = AutoencoderKLWan(), torch.zeros(1, 3, 5, 64, 64)
        measured = peak_bytes(lambda: vae.encode(video.clone()), tmp_path)
        assert 0.7 * estimate < measured < estimate

    def test_decoding(self, large, tmp_path):
        """With the VAE's real width: with few channels CPU convolutions unfold their input."""
        from diffusers import AutoencoderKLWan

        settings = config(video__frames=5, video__height=64, video__width=64)
        estimate = sum(memory_of(large, settings, ALONE, gpu=False).decode.values())
        vae, latent = AutoencoderKLWan(), torch.zeros(1, 16, 2, 8, 8)
        assert estimate == pytest.approx(peak_bytes(lambda: vae.decode(latent), tmp_path), rel=0.2)


class Result:
    def __init__(self, code, captured):
        self.code, self.out, self.err = code, captured.out, captured.err


@pytest.fixture
def plan(capsys):
    def run(*options):
        code = cli.run(["plan", *options])
        return Result(code, capsys.readouterr())

    return run


BIG = ("--config", "wan2.1-14b-720p", "--gpus", "16", "--gpus-per-node", "8", "--gpu-memory", "80")


class TestCommand:
    def test_table(self, plan):
        result = plan(*BIG)
        assert result.code == 0, result.err
        for words in ("75600 tokens", "known for its name", "It fits.", "cache", "ring", "Meshes"):
            assert words in " ".join(result.out.split()), words

    def test_json(self, plan):
        result = plan(*BIG, "--json", "--set", "cache.dtype=fp8", "--active", "0.3")
        assert result.code == 0, result.err
        found = json.loads(result.out)
        degrees = Degrees(**found["mesh"])
        assert math.prod(degrees) == 16
        assert found["fits"]
        assert found["problem"] is None
        # Two branches, keys and values, a byte per element and 4 per row and head; 16 ranks share them.
        assert found["memory"]["resident"]["cache"] == 2 * 2 * 40 * N * 40 * (128 + 4) / 16
        assert [step["kind"] for step in found["steps"]] == ["full", "refresh", "moderate", "active"]
        assert found["steps"][-1]["tokens"] == 0.3 * N
        assert len(found["alternatives"]) == 7
        assert found["model"]["from_table"]

    def test_degrees_and_what_does_not_fit(self, plan):
        result = plan(*BIG[:2], "--gpus", "2", "--gpu-memory", "80", "--cfg", "1", "--kv", "2", "--json")
        found = json.loads(result.out)
        assert (result.code, result.err) == (1, "")
        assert found["mesh"] == {"cfg": 1, "kv": 2, "ulysses": 1}
        assert not found["fits"]
        assert "use --set" in found["problem"]

    @pytest.mark.parametrize("name", ["wan-tiny", "wan2.1-1.3b-480p", "wan2.1-14b-480p"])
    @pytest.mark.parametrize("policy", ["full", "jano"])
    def test_every_config(self, plan, name, policy):
        result = plan("--config", name, "--gpus", "4", "--gpu-memory", "80", "--policy", policy)
        assert result.code == 0, result.err
        assert "It fits." in result.out

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--gpus", "12"], ["12 GPUs", "give"]),
            (["--gpus", "0"], ["--gpus"]),
            (["--gpu-memory", "0"], ["--gpu-memory must be above 0", "give"]),
            (["--gpu-memory", "nan"], ["--gpu-memory must be above 0", "give"]),
            (["--active", "0.9", "--moderate", "0.2"], ["--active 0.9", "give"]),
            (["--active", "-0.1"], ["--active -0.1", "give"]),
            (["--ulysses", "3"], ["--ulysses 3 does not fit 16 ranks", "use"]),
            (["--set", "model.name=nobody/nothing"], ["not on this machine", "fetch it"]),
            (["--set", "video.frames=80"], ["frames must be 4n+1", "use"]),
            (["--set", "sampling.steps=8"], ["8 steps", "use more steps"]),
            (["--config", "nothing"], ["there is no config", "choose"]),
        ],
    )
    def test_bad_input(self, plan, options, words):
        assert_sentence(plan(*BIG, *options), *words)
