"""Where the transformer's weights lie, against diffusers' own reading and the engine in one process."""

import os
import time
from collections import Counter
from contextlib import ExitStack
from unittest import mock

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from diffusers import WanTransformer3DModel
from diffusers.hooks.group_offloading import ModuleGroup

from jano_dist import Engine, load_config
from jano_dist.errors import PeerLost, UserError
from jano_dist.models import load_model
from jano_dist.models.folder import model_folder
from jano_dist.policies import Policy
from jano_dist.tokens.schedule import StepKind
from tests.gang.harness import Leave, gang

PROMPT = "a red ball moves left over a navy striped background"
STEPS, TOKENS = 8, 45
SMALL = {"video.frames": 9, "video.height": 48, "video.width": 80, "sampling.steps": STEPS}
JANO = {
    "policy.block": [1, 2, 2],
    "policy.warmup": 3,
    "policy.cooldown": 1,
    "policy.static_interval": 4,
    "policy.moderate_interval": 2,
}
KINDS = ("full", "refresh", "active", "moderate", "active", "refresh", "active", "full")

WEIGHTS = ("replicated", "fsdp", "group_offload")
POLICIES = ("full", "jano", "one active token")


class OneActiveToken(Policy):
    """Policy: a map with a single active token, so that most ranks compute nothing in active steps."""

    def __call__(self, settings, **facts):
        return self

    def decide(self, step):
        return StepKind(KINDS[step])

    def observe(self, step, velocity):
        return torch.tensor([1] * (TOKENS - 1) + [3], dtype=torch.uint8) if step == 0 else None


def build(weights, policy="full", **overrides):
    settings = {**SMALL, **(JANO if policy == "jano" else {}), "model.weights": weights, **overrides}
    config = load_config("wan-tiny", policy="jano" if policy == "jano" else "full", overrides=settings)
    return Engine(config, **({"policies": OneActiveToken()} if policy == "one active token" else {}))


def module_of(engine):
    return engine.model._experts[0].module


def tensors(module):
    """Every parameter and buffer, whole."""
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        name: (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach()
        for name, tensor in named.items()
    }


def own_bytes(module):
    parameters = module.parameters()
    return sum((p.to_local() if hasattr(p, "to_local") else p).nbytes for p in parameters)


# What one rank does; the same in one process.


def placed(weights, dtype):
    module = module_of(build(weights, **{"model.dtype": dtype}))
    assert not any(part.training for part in module.modules())
    return tensors(module)


def latents(weights, **overrides):
    """Of every policy, and the bytes of weights that lie here before, between and after them."""
    results, nbytes = {}, set()
    for policy in POLICIES:
        engine = build(weights, policy, **overrides)
        nbytes.add(own_bytes(module_of(engine)))
        results[policy] = engine.generate(PROMPT, seed=1).latents
        nbytes.add(own_bytes(module_of(engine)))
    return results, nbytes


def opened(local_worlds, local_ranks):
    """The components whose weights this rank opens to read tensors."""
    rank, seen = dist.get_rank(), Counter()
    os.environ.update(LOCAL_WORLD_SIZE=str(local_worlds[rank]), LOCAL_RANK=str(local_ranks[rank]))

    def counting(file, *args, **kwargs):
        seen[str(file).rsplit("/", 2)[-2]] += 1
        return safe_open(file, *args, **kwargs)

    safe_open = safetensors.torch.safe_open
    with mock.patch.object(safetensors.torch, "safe_open", counting):
        engine = build("replicated")
    traffic = engine.mesh.take_traffic().nbytes
    return set(seen), traffic, tensors(module_of(engine))


def reading_fails_on_the_first_rank():
    if dist.get_rank() == 0:
        broken = mock.patch.object(WanTransformer3DModel, "from_pretrained", side_effect=OSError("no disk"))
        with broken, pytest.raises(UserError, match="no disk"):
            build("replicated", **{"runtime.timeout_seconds": 600})
        raise Leave  # fail-stop, as the command line does
    started = time.perf_counter()
    with pytest.raises(PeerLost):
        build("replicated", **{"runtime.timeout_seconds": 600})
    raise Leave(time.perf_counter() - started)


# What is expected of it.


@pytest.fixture(scope="module")
def one_process():
    return latents("replicated")


