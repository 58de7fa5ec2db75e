"""The settings of a run as frozen pydantic models; unknown keys fail."""

import operator
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from jano_dist.config.published import MAGCACHE, TEACACHE
from jano_dist.errors import UserError

_T = TypeVar("_T")


class _Frozen(BaseModel):
    # allow_inf_nan: run.json holds the config, and JSON has no word for them.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _plain_int(value: Any) -> Any:
    """NumPy's integers are integers, too; true and false are none, here and in pydantic's strict mode."""
    try:
        return value if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return value


_Int = Annotated[int, Field(strict=True), BeforeValidator(_plain_int)]
_Float = Annotated[float, Field(strict=True)]  # takes integers, too


def _utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{text!a} is not valid UTF-8: type it anew") from error
    return text


_Text = Annotated[str, AfterValidator(_utf8)]


class ModelConfig(_Frozen):
    """Which weights, and how they are held."""

    name: _Text = Field(description="wan-tiny (ships with the package), a diffusers folder, or a hub name")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="transformer and text encoder; auto keeps the dtype of the files"
    )
    vae_dtype: Literal["float32", "bfloat16"] = "float32"
    vae_parallel: Literal["auto", "single"] = Field(
        "auto", description="who decodes: all ranks, or the coordinator alone"
    )
    weights: Literal["replicated", "fsdp", "group_offload"] = Field(
        "replicated",
        description="the transformer's: whole on every rank, sharded over the ranks, or layer by layer from "
        "host memory",
    )
    vae_tiling: bool = Field(False, description="decode in overlapping tiles, which takes less memory")
    max_sequence_length: _Int = Field(512, ge=1, description="text tokens a prompt is padded to")


class VideoConfig(_Frozen):
    """Size of the result in pixels and frames."""

    frames: _Int = Field(ge=1)
    height: _Int = Field(ge=1)
    width: _Int = Field(ge=1)
    fps: _Int = Field(16, ge=1, le=240)


class SamplingConfig(_Frozen):
    """The denoising loop."""

    steps: _Int = Field(50, ge=1, le=1000, description="the models know 1000 noise levels")
    guidance: _Float = Field(5.0, ge=0, description="classifier-free guidance scale; 1 or less turns it off")
    negative_prompt: _Text = ""
    shift: _Float | None = Field(None, gt=0, description="flow shift; null keeps the model's own")
    seed: _Int = Field(0, ge=0, lt=2**63)


class FullPolicyConfig(_Frozen):
    """Every step computes every token."""

    name: Literal["full"] = "full"


class EnhanceConfig(_Frozen):
    """Raising of holes inside active regions."""

    strength: _Float = Field(0.8, ge=0)
    distance: _Int = Field(1, ge=1, description="in blocks")


_Edge = Annotated[_Int, Field(ge=1)]
_Velocity = Annotated[
    Literal["hold", "forecast"],
    Field(
        description="of tokens that a step does not compute: held, or on the line through their last two "
        "where that was better last time"
    ),
]


class JanoPolicyConfig(_Frozen):
    """The Jano method; see docs/architecture.md for the words."""

    name: Literal["jano"] = "jano"
    score: Literal["last_change", "published"] = "last_change"
    block: tuple[_Edge, _Edge, _Edge] = Field((7, 6, 8), description="latent positions in T, H, W")
    temporal_weight: _Float = Field(0.7, ge=0, le=1, description="of the published score")
    warmup: _Int = Field(6, ge=2)
    cooldown: _Int = Field(4, ge=0)
    static_threshold: _Float = Field(0.15, ge=0, le=1)
    static_interval: _Int = Field(6, ge=1)
    moderate_threshold: _Float = Field(0.4, ge=0, le=1)
    moderate_interval: _Int = Field(4, ge=1)
    enhance: EnhanceConfig = EnhanceConfig()
    velocity: _Velocity = "hold"

    @model_validator(mode="after")
    def _in_order(self) -> "JanoPolicyConfig":
        if self.static_threshold > self.moderate_threshold:
            raise ValueError(
                f"policy.static_threshold {self.static_threshold} is above policy.moderate_threshold "
                f"{self.moderate_threshold}: give them in order"
            )
        return self


