"""Which kernel a run gets, and that every one that runs on a CPU is plain softmax attention."""

from dataclasses import replace

import pytest
import torch

from jano_dist import Engine, load_config
from jano_dist.attention.backends import Backend, Facts, Need, backends, choose, find_facts, missing
from jano_dist.attention.distributed import KVResident
from jano_dist.attention.kernels import TORCH, Kernel, by_cudnn
from jano_dist.attention.trial import try_out
from jano_dist.attention.xfuser_table import XFUSER, Entry
from jano_dist.errors import RunError, UserError
from jano_dist.mesh import Mesh
from jano_dist.preflight import preflight
from tests.unit.test_kernels import plain, random

FLASH_3, FLASH_4 = "flash_attn_interface", "flash_attn.cute.interface"
REGISTRY = "xfuser.core.distributed.attention_backend"
VIDEO = {"video.frames": 1, "video.height": 32, "video.width": 32, "sampling.steps": 4}


def gpu(capability, *packages, vendor="nvidia"):
    return Facts(
        vendor, capability, lambda name: "" if name in packages else f"{name} is not installed", lambda *_: ""
    )


CPU = Facts("", (0, 0), lambda name: f"{name} is not installed", lambda *_: "it fails")
HOPPER, BLACKWELL, AMPERE = (9, 0), (10, 0), (8, 0)
AMPERE_ON = "8.x, 9.x, 10.x, 11.x, 12.x"
BF16 = Need(128, lse=True, dtype="bfloat16")


@pytest.mark.parametrize(
    ("facts", "need", "name"),
    [
        (CPU, BF16, "torch"),
        (CPU, Need(32, lse=False, dtype="float32"), "torch"),
        (gpu((7, 5), FLASH_3), BF16, "torch"),
        (gpu(AMPERE, FLASH_3, FLASH_4), BF16, "torch"),
        (gpu((8, 9), FLASH_3, FLASH_4), BF16, "torch"),
        (gpu(HOPPER), BF16, "cudnn"),
        (gpu(HOPPER, FLASH_3, FLASH_4), BF16, "flash3"),
        (gpu(HOPPER, FLASH_4), BF16, "cudnn"),
        (gpu(HOPPER, FLASH_3), Need(128, lse=False, dtype="float16"), "flash3"),
        (gpu(HOPPER, FLASH_3), Need(128, lse=True, dtype="auto"), "flash3"),
        (gpu(HOPPER, FLASH_3), Need(128, lse=True, dtype="float32"), "torch"),
        (gpu(HOPPER, FLASH_3), Need(192, lse=True, dtype="bfloat16"), "flash3"),
        (gpu(HOPPER), Need(192, lse=True, dtype="bfloat16"), "torch"),  # too wide for cuDNN
        (gpu(HOPPER), Need(20, lse=True, dtype="bfloat16"), "torch"),  # 8 does not divide it
        (gpu(BLACKWELL, FLASH_3), BF16, "cudnn"),  # FlashAttention 3 is Hopper's
        (gpu(BLACKWELL, FLASH_3, FLASH_4), BF16, "flash4"),
        (gpu((12, 0), FLASH_4), BF16, "cudnn"),
        (gpu((13, 0)), BF16, "torch"),  # nobody knows it yet
        (gpu((9, 4), FLASH_3, vendor="amd"), BF16, "torch"),  # MI300 calls itself 9.4
    ],
)
def test_auto(facts, need, name):
    made = {each: backends()[each].kernel for each in ("torch", "cudnn")}
    chosen = _name(facts, need)
    assert chosen == name
    if chosen in made:
        assert choose("auto", facts, need) == made[chosen]()