def equal(ours, reference):
    assert ours.keys() == reference.keys()
    for name, tensor in reference.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


def diffusers_reads(dtype):
    folder = model_folder("wan-tiny") / "transformer"
    return tensors(WanTransformer3DModel.from_pretrained(folder, dtype=dtype))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("world", "dtype"), [(2, torch.bfloat16), (3, torch.float32)])
def test_every_rank_has_what_diffusers_reads(weights, world, dtype):
    reference = diffusers_reads(dtype)
    kinds = {tensor.dtype for tensor in reference.values()}
    assert kinds == {dtype, torch.float32}  # some are kept in float32
    for ours in gang(world, placed, weights, str(dtype).removeprefix("torch.")):
        equal(ours, reference)


@pytest.mark.parametrize(
    ("local_worlds", "local_ranks", "readers"),
    [
        ((3, 3, 3), (0, 1, 2), {0}),
        ((2, 2, 2, 2), (0, 1, 0, 1), {0, 2}),
        ((1, 1), (0, 0), {0, 1}),
        ((2, 2, 1), (0, 1, 0), {0, 1, 2}),  # uneven nodes
    ],
)
def test_the_first_rank_of_a_node_reads_for_the_others(local_worlds, local_ranks, readers):
    reference = diffusers_reads(torch.float32)
    answers = gang(len(local_worlds), opened, local_worlds, local_ranks)
    for rank, (components, traffic, ours) in enumerate(answers):
        assert components == ({"transformer", "vae"} if rank in readers else {"vae"})
        assert traffic == 0  # loading is not counted as a part of the first step
        equal(ours, reference)


def test_a_rank_whose_reader_fails_does_not_wait():
    assert gang(2, reading_fails_on_the_first_rank)[1] < 30


@pytest.mark.parametrize("world", [2, 3])
def test_fsdp_makes_the_same_video_with_a_share_of_the_weights(world, one_process):
    reference, (whole,) = one_process
    # Along their first dimension the modulation tables are 1 long: one rank has them whole.
    uneven = 7 * 6 * 192 * 4
    for ours, nbytes in gang(world, latents, "fsdp"):
        for policy, expected in reference.items():
            torch.testing.assert_close(ours[policy], expected, rtol=0, atol=1e-4, msg=policy)
        (share,) = nbytes  # nothing stays gathered after a generation
        assert abs(share - whole / world) <= uneven


def test_fsdp_on_one_rank_is_the_whole_model(one_process):
    reference, _ = one_process
    equal(latents("fsdp")[0], reference)


def test_group_offload_makes_the_same_video(one_process):
    equal(latents("group_offload")[0], one_process[0])


def test_group_offload_makes_the_same_video_on_two_ranks():
    expected = gang(2, latents, "replicated")
    for (ours, _), (reference, _) in zip(gang(2, latents, "group_offload"), expected, strict=True):
        equal(ours, reference)


def test_a_forward_fetches_every_weight_once(one_process):
    """As on an accelerator: what is fetched is a new tensor, made in inference mode.

    Of what is outside the blocks diffusers names most tensors twice, the second time where they already lie.
    """
    fetched = Counter()

    def fetch(group, tensor, source, default_stream):
        fetched[id(tensor)] += 1
        tensor.data = source.clone()

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(ModuleGroup, "_transfer_tensor_to_device", fetch))
        engine = build("group_offload")
        fetched.clear()
        made = engine.generate(PROMPT, seed=1)
    # Not to the bit: diffusers' tensors lie in the mapped file, wherever, and the copies aligned.
    torch.testing.assert_close(made.latents, one_process[0]["full"], rtol=0, atol=1e-4)
    module = module_of(engine)
    assert len(fetched) == len(tensors(module))
    forwards = STEPS * 2  # both branches
    assert {fetched[id(weight)] for weight in module.blocks.parameters()} == {forwards}
    assert set(fetched.values()) <= {forwards, 2 * forwards}


def test_a_model_loads_without_a_mesh():
    settings = {"dtype": "float32", "vae_dtype": "float32", "max_sequence_length": 64}
    model = load_model("wan-tiny", device=torch.device("cpu"), **settings)
    equal(tensors(model._experts[0].module), diffusers_reads(torch.float32))