class ForecastPolicyConfig(_Frozen):
    """All tokens of a step or none; the observed error of forecasts decides when to compute."""

    name: Literal["forecast"] = "forecast"
    warmup: _Int = Field(6, ge=1)
    cooldown: _Int = Field(2, ge=0)
    tau: _Float = Field(0.12, ge=0, description="relative error that a forecast velocity may have")
    max_interval: _Int = Field(3, ge=1, description="steps from a computed one to the next, at most")


class UniformPolicyConfig(_Frozen):
    """All tokens in every n-th step, none in the others: a control."""

    name: Literal["uniform"] = "uniform"
    warmup: _Int = Field(6, ge=1)
    cooldown: _Int = Field(2, ge=0)
    interval: _Int = Field(2, ge=1)
    velocity: _Velocity = "hold"


class TeaCachePolicyConfig(_Frozen):
    """Skip all blocks while the timestep embedding has changed little (arXiv 2411.19108)."""

    name: Literal["teacache"] = "teacache"
    threshold: _Float = Field(0.2, gt=0, description="of the summed change; 0.2 is the authors' for Wan2.1")
    coefficients: Annotated[tuple[_Float, ...], Field(min_length=1)] = Field(
        (1.0, 0.0), description="of the polynomial, highest power first, or a published name: wan2.1-14b"
    )
    embedding: Literal["time", "projected"] = Field(
        "time", description="whose change is summed: the timestep embedding, or what the blocks get of it"
    )
    first_steps: _Int = Field(1, ge=1, description="always computed")
    last_steps: _Int = Field(1, ge=0, description="always computed")

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


