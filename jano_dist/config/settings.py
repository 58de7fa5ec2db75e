"""The settings of a run as frozen pydantic models; unknown keys fail."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from jano_dist.config.fields import Float, Frozen, Int, Text, utf8
from jano_dist.config.lora import checked, is_distilled, one_or_more, split_lora
from jano_dist.config.policies import BLOCK_POLICIES, CHOOSING, JanoPolicyConfig, PolicyConfig
from jano_dist.errors import UserError

FEW_STEPS = 8  # as models that are distilled take; each changes the whole latent
_Edge = Annotated[Int, Field(ge=1)]


_Loras = Annotated[tuple[Text, ...], BeforeValidator(one_or_more), AfterValidator(checked)]


class ModelConfig(Frozen):
    """Which weights, and how they are held."""

    name: Text = Field(description="wan-tiny (ships with the package), a diffusers folder, or a hub name")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="transformer and text encoder; auto keeps the dtype of the files"
    )
    vae_dtype: Literal["float32", "bfloat16"] = "float32"
    vae_parallel: Literal["auto", "single"] = Field(
        "auto", description="who decodes: the first ranks, 8 at most, or the coordinator alone"
    )
    weights: Literal["replicated", "fsdp", "group_offload"] = Field(
        "replicated",
        description="the transformer's: whole on every rank, sharded over the ranks, or layer by layer from "
        "host memory",
    )
    experts: Literal["both", "swap"] = Field(
        "both", description="of a model with two: both on the device, or the one that runs"
    )
    text_encoder: Literal["auto", "keep", "reload"] = Field(
        "auto",
        description="between prompts: kept in host memory or read anew; auto keeps it where it fits",
    )
    compile: bool = Field(
        False, description="the transformer's blocks by torch.compile: minutes once, then fewer kernels"
    )
    vae_tiling: bool = Field(False, description="decode in overlapping tiles, which takes less memory")
    max_sequence_length: Int = Field(512, ge=1, description="text tokens a prompt is padded to")
    lora: _Loras = Field((), description="FILE_OR_NAME[:SCALE] of each LoRA; they add up")
    lora_2: _Loras = Field((), description="the same for a second expert, which the first one's do not touch")

    @property
    def loras(self) -> tuple[tuple[str, float], ...]:
        """File or hub name, and scale, of each LoRA."""
        return tuple(split_lora(text) for text in self.lora)

    @property
    def loras_2(self) -> tuple[tuple[str, float], ...]:
        """The same of a second expert."""
        return tuple(split_lora(text) for text in self.lora_2)


class VideoConfig(Frozen):
    """Size of the result in pixels and frames."""

    frames: Int = Field(ge=1)
    height: Int = Field(ge=1)
    width: Int = Field(ge=1)
    fps: Int = Field(16, ge=1, le=240)


class SamplingConfig(Frozen):
    """The denoising loop."""

    steps: Int = Field(50, ge=1, le=1000, description="the models know 1000 noise levels")
    guidance: Float = Field(5.0, ge=0, description="classifier-free guidance scale; 1 or less turns it off")
    guidance_2: Float | None = Field(None, ge=0, description="of a second expert; null: the same")
    negative_prompt: Text = ""
    shift: Float | None = Field(None, gt=0, description="flow shift; null keeps the model's own")
    seed: Int = Field(0, ge=0, lt=2**63)
    image: Text | None = Field(None, description="the file of the picture that a video begins with")


class MeshConfig(Frozen):
    """How the ranks of a gang share the work; what is null is chosen from the number of ranks."""

    cfg: Annotated[Int, Field(ge=1, le=2)] | None = Field(
        None, description="2: cond and uncond branch on different ranks"
    )
    kv: _Edge | None = Field(None, description="shards of a branch's tokens whose keys and values stay put")
    ulysses: _Edge | None = Field(None, description="ranks that share a branch's heads and tokens")


class CacheConfig(Frozen):
    """What skipped tokens leave behind, and where it is kept."""

    kind: Literal["kv", "hidden"] = Field(
        "kv", description="keys and values, or the attention input from which they are made again"
    )
    dtype: Literal["native", "fp8"] = Field("native", description="of what is kept; fp8 is 8-bit e4m3")
    device: Literal["accelerator", "cpu"] = Field("accelerator", description="where it is kept")


_KERNELS = ("auto", "torch", "cudnn", "flash3", "flash4")


def _backend(text: str) -> str:
    """A backend's name in the case that is used; which of xfuser's there are, its table says."""
    prefix, colon, name = text.strip().partition(":")
    if prefix.lower() == "xfuser" and name:
        return f"xfuser:{name.upper()}"
    if colon or prefix.lower() not in _KERNELS:
        raise ValueError(
            f"attention.backend should be {', '.join(_KERNELS)} or xfuser:NAME, not {text!r}: correct it"
        )
    return prefix.lower()


class AttentionConfig(Frozen):
    """Which kernel self-attention runs by."""

    backend: Annotated[Text, AfterValidator(_backend)] = Field(
        "auto",
        description="auto (the fastest exact one), torch, cudnn, flash3, flash4, or xfuser:NAME; "
        "`jano-dist doctor` lists them",
    )


class RuntimeConfig(Frozen):
    """Where it runs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    timeout_seconds: Float = Field(
        120, gt=0, le=86_400, description="how long a rank waits for the others before it gives up"
    )
    stall_seconds: Float = Field(
        60, ge=2, le=86_400, description="a rank that gives no sign of life for so long is taken for dead"
    )
    recoveries: Int = Field(
        2, ge=0, description="how often the launcher starts the ranks again when one of them fails"
    )


