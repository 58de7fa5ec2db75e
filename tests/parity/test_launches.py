"""Kernels that a step launches, and how often the host waits for the device in it: what small steps cost.

Counted by their dispatch, which is the same on a GPU but for kernels that are one there and several here
(RMS norms) or the other way round.
"""

from collections import Counter, defaultdict

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jano_dist import Engine, load_config
from jano_dist.cache import KVCache, NoCache
from jano_dist.models.wan import WanTransformer

_WAITS = tuple(
    getattr(torch.ops.aten, name).default for name in ("item", "is_nonzero", "_local_scalar_dense")
)


class Launches(TorchDispatchMode):
    """Counts operations that are no views."""

    def __init__(self):
        super().__init__()
        self.by_name = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.by_name[function] += 1
        return function(*args, **(kwargs or {}))

    @property
    def count(self):
        return sum(self.by_name.values())


class Reads(TorchDispatchMode):
    """Where the tensors lie that are used, but were not made, while it looks on."""

    def __init__(self, *given):
        super().__init__()
        self.places, self._made = set(), [each.untyped_storage() for each in given]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        # Held until the end, or what is made next would lie where one lay.
        made = {storage.data_ptr() for storage in self._made}
        used = {each.untyped_storage().data_ptr() for each in tensors((args, kwargs))}
        self.places |= used - made
        results = function(*args, **(kwargs or {}))
        fresh = (each.untyped_storage() for each in tensors(results))
        self._made += (storage for storage in fresh if storage.data_ptr() not in self.places | made)
        return results


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def transformer(layers):
    torch.manual_seed(0)
    small = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 8, "freq_dim": 16, "ffn_dim": 16}
    return WanTransformer3DModel(**small, num_layers=layers, rope_max_seq_len=32).bfloat16().eval()


@torch.no_grad()
def per_block(run):
    """Launches of one block: what a second one adds."""
    counts = []
    for layers in (1, 2):
        call = run(transformer(layers), layers)
        call()  # text keys and values are there from now on
        with Launches() as launches:
            call()
        counts.append(launches.count)
    return counts[1] - counts[0]


def ours(kind):

    def run(module, layers):
        model = WanTransformer(module)
        branch = model.branch({"text": torch.zeros(1, 4, 8)})
        every, latent = torch.arange(2 * 4 * 4), torch.zeros(16, 2, 8, 8)
        cache = KVCache(layers, len(every), 2, 12, torch.bfloat16, torch.device("cpu"))
        model.forward(latent, torch.tensor(500.0), branch, every, cache)
        rows, kept = (every, NoCache(layers)) if kind == "full" else (every[:8], cache)
        return lambda: model.forward(latent, torch.tensor(500.0), branch, rows, kept)

    return run


def theirs(module, layers):
    module.set_attn_processor(WanAttnProcessor())
    latent, text = torch.zeros(1, 16, 2, 8, 8).bfloat16(), torch.zeros(1, 4, 8).bfloat16()
    return lambda: module(latent, torch.tensor([500.0]), text, return_dict=False)


# A step that keeps rows writes two buffers, keys and values.
@pytest.mark.parametrize(("kind", "launches"), [("full", 70), ("active", 72)])
def test_launches_per_block(kind, launches):
    """No more than these, and fewer than diffusers' own, which projects the text anew in every step."""
    assert per_block(ours(kind)) <= launches < per_block(theirs)


@torch.no_grad()
def test_a_step_does_not_look_through_all_modules(monkeypatch):
    """A tenth of a small step once: diffusers' `dtype` asks each of them for its hooks."""
    call = ours("active")(transformer(2), 2)
    call()

    def walk(*args, **options):
        raise AssertionError("looks through all modules")

    monkeypatch.setattr(WanTransformer3DModel, "named_modules", walk)
    call()


def test_what_a_step_reads_lies_where_it_lay(monkeypatch):
    """But for latent and timestep, so that a CUDA graph of a kind of step could be replayed."""
    forward, reads, alive = WanTransformer.forward, defaultdict(list), []

    def watched(self, latent, timestep, branch, rows, cache, *rest):
        with Reads(latent, timestep) as mode:
            rows_out = forward(self, latent, timestep, branch, rows, cache, *rest)
        reads[id(branch), rows.data_ptr()].append(mode.places)
        alive.append(branch)
        return rows_out

    monkeypatch.setattr(WanTransformer, "forward", watched)
    settings = {"sampling.steps": 24, "policy.warmup": 4, "video.frames": 5}
    Engine(load_config("wan-tiny", overrides=settings)).generate("a red ball", seed=0)
    repeated = [places for places in reads.values() if len(places) > 2]
    assert len(repeated) == 2 * len(["full", "refresh", "moderate", "active"])
    for _first, second, *others in repeated:  # the first one makes the text's keys
        assert all(places == second for places in others)


def test_the_host_waits_once_per_step():
    """For the check of the latents; with forecasts the coordinator then also reads their error, for which it
    has waited already."""
    settings = {"sampling.steps": 12, "policy.warmup": 4, "video.frames": 5, "policy.velocity": "hold"}
    engine = Engine(load_config("wan-tiny", overrides=settings))
    engine.generate("a red ball", seed=0)
    waits = []

    class Steps:
        def phase(self, name):
            return

        def note(self, sentence):
            return

        def step(self, record, steps):
            waits.append(sum(mode.by_name[each] for each in _WAITS))
            mode.by_name.clear()

    with Launches() as mode:
        engine.generate("a red ball", seed=0, observer=Steps())
    host = 1  # sigma, of a table on the host
    # The first step's count has what came before it, the one after the map that of the new plan.
    assert sorted(waits[1:])[:9] == [1 + host] * 9