def _name(facts, need):
    """What `auto` takes, without importing packages that are not here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backend, "kernel", lambda backend: backend.name)
        return choose("auto", facts, need)


def test_auto_is_exact_and_serves_every_mesh():
    for name in ("torch", "cudnn", "flash3", "flash4"):
        entry = backends()[name].entry
        assert entry.exact
        assert entry.lse


@pytest.mark.parametrize(
    ("asked", "facts", "need", "reason"),
    [
        ("cudnn", CPU, BF16, "it needs a GPU"),
        ("cudnn", gpu((7, 5)), BF16, f"it needs a GPU of capability {AMPERE_ON}, and this one has 7.5"),
        ("flash3", gpu((12, 0), FLASH_3), BF16, "it needs a GPU of capability 9.x, and this one has 12.0"),
        ("flash3", gpu(HOPPER), BF16, "flash_attn_interface is not installed"),
        ("cudnn", gpu((9, 4), vendor="amd"), BF16, "it needs an NVIDIA GPU"),
        ("xfuser:AITER", gpu(HOPPER, REGISTRY, "aiter"), BF16, "it needs an AMD GPU"),
        (
            "cudnn",
            gpu(HOPPER),
            Need(128, lse=False, dtype="float32"),
            "it computes in bfloat16 or float16, not in float32",
        ),
        (
            "cudnn",
            gpu(HOPPER),
            Need(256, lse=False, dtype="bfloat16"),
            "it takes heads of 8, 16, .. 128 dimensions, not of 256",
        ),
        ("xfuser:CUDNN", gpu(HOPPER), BF16, f"{REGISTRY} is not installed"),
        ("xfuser:SAGE", gpu(HOPPER, REGISTRY), BF16, "sageattention is not installed"),
        *(
            (
                f"xfuser:{name}",
                gpu(HOPPER, REGISTRY, FLASH_4),
                BF16,
                "it gives no log-sums, by which a mesh with kv > 1 merges its parts",
            )
            for name in ("SDPA", "SDPA_MATH", "FLASH_4")
        ),
    ],
)  # fmt: skip
def test_refused_by_name(asked, facts, need, reason):
    with pytest.raises(UserError) as caught:
        choose(asked, facts, need)
    assert str(caught.value) == (
        f"attention.backend {asked} cannot be used here, because {reason}: set it to auto"
    )


def test_what_fails_here_is_not_taken():
    """A FlashAttention built for other heads: `auto` goes on to the next, by name it is a sentence."""
    tried = []

    def trial(backend, head_dim):
        tried.append((backend.name, head_dim))
        return "it fails on this device (RuntimeError: no kernel image)" if backend.name == "flash3" else ""

    facts = replace(gpu(HOPPER, FLASH_3), trial=trial)
    assert choose("auto", facts, BF16).name == "cudnn"
    with pytest.raises(UserError, match=r"flash3 cannot be used here, because it fails on this device \(Run"):
        choose("flash3", facts, BF16)
    assert tried == [("flash3", 128), ("cudnn", 128), ("flash3", 128)]


class TestTrial:
    CPU = torch.device("cpu")

    @pytest.mark.parametrize("kernel", [TORCH, Kernel("rough", TORCH.compute, exact=False)])
    @pytest.mark.parametrize("head_dim", [8, 64, 128])
    def test_what_is_right(self, kernel, head_dim):
        assert try_out(kernel, self.CPU, head_dim, lse=True) == ""

    @pytest.mark.parametrize(
        ("wrong", "lse"),
        [
            (lambda out, sums: (out + 0.1, sums), False),
            (lambda out, sums: (out * torch.nan, sums), False),
            (lambda out, sums: (out, sums / 0.6931), True),  # to the base of 2
            (lambda out, sums: (out, sums + 0.1), True),
            (lambda out, sums: (out, sums * torch.nan), True),
            (lambda out, sums: (out, sums.roll(1, -1)), True),
        ],
    )
    def test_what_is_wrong(self, wrong, lse):
        def compute(q, k, v, wanted):
            out, sums = TORCH.compute(q, k, v, True)
            return wrong(out, sums)

        kernel = Kernel("wrong", compute)
        assert try_out(kernel, self.CPU, 64, lse=True).startswith("its results are wrong on this device, by ")
        assert (try_out(kernel, self.CPU, 64, lse=False) == "") == lse

    def test_what_raises(self):
        def compute(*_):
            raise RuntimeError("no kernel image\nis available")

        reason = try_out(Kernel("none", compute), self.CPU, 64, lse=True)
        assert reason == "it fails on this device (RuntimeError: no kernel image)"


def test_without_log_sums_where_none_are_needed():
    facts = gpu(HOPPER, REGISTRY)
    backend = backends()["xfuser:SDPA"]
    assert backend.obstacle(facts, Need(128, lse=False, dtype="bfloat16")) == ""
    assert backend.obstacle(facts) == ""


def test_an_unknown_name():
    with pytest.raises(
        UserError, match=r"there is no attention.backend xfuser:FLASH_5: choose auto, torch, cu"
    ):
        choose("xfuser:FLASH_5", gpu(HOPPER, REGISTRY), BF16)


def test_what_rounds_more_is_never_automatic_and_says_so():
    inexact = {name for name, entry in XFUSER.items() if not entry.exact}
    assert {"SAGE", "FLASH_3_FP8", "NVTE_FP8", "FLASH_4_FP4", "AITER_FP8"} <= inexact
    assert not inexact & {"CUDNN", "FLASH", "FLASH_3", "FLASH_4", "SDPA", "AITER"}
    (note,) = Kernel("xfuser:SAGE", by_cudnn, exact=False).notes
    assert note.startswith("attention.backend xfuser:SAGE rounds")
    assert TORCH.notes == []


@pytest.mark.parametrize("written", ["xfuser:flash_3", " XFUSER:Flash_3 "])
def test_names_in_any_case(written):
    config = load_config("wan-tiny", overrides={"attention.backend": written})
    assert config.attention.backend == "xfuser:FLASH_3"
    assert load_config("wan-tiny", overrides={"attention.backend": "cuDNN"}).attention.backend == "cudnn"


@pytest.mark.parametrize("written", ["flash", "xfuser", "xfuser:", "torch:SDPA", ""])
def test_names_that_are_none(written):
    with pytest.raises(UserError, match=r"attention.backend should be auto, torch, .* or xfuser:NAME, not"):
        load_config("wan-tiny", overrides={"attention.backend": written})


class TestEngine:
    """Refused before weights are loaded; what was used is in the record."""

    def config(self, backend, **overrides):
        own = {**VIDEO, "attention.backend": backend, **overrides}
        return load_config("wan-tiny", policy="full", overrides=own)

    @pytest.mark.parametrize("backend", ["cudnn", "xfuser:CUDNN", "xfuser:NOTHING"])
    def test_refused(self, backend, monkeypatch):
        monkeypatch.setattr("jano_dist.engine.load_model", pytest.fail)
        config = self.config(backend, **{"runtime.device": "cpu"})
        with pytest.raises(UserError, match=r"attention\.backend .*" + backend):
            Engine(config)
        with pytest.raises(UserError, match=r"attention\.backend .*" + backend):
            preflight(config, world=1, local_world=1)

    def test_the_kernel_is_what_attends(self, monkeypatch):
        """Every self-attention of a run goes through the kernel that was chosen, and its name is recorded."""
        called = []

        def counted(q, k, v, lse):
            called.append(q.shape)
            return TORCH.compute(q, k, v, lse)

        monkeypatch.setattr(
            "jano_dist.engine.kernel_for", lambda *_, **__: Kernel("counted", counted, exact=False)
        )
        engine = Engine(self.config("auto"))
        with pytest.warns(UserWarning, match="attention.backend counted rounds"):
            record = engine.generate("a red ball moves left").record
        assert record["attention"] == "counted"
        assert record["config"]["attention"] == {"backend": "auto"}
        geometry = engine.model.geometry
        assert len(called) == VIDEO["sampling.steps"] * 2 * geometry.layers
        assert {shape[1] for shape in called} == {geometry.heads}

    def test_the_kernel_attends_on_a_kv_mesh(self):
        """There it is asked for log-sums, chunk by chunk."""
        asked = []

        def counted(q, k, v, lse):
            asked.append((q.shape[2], lse))
            return TORCH.compute(q, k, v, lse)

        q, k, v = (random(i, 5, 3, 16) for i in range(3))
        out = KVResident(Mesh.single(), [5], 3, Kernel("counted", counted))(q, k, v)
        assert asked == [(2, True), (3, True)]
        assert torch.allclose(out.double(), plain(q, k, v)[0], atol=2e-6)


class TestMissing:
    def test_here(self):
        assert missing("json") == ""
        assert missing("a_module_that_is_nowhere.at_all") == "a_module_that_is_nowhere is not installed"

    def test_only_a_part_of_it(self, tmp_path, monkeypatch):
        """FlashAttention 2 without 4; and a folder of that name, as a checkout leaves."""
        (tmp_path / "part_of_a_test").mkdir()
        monkeypatch.syspath_prepend(tmp_path)
        assert missing("part_of_a_test.cute.interface") == "part_of_a_test.cute is not installed"

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            ("raise OSError('undefined symbol: _ZN3c10\\nmore')", "OSError: undefined symbol: _ZN3c10"),
            ("raise SystemExit", "SystemExit: no message"),
            ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ],
    )
    def test_built_for_another_torch(self, tmp_path, monkeypatch, body, reason):
        (tmp_path / "flash_attn_of_a_test.py").write_text(body)
        monkeypatch.syspath_prepend(tmp_path)
        assert missing("flash_attn_of_a_test") == f"flash_attn_of_a_test cannot be imported ({reason})"

    def test_facts_of_a_cpu(self):
        facts = find_facts(torch.device("cpu"))
        assert (facts.vendor, facts.capability) == ("", (0, 0))


FLASH = """
import torch
def flash_attn_func(q, k, v, causal=False{option}):
    assert q.is_contiguous() and k.is_contiguous() and v.is_contiguous()
    logits = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bhnm,bmhd->bnhd", logits.softmax(-1), v), {lse}