class MagCachePolicyConfig(_Frozen):
    """Skip all blocks while their residual's magnitude is known to change little (arXiv 2506.09045).

    The defaults are those of the authors' script for Wan2.1.
    """

    name: Literal["magcache"] = "magcache"
    threshold: _Float = Field(0.12, gt=0, description="of the summed error of the magnitude")
    max_skips: _Int = Field(2, ge=1, description="steps skipped in a row")
    retention: _Float = Field(0.2, ge=0, le=1, description="share of the steps at the start, all computed")
    ratios: tuple[_Float, ...] = Field(
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


class FirstBlockPolicyConfig(_Frozen):
    """Skip all blocks but the first while its residual has changed little (FBCache of ParaAttention)."""

    name: Literal["fbcache"] = "fbcache"
    threshold: _Float = Field(0.05, gt=0, description="relative change; 0.05 is diffusers' default")


class TaylorSeerPolicyConfig(_Frozen):
    """Forecast the output of every attention and FFN (arXiv 2503.06923).

    The defaults are diffusers'.
    """

    name: Literal["taylorseer"] = "taylorseer"
    interval: _Int = Field(5, ge=1, description="every so many steps all is computed")
    order: _Int = Field(1, ge=0, le=6, description="of the Taylor expansion")
    first_steps: _Int = Field(3, ge=1, description="always computed")


class BroadcastPolicyConfig(_Frozen):
    """Repeat the outputs of attention for some steps (PAB, arXiv 2408.12588).

    Ranges: the authors' mildest setting for Latte (spatial 2, cross 6); timesteps: theirs for CogVideoX.
    """

    name: Literal["pab"] = "pab"
    self_range: _Int = Field(2, ge=1, description="self-attention is computed every so many steps")
    cross_range: _Int = Field(6, ge=1, description="cross-attention is computed every so many steps")
    timesteps: tuple[_Int, _Int] = Field((100, 850), description="between which it is so, of 0 to 1000")


class ToCaPolicyConfig(_Frozen):
    """Between full steps compute FFN and cross-attention of the tokens that matter most (arXiv 2410.05317).

    Intervals are those of the authors' code for OpenSora; the shares are what it makes of a ratio of 0.1.
    """

    name: Literal["toca"] = "toca"
    interval: _Int = Field(3, ge=1, description="every so many steps self-attention and FFN are computed")
    cross_interval: _Int = Field(6, ge=1, description="and cross-attention")
    ratio: _Float = Field(0.15, ge=0, le=1, description="share of the tokens of the FFN in between")
    cross_ratio: _Float = Field(0.0, ge=0, le=1, description="and of cross-attention")
    weight: _Float = Field(0.25, ge=0, description="of the steps since a token was computed, in its score")
    first_steps: _Int = Field(1, ge=1, description="computed in full")


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
PolicyConfig = Annotated[
    FullPolicyConfig | JanoPolicyConfig | ForecastPolicyConfig | UniformPolicyConfig | _BlocksConfig,
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
}


class MeshConfig(_Frozen):
    """How the ranks of a gang share the work; what is null is chosen from the number of ranks."""

    cfg: Annotated[_Int, Field(ge=1, le=2)] | None = Field(
        None, description="2: cond and uncond branch on different ranks"
    )
    kv: _Edge | None = Field(None, description="shards of a branch's tokens whose keys and values stay put")
    ulysses: _Edge | None = Field(None, description="ranks that share a branch's heads and tokens")


class CacheConfig(_Frozen):
    """What skipped tokens leave behind, and where it is kept."""

    kind: Literal["kv", "hidden"] = Field(
        "kv", description="keys and values, or the attention input from which they are made again"
    )
    dtype: Literal["native", "fp8"] = Field("native", description="of what is kept; fp8 is 8-bit e4m3")
    device: Literal["accelerator", "cpu"] = Field("accelerator", description="where it is kept")


class RuntimeConfig(_Frozen):
    """Where it runs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    timeout_seconds: _Float = Field(
        120, gt=0, le=86_400, description="how long a rank waits for the others before it gives up"
    )
    stall_seconds: _Float = Field(
        60, ge=2, le=86_400, description="a rank that gives no sign of life for so long is taken for dead"
    )
    recoveries: _Int = Field(
        2, ge=0, description="how often the launcher starts the ranks again when one of them fails"
    )


class SnapshotConfig(_Frozen):
    """What is kept while a run goes on, to go on from when it fails."""

    seconds: _Float = Field(60, ge=0, description="at least so long from one snapshot to the next")


class Config(_Frozen):
    """Everything one engine needs. `preset` records which row of the file's presets was merged in, if any."""

    model: ModelConfig
    video: VideoConfig
    sampling: SamplingConfig = SamplingConfig()
    policy: PolicyConfig = JanoPolicyConfig()
    mesh: MeshConfig = MeshConfig()
    cache: CacheConfig = CacheConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    snapshot: SnapshotConfig = SnapshotConfig()
    preset: str | None = None

    @model_validator(mode="after")
    def _blocks_at_hand(self) -> "Config":
        if self.policy.name in BLOCK_POLICIES and self.model.weights == "group_offload":
            raise ValueError(
                f"policy {self.policy.name} skips blocks, which model.weights group_offload fetches ahead: "
                "set model.weights to replicated or fsdp"
            )
        return self


def check_prompt(prompt: object) -> None:
    """Make sure that a prompt is text that can be written to a file, and not empty.

    Raises:
        UserError: it is not.
    """
    if not isinstance(prompt, str):
        raise UserError(f"the prompt should be text, not {prompt!r}: give a str")
    try:
        _utf8(prompt)
    except ValueError as error:
        raise UserError(f"the prompt {error}") from error
    if not prompt.strip():
        raise UserError("the prompt is empty: say what the video shows")