class SnapshotConfig(Frozen):
    """What is kept while a run goes on, to go on from when it fails."""

    seconds: Float = Field(60, ge=0, description="at least so long from one snapshot to the next")


class Config(Frozen):
    """Everything one engine needs. `preset` records which row of the file's presets was merged in, if any."""

    model: ModelConfig
    video: VideoConfig
    sampling: SamplingConfig = SamplingConfig()
    policy: PolicyConfig = JanoPolicyConfig()
    mesh: MeshConfig = MeshConfig()
    cache: CacheConfig = CacheConfig()
    attention: AttentionConfig = AttentionConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    snapshot: SnapshotConfig = SnapshotConfig()
    preset: str | None = None

    @model_validator(mode="after")
    def _experts_at_hand(self) -> "Config":
        if self.model.experts == "swap" and self.model.weights != "replicated":
            raise ValueError(
                f"model.experts swap moves whole transformers, which model.weights {self.model.weights} cuts "
                "up: set one of the two only"
            )
        return self

    @model_validator(mode="after")
    def _blocks_at_hand(self) -> "Config":
        if self.policy.name in BLOCK_POLICIES and self.model.weights == "group_offload":
            raise ValueError(
                f"policy {self.policy.name} skips blocks, which model.weights group_offload fetches ahead: "
                "set model.weights to replicated or fsdp"
            )
        if self.policy.name in BLOCK_POLICIES and self.model.compile:
            raise ValueError(
                f"policy {self.policy.name} decides inside the blocks, which model.compile makes into fixed "
                "kernels: set model.compile to false"
            )
        return self

    @model_validator(mode="after")
    def _keeps_any_rows(self) -> "Config":
        # In 8 bits, in host memory and as hidden states what a step computes must be a prefix of the rows.
        if self.policy.name in CHOOSING and self.cache != CacheConfig():
            raise ValueError(
                f"policy {self.policy.name} chooses the tokens of each step anew, which the default cache "
                "alone can keep: set cache.kind=kv, cache.dtype=native and cache.device=accelerator"
            )
        return self


def notes_on_skipping(config: Config) -> list[str]:
    """A sentence where a policy that skips has hardly anything to skip."""
    steps, name = config.sampling.steps, config.policy.name
    distilled = [lora for lora, _ in (*config.model.loras, *config.model.loras_2) if is_distilled(lora)]
    if name == "full":
        return []
    if steps <= FEW_STEPS:
        return [f"{steps} steps leave policy {name} little to skip: consider --policy full"]
    if distilled:
        return [
            f"{distilled[0]} seems to be distilled to few steps, which leave little to skip: consider "
            f"--steps {FEW_STEPS} or fewer with --policy full"
        ]
    return []


def of_second_expert(config: Config) -> dict[str, object]:
    """What is set for a second expert, by config key; None where it is not."""
    return {
        "policy.warmup_2": getattr(config.policy, "warmup_2", None),
        "sampling.guidance_2": config.sampling.guidance_2,
        "model.lora_2": config.model.lora_2 or None,
    }


def check_prompt(prompt: object) -> None:
    """Make sure that a prompt is text that can be written to a file, and not empty.

    Raises:
        UserError: it is not.
    """
    if not isinstance(prompt, str):
        raise UserError(f"the prompt should be text, not {prompt!r}: give a str")
    try:
        utf8(prompt)
    except ValueError as error:
        raise UserError(f"the prompt {error}") from error
    if not prompt.strip():
        raise UserError("the prompt is empty: say what the video shows")
