"""The CUDA build of PyTorch and xfuser, without a GPU: `make check-gpu-build`.

Shapes go through the shape functions of GPU kernels (`meta` tensors). Packages that need a GPU are
stood in for by functions with their layout and arguments, so that what xfuser hands on is seen.
"""

import math

import pytest
import torch

from jano_dist.attention import survey
from jano_dist.attention.backends import Facts, Need, backends, find_facts, missing
from jano_dist.attention.xfuser_table import XFUSER
from jano_dist.errors import RunError

ATTENTION = pytest.importorskip("xfuser.core.distributed.attention_backend")
SHAPED = ("torch", "cudnn", *(f"xfuser:{name}" for name in ("SDPA_EFFICIENT", "SDPA_FLASH", "CUDNN")))
WITHOUT_LSE = ("xfuser:SDPA", "xfuser:SDPA_MATH")
# They attend to some of the keys, or are Ascend's.
LEFT_OUT = ("SPARGE", "SPARSE", "VSA", "FLEX_", "NPU")
NAMES = list(XFUSER)
HALF = (torch.bfloat16, torch.float16)


def test_the_build():
    assert torch.version.cuda, "this PyTorch has no CUDA build: see that pip takes it from PyPI"
    assert torch.backends.cudnn.version() >= 90_000
    assert missing("xfuser") == ""


def test_the_table_is_xfusers():
    """A backend that is new, gone or called otherwise needs a look at its sources."""
    registered = {kind.name for kind in ATTENTION.ATTENTION_FUNCTION_REGISTRY}
    left_out = {name for name in registered if any(part in name for part in LEFT_OUT)}
    assert registered - left_out == set(XFUSER)


@pytest.mark.parametrize("name", [*SHAPED, *WITHOUT_LSE])
@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
@pytest.mark.parametrize(("queries", "keys"), [(1, 2), (77, 200), (4096, 18_900), (0, 4), (4, 0), (5, 1)])
def test_shapes(name, dtype, queries, keys):
    """Of 14B's heads on one of 4 ranks of a shard; 77 log-sums are padded by some kernels."""
    q, k = (torch.empty(n, 10, 128, dtype=dtype, device="meta") for n in (queries, keys))
    kernel = backends()[name].kernel()
    outs = [kernel.attention(q, k, k)]
    if name in SHAPED:
        out, lse = kernel.attention_with_lse(q, k, k)
        assert (lse.shape, lse.dtype) == ((queries, 10), torch.float32)
        outs.append(out)
    for out in outs:
        assert (out.shape, out.dtype) == (q.shape, dtype)


@pytest.mark.parametrize("name", WITHOUT_LSE)
def test_what_gives_no_log_sums(name):
    """None, and the weights."""
    assert not backends()[name].entry.lse
    q, k = (torch.empty(n, 3, 64, device="meta") for n in (6, 9))
    with pytest.raises(RunError, match="gave no log-sums"):
        backends()[name].kernel().attention_with_lse(q, k, k)


def honest(q, k, v):
    """Plain attention [1, n, H, D] -> output, and log-sums [1, H, n]."""
    logits = torch.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("bhnm,bmhd->bnhd", logits.softmax(-1), v), logits.logsumexp(-1)


def flash_2(q, k, v, dropout_p=0.0, causal=False, return_attn_probs=False):
    out, lse = honest(q, k, v)
    return (out, lse, None) if return_attn_probs else out


def flash_3(q, k, v, causal=False, q_descale=None, k_descale=None, v_descale=None, return_attn_probs=False):
    scaled = [
        x if scale is None else x.float() * scale[:, None, :, None]
        for x, scale in ((q, q_descale), (k, k_descale), (v, v_descale))
    ]
    out, lse = honest(*scaled)
    return (out, lse) if return_attn_probs else out


def flash_4(q, k, v, causal=False, return_lse=False):
    """Without autograd it gives log-sums only where they are asked for."""
    out, lse = honest(q, k, v)
    return out, lse if return_lse else None


def sage(q, k, v, is_causal=False, return_lse=False):
    out, lse = honest(*(x.transpose(1, 2) for x in (q, k, v)))
    return (out.transpose(1, 2), lse) if return_lse else out.transpose(1, 2)


def aiter(q, k, v, dropout_p=0.0, causal=False, return_attn_probs=False, return_lse=False):
    out, lse = honest(q, k, v)
    return (out, lse) if return_lse else out


@pytest.mark.parametrize(
    ("name", "function", "stand_in", "bound"),
    [
        ("SDPA", "", None, 1e-5),
        ("SDPA_MATH", "", None, 1e-5),
        ("FLASH", "flash_attn_func_2", flash_2, 1e-5),
        ("FLASH_3", "flash_attn_func_3", flash_3, 1e-5),
        ("FLASH_3_FP8", "flash_attn_func_3", flash_3, 0.3),
        ("FLASH_4", "flash_attn_func_4", flash_4, 1e-5),
        ("SAGE", "sageattn", sage, 1e-5),
        ("AITER", "flash_attn_func_aiter", aiter, 1e-5),
    ],
)
def test_values_and_what_the_table_says(monkeypatch, name, function, stand_in, bound):
    """On a CPU, against float64: layout and scale, and log-sums just where the table says that there are."""
    if stand_in is not None:
        monkeypatch.setattr(ATTENTION, function, stand_in, raising=False)
    monkeypatch.setattr(ATTENTION, "AITER_HAS_ROUND_MODE", False, raising=False)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, 3, 64, generator=generator) for n in (7, 33, 33))
    expected, sums = honest(*(x.double()[None] for x in (q, k, v)))
    kernel = backends()[f"xfuser:{name}"].kernel()
    out = kernel.attention(q, k, v)
    assert (out.double() - expected[0]).abs().max() <= bound
    assert kernel.exact == (name not in ("FLASH_3_FP8", "SAGE"))
    if not XFUSER[name].lse:
        with pytest.raises(RunError, match="gave no log-sums"):
            kernel.attention_with_lse(q, k, v)
        return
    out, lse = kernel.attention_with_lse(q, k, v)
    assert (out.double() - expected[0]).abs().max() <= bound
    assert (lse.double() - sums[0].T).abs().max() <= bound


def test_what_a_hopper_could_use():
    """With xfuser's own imports; packages that need a GPU to be built are not here."""
    found = survey(Facts("nvidia", (9, 0), find_facts(torch.device("cpu")).missing, lambda *_: ""))
    usable = {row["name"] for row in found["backends"] if row["reason"] is None}
    assert usable == {*SHAPED, *WITHOUT_LSE}
    assert found["auto"] == "cudnn"


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_not_here_has_a_sentence(name):
    facts = find_facts(torch.device("cpu"))
    reason = backends()[f"xfuser:{name}"].obstacle(facts, Need(128, lse=True, dtype="bfloat16"))
    assert reason.startswith("it ")
