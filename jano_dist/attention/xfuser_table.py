"""xfuser's attention backends, as its sources of version 0.7 say: what may serve where.

Its registry returns `(out, log-sums)`, which is not so for every entry: `SDPA` gives None, `SDPA_MATH` the
weights, `FLASH_4` None (FlashAttention 4 is not asked for them), AITER's Sage gives them inside xfuser's own
ring only. Left out are those that attend to some of the keys, by block masks that xfuser's pipelines make
(`..._SPARGE`, `..._SPARSE_SAGE`, `..._VSA`, `FLEX_...`), and Ascend's.
"""

from dataclasses import dataclass

AMPERE_ON = (8, 9, 10, 11, 12)
_AMD = ("amd",)


@dataclass(frozen=True)
class Entry:
    """Where a kernel runs, and what it gives.

    Attributes:
        vendors: of GPUs; none: it runs on a CPU, too.
        majors: capabilities of NVIDIA's GPUs; none: any.
        package: that it needs.
        lse: whether it gives true log-sums. exact: see `Kernel`.
        half: whether it computes in 16 bits only.
        head_dim: the largest, which 8 must divide; 0: any.
    """

    vendors: tuple[str, ...] = ("nvidia",)
    majors: tuple[int, ...] = ()
    package: str = ""
    lse: bool = True
    exact: bool = True
    half: bool = True
    head_dim: int = 0


def _aiter(*, lse: bool = False, exact: bool = False) -> Entry:
    return Entry(_AMD, package="aiter", lse=lse, exact=exact)


_ANY = ("nvidia", "amd")
XFUSER = {
    "SDPA": Entry((), lse=False, half=False),
    "SDPA_MATH": Entry((), lse=False, half=False),
    "SDPA_EFFICIENT": Entry(_ANY, half=False),
    "SDPA_FLASH": Entry(_ANY, AMPERE_ON, head_dim=256),
    "CUDNN": Entry(majors=AMPERE_ON, head_dim=128),
    "FLASH": Entry(_ANY, AMPERE_ON, "flash_attn", head_dim=256),
    "FLASH_3": Entry(majors=(9,), package="flash_attn_interface", head_dim=256),
    "FLASH_3_FP8": Entry(majors=(9,), package="flash_attn_interface", exact=False, head_dim=256),
    "FLASH_4": Entry(majors=(9, 10, 11), package="flash_attn.cute.interface", lse=False, head_dim=128),
    "FLASH_4_FP4": Entry(
        majors=(10,), package="flash_attn.cute.flash_fwd_sm100_fp4", lse=False, exact=False, head_dim=128
    ),
    "NVTE_FP8": Entry(majors=AMPERE_ON[1:], package="transformer_engine", lse=False, exact=False),
    "SAGE": Entry(majors=(8, 9, 12), package="sageattention", exact=False, head_dim=128),
    "AITER": _aiter(lse=True, exact=True),
    "AITER_BF16": _aiter(exact=True),
    "AITER_FLYDSL": _aiter(exact=True),
    **dict.fromkeys(
        (
            "AITER_BF16FP8", "AITER_FLYDSL_FP8", "AITER_MLA", "AITER_I8FP8", "AITER_FP8", "AITER_MXFP8",
            "AITER_F8F6", "AITER_MXFP6", "AITER_F6F4", "AITER_MXFP4", "AITER_F4F4", "AITER_SAGE",
            "AITER_SAGE_V2",
        ),
        _aiter(),
    ),
}  # fmt: skip