"""


@pytest.mark.parametrize(
    ("name", "option", "lse"),
    [
        ("flash3", "", "logits.logsumexp(-1)"),  # older versions always give both
        ("flash3", ", return_attn_probs=False", "logits.logsumexp(-1) if return_attn_probs else 1 / 0"),
        ("flash4", ", return_lse=False", "logits.logsumexp(-1) if return_lse else None"),
    ],
)
def test_flash_attention_is_asked_for_its_log_sums(tmp_path, monkeypatch, name, option, lse):
    """By a stand-in with the layout and arguments of the packages: [1, n, H, D], log-sums [1, H, n]."""
    backend = backends()[name]
    (package,) = backend.packages
    own = f"stand_in_{abs(hash((option, name)))}"
    (tmp_path / f"{own}.py").write_text(FLASH.format(option=option, lse=lse))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(
        "jano_dist.attention.backends.import_module",
        lambda asked: __import__(own) if asked == package else pytest.fail(asked),
    )
    q, k, v = (random(i, n, 3, 16) for i, n in enumerate((5, 33, 33)))
    kernel, (expected, sums) = backend.kernel(), plain(q, k, v)
    assert kernel.name == name
    out, found = kernel.attention_with_lse(q, k, v)
    assert torch.allclose(found.double(), sums, atol=1e-5)
    for each in (out, kernel.attention(q, k, v)):
        assert torch.allclose(each.double(), expected, atol=2e-6)


def padded(q, k, v, lse):
    """As the efficient kernel does: log-sums of 32 queries at least."""
    out, sums = TORCH.compute(q, k, v, True)
    return out, torch.nn.functional.pad(sums.double(), (0, -sums.shape[2] % 32), value=torch.nan)


KERNELS = [TORCH, Kernel("padded", padded)]


class TestHere:
    """What every kernel that runs on a CPU must hold, against plain softmax in float64."""

    @pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
    @pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 0.02)])
    @pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 33), (40, 7), (64, 1)])
    def test_values(self, kernel, dtype, bound, queries, keys):
        q, k, v = (random(i, n, 3, 16).to(dtype) for i, n in enumerate((queries, keys, keys)))
        expected, sums = plain(q, k, v)
        out, lse = kernel.attention_with_lse(q, k, v)
        for each in (out, kernel.attention(q, k, v)):
            assert (each.shape, each.dtype) == (q.shape, dtype)
            assert torch.allclose(each.double(), expected, atol=bound)
        assert (lse.shape, lse.dtype) == (q.shape[:2], torch.float32)
        assert torch.allclose(lse.double(), sums, atol=10 * bound)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize(("queries", "keys"), [(3, 0), (0, 5), (0, 0)])
    def test_nothing_to_compute(self, dtype, queries, keys):
        """No kernel is asked."""
        kernel = Kernel("none", lambda *_: pytest.fail("was asked"))
        q, k = torch.ones(queries, 2, 8, dtype=dtype), torch.ones(keys, 2, 8, dtype=dtype)
        out, lse = kernel.attention_with_lse(q, k, k)
        for each in (out, kernel.attention(q, k, k)):
            assert (each.shape, each.dtype) == (q.shape, dtype)
            assert (each == 0).all()
        assert (lse.shape, lse.dtype) == (q.shape[:2], torch.float32)
        assert (lse == -torch.inf).all()

    def test_one_key_is_nothing_for_cudnn(self):
        """It takes two or more; cuDNN is not here, so whatever is right has not asked it."""
        q, k, v = (random(i, n, 3, 16) for i, n in enumerate((5, 1, 1)))
        out, lse = Kernel("cudnn", by_cudnn).attention_with_lse(q, k, v)
        expected, sums = plain(q, k, v)
        assert torch.allclose(out.double(), expected, atol=2e-6)
        assert torch.allclose(lse.double(), sums, atol=1e-5)

    @pytest.mark.parametrize(
        "wrong",
        [
            lambda q, k: None,
            lambda q, k: q @ k.mT,  # the weights, as xfuser's SDPA_MATH gives
            lambda q, k: q[..., 0].mT,
            lambda q, k: q[:, :, 1:, 0],
        ],
    )
    def test_what_are_no_log_sums(self, wrong):
        kernel = Kernel("odd", lambda q, k, v, lse: (q, wrong(q, k)))
        with pytest.raises(RunError, match=r"attention.backend odd gave no log-sums, .*: set it to auto"):
            kernel.attention_with_lse(*(random(i, 5, 3, 16) for i in range(3)))


@pytest.mark.parametrize("name", ["torch", "cudnn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("queries", "keys"), [(1, 2), (77, 200), (0, 4), (4, 0), (5, 1)])
def test_shapes_on_meta(name, dtype, queries, keys):
    """Through the shape functions of GPU kernels; the efficient one pads 77 log-sums to 96."""
    q, k = (torch.empty(n, 3, 128, dtype=dtype, device="meta") for n in (queries, keys))
    kernel = backends()[name].kernel()
    out, lse = kernel.attention_with_lse(q, k, k)
    assert (lse.shape, lse.dtype) == ((queries, 3), torch.float32)
    for each in (out, kernel.attention(q, k, k)):
        assert (each.shape, each.dtype) == (q.shape, dtype)


def test_the_table_is_spelled_as_xfuser_spells():
    assert all(name == name.upper() and isinstance(entry, Entry) for name, entry in XFUSER.items())
