"""The settings of every policy, by name."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, Field, model_validator

from jano_dist.config.fields import Float, Frozen, Int
from jano_dist.config.published import MAGCACHE, TEACACHE

_T = TypeVar("_T")


class FullPolicyConfig(Frozen):
    """Every step computes every token."""

    name: Literal["full"] = "full"


class EnhanceConfig(Frozen):
    """Raising of holes inside active regions."""

    strength: Float = Field(0.8, ge=0)
    distance: Int = Field(1, ge=1, description="in blocks")


_Edge = Annotated[Int, Field(ge=1)]
_Velocity = Annotated[
    Literal["hold", "forecast"],
    Field(
        description="of tokens that a step does not compute: held, or on the line through their last two "
        "where that was better last time"
    ),
]


class JanoPolicyConfig(Frozen):
    """The Jano method; see docs/architecture.md for the words."""

    name: Literal["jano"] = "jano"
    score: Literal["last_change", "smooth_spread", "published"] = "last_change"
    block: tuple[_Edge, _Edge, _Edge] = Field((7, 6, 8), description="latent positions in T, H, W")
    temporal_weight: Float = Field(0.7, ge=0, le=1, description="of the published score")
    warmup: Int = Field(6, ge=2)
    warmup_2: Int | None = Field(
        None,
        ge=0,
        description="of a second expert; 0 (and null): a refresh on the first one's map",
    )
    cooldown: Int = Field(4, ge=0)
    static_threshold: Float = Field(0.15, ge=0, le=1)
    static_interval: Int = Field(6, ge=1)
    moderate_threshold: Float = Field(0.4, ge=0, le=1)
    moderate_interval: Int = Field(4, ge=1)
    enhance: EnhanceConfig = EnhanceConfig()
    velocity: _Velocity = "hold"

    @model_validator(mode="after")
    def _in_order(self) -> "JanoPolicyConfig":
        if self.warmup_2 == 1:
            raise ValueError("policy.warmup_2 makes a map of 2 steps or more: set it to 0, or to 2 or more")
        if self.static_threshold > self.moderate_threshold:
            raise ValueError(
                f"policy.static_threshold {self.static_threshold} is above policy.moderate_threshold "
                f"{self.moderate_threshold}: give them in order"
            )
        return self


class ForecastPolicyConfig(Frozen):
    """All tokens of a step or none; the observed error of forecasts decides when to compute."""

    name: Literal["forecast"] = "forecast"
    warmup: Int = Field(6, ge=1)
    cooldown: Int = Field(2, ge=0)
    tau: Float = Field(0.12, ge=0, description="relative error that a forecast velocity may have")
    max_interval: Int = Field(3, ge=1, description="steps from a computed one to the next, at most")


class UniformPolicyConfig(Frozen):
    """All tokens in every n-th step, none in the others: a control."""

    name: Literal["uniform"] = "uniform"
    warmup: Int = Field(6, ge=1)
    cooldown: Int = Field(2, ge=0)
    interval: Int = Field(2, ge=1)
    velocity: _Velocity = "hold"


class TeaCachePolicyConfig(Frozen):
    """Skip all blocks while the timestep embedding has changed little (arXiv 2411.19108)."""

    name: Literal["teacache"] = "teacache"
    threshold: Float = Field(0.2, gt=0, description="of the summed change; 0.2 is the authors' for Wan2.1")
    coefficients: Annotated[tuple[Float, ...], Field(min_length=1)] = Field(
        (1.0, 0.0), description="of the polynomial, highest power first, or a published name: wan2.1-14b"
    )
    embedding: Literal["time", "projected"] = Field(
        "time", description="whose change is summed: the timestep embedding, or what the blocks get of it"
    )
    first_steps: Int = Field(1, ge=1, description="always computed")
    last_steps: Int = Field(1, ge=0, description="always computed")

    @model_validator(mode="before")
    @classmethod
    def _published(cls, given: Any) -> Any:
        name = given.get("coefficients") if isinstance(given, dict) else None
        if not isinstance(name, str):
            return given
        return {
            **_known("coefficients", name, TEACACHE),
            **{k: given[k] for k in given if k != "coefficients"},
        }


class MagCachePolicyConfig(Frozen):
    """Skip all blocks while their residual's magnitude is known to change little (arXiv 2506.09045).

    The defaults are those of the authors' script for Wan2.1.
    """

    name: Literal["magcache"] = "magcache"
    threshold: Float = Field(0.12, gt=0, description="of the summed error of the magnitude")
    max_skips: Int = Field(2, ge=1, description="steps skipped in a row")
    retention: Float = Field(0.2, ge=0, le=1, description="share of the steps at the start, all computed")
    ratios: tuple[Float, ...] = Field(
        (), description="of every step of a full run, or a measured name: wan-tiny, wan2.1-1.3b, wan2.1-14b"
    )

    @model_validator(mode="before")
    @classmethod
    def _measured(cls, given: Any) -> Any:
        name = given.get("ratios") if isinstance(given, dict) else None
        return {**given, "ratios": _known("ratios", name, MAGCACHE)} if isinstance(name, str) else given

    @model_validator(mode="after")
    def _given(self) -> "MagCachePolicyConfig":
        if not self.ratios:
            raise ValueError(
                "policy magcache needs the model's magnitude ratios: set policy.ratios to "
                f"{' or '.join(MAGCACHE)}, or measure them with benchmarks/magcache_ratios.py"
            )
        return self


class FirstBlockPolicyConfig(Frozen):
    """Skip all blocks but the first while its residual has changed little (FBCache of ParaAttention)."""

    name: Literal["fbcache"] = "fbcache"
    threshold: Float = Field(0.05, gt=0, description="relative change; 0.05 is diffusers' default")


class TaylorSeerPolicyConfig(Frozen):
    """Forecast the output of every attention and FFN (arXiv 2503.06923).

    The defaults are diffusers'.
    """

    name: Literal["taylorseer"] = "taylorseer"
    interval: Int = Field(5, ge=1, description="every so many steps all is computed")
    order: Int = Field(1, ge=0, le=6, description="of the Taylor expansion")
    first_steps: Int = Field(3, ge=1, description="always computed")


class BroadcastPolicyConfig(Frozen):
    """Repeat the outputs of attention for some steps (PAB, arXiv 2408.12588).

    Ranges: the authors' mildest setting for Latte (spatial 2, cross 6); timesteps: theirs for CogVideoX.
    """

    name: Literal["pab"] = "pab"
    self_range: Int = Field(2, ge=1, description="self-attention is computed every so many steps")
    cross_range: Int = Field(6, ge=1, description="cross-attention is computed every so many steps")
    timesteps: tuple[Int, Int] = Field((100, 850), description="between which it is so, of 0 to 1000")


class ToCaPolicyConfig(Frozen):
    """Between full steps compute FFN and cross-attention of the tokens that matter most (arXiv 2410.05317).

    Intervals are those of the authors' code for OpenSora; the shares are what it makes of a ratio of 0.1.
    """

    name: Literal["toca"] = "toca"
    interval: Int = Field(3, ge=1, description="every so many steps self-attention and FFN are computed")
    cross_interval: Int = Field(6, ge=1, description="and cross-attention")
    ratio: Float = Field(0.15, ge=0, le=1, description="share of the tokens of the FFN in between")
    cross_ratio: Float = Field(0.0, ge=0, le=1, description="and of cross-attention")
    weight: Float = Field(0.25, ge=0, description="of the steps since a token was computed, in its score")
    first_steps: Int = Field(1, ge=1, description="computed in full")


def _known(key: str, name: str, table: Mapping[str, _T]) -> _T:
    if name not in table:
        raise ValueError(f"there are no {key} {name!r}: choose one of {', '.join(table)}, or give numbers")
    return table[name]


_BlocksConfig = (
    TeaCachePolicyConfig
    | MagCachePolicyConfig
    | FirstBlockPolicyConfig
    | TaylorSeerPolicyConfig
    | BroadcastPolicyConfig
    | ToCaPolicyConfig
)

_Share = Annotated[Float, Field(ge=0, le=1)]


class RasPolicyConfig(Frozen):
    """Region-Adaptive Sampling, arXiv 2502.10389; a comparison."""

    name: Literal["ras"] = "ras"
    warmup: Int = Field(3, ge=1, description="one more step that computes all tokens follows")
    cooldown: Int = Field(0, ge=0)
    ratio: Float = Field(0.5, gt=0, le=1, description="share of the tokens that a step computes")
    reset_interval: Int = Field(8, ge=1, description="every so many steps all tokens are computed")
    starvation: Float = Field(0.1, ge=0, description="how much a token's drops weigh")
    active: Literal["low", "high"] = Field("low", description="deviation of the tokens that are computed")


class HsaPolicyConfig(Frozen):
    """Heterogeneous Step Allocation, arXiv 2605.06892, as far as it is public; a comparison."""

    name: Literal["hsa"] = "hsa"
    warmup: Int = Field(6, ge=2)
    cooldown: Int = Field(2, ge=0)
    shares: tuple[_Share, ...] = Field(
        (0.3, 0.3, 0.4), min_length=1, description="of the tokens in each group; what changes most first"
    )
    divisors: tuple[_Edge, ...] = Field(
        (1, 2, 4), min_length=1, description="a group is computed in every so many steps"
    )

    @model_validator(mode="after")
    def _groups(self) -> "HsaPolicyConfig":
        if len(self.shares) != len(self.divisors):
            raise ValueError(
                f"policy.shares has {len(self.shares)} values and policy.divisors {len(self.divisors)}: "
                "give both for every group"
            )
        if abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"policy.shares sum to {sum(self.shares):g}: give shares that sum to 1")
        return self


class AstraeaPolicyConfig(Frozen):
    """Astraea's token scores and budgets, arXiv 2506.05096, per step instead of per block; a comparison."""

    name: Literal["astraea"] = "astraea"
    warmup: Int = Field(6, ge=1)
    cooldown: Int = Field(2, ge=0)
    budgets: tuple[_Share, ...] = Field(
        (0.5,), min_length=1, description="share of the tokens of one step, of the next, ...; over and over"
    )
    penalty: Float = Field(0.5, ge=0, description="weight of the age of a token's output")


PolicyConfig = Annotated[
    FullPolicyConfig
    | JanoPolicyConfig
    | ForecastPolicyConfig
    | UniformPolicyConfig
    | RasPolicyConfig
    | HsaPolicyConfig
    | AstraeaPolicyConfig
    | _BlocksConfig,
    Field(discriminator="name"),
]
BLOCK_POLICIES: dict[str, type[BaseModel]] = {
    policy.model_fields["name"].default: policy for policy in get_args(_BlocksConfig)
}
POLICIES: dict[str, type[BaseModel]] = {
    "full": FullPolicyConfig,
    "jano": JanoPolicyConfig,
    "forecast": ForecastPolicyConfig,
    "uniform": UniformPolicyConfig,
    **BLOCK_POLICIES,
    "ras": RasPolicyConfig,
    "hsa": HsaPolicyConfig,
    "astraea": AstraeaPolicyConfig,
}
CHOOSING = ("ras", "hsa", "astraea")  # policies that choose the tokens of each step anew
KV_POLICIES = (JanoPolicyConfig, RasPolicyConfig, HsaPolicyConfig, AstraeaPolicyConfig)  # with a K/V cache
