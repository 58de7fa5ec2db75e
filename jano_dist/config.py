"""Configuration: frozen pydantic models, YAML files, presets and `--set a.b=c`; unknown keys fail."""

import difflib
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from jano_dist.errors import UserError

# In a checkout the folder lies beside the package; in an installed wheel, inside it.
_CONFIG_FOLDERS = (Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs")


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

    @model_validator(mode="after")
    def _in_order(self) -> "JanoPolicyConfig":
        if self.static_threshold > self.moderate_threshold:
            raise ValueError(
                f"policy.static_threshold {self.static_threshold} is above policy.moderate_threshold "
                f"{self.moderate_threshold}: give them in order"
            )
        return self


PolicyConfig = Annotated[FullPolicyConfig | JanoPolicyConfig, Field(discriminator="name")]
_POLICIES: dict[str, type[BaseModel]] = {"full": FullPolicyConfig, "jano": JanoPolicyConfig}


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


class Config(_Frozen):
    """Everything one engine needs. `preset` records which row of the file's presets was merged in, if any."""

    model: ModelConfig
    video: VideoConfig
    sampling: SamplingConfig = SamplingConfig()
    policy: PolicyConfig = JanoPolicyConfig()
    mesh: MeshConfig = MeshConfig()
    cache: CacheConfig = CacheConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    preset: str | None = None


def config_names() -> list[str]:
    """Names of the configs that ship with the package."""
    return sorted({path.stem for folder in _CONFIG_FOLDERS for path in folder.glob("*.yaml")})


def load_config(
    name: str | Path,
    *,
    preset: str | None = None,
    policy: str | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
) -> Config:
    """Read a config by name or path and merge preset, policy and overrides into it, in that order.

    Args:
        name: a shipped config's name (`config_names()`) or the path of a YAML file.
        preset: a row of the file's `presets`; None takes the file's own `preset`.
        policy: `full` or `jano`; None keeps the file's.
        overrides: `["a.b=c", ...]` (values are YAML) or `{"a.b": value}`; they win over all else.

    Raises:
        UserError: unknown config, preset or key (names the nearest), or a value that does not fit.
    """
    _check_arguments(name, preset=preset, policy=policy, overrides=overrides)
    raw = _read(_find(name))
    presets, own_preset = raw.pop("presets", None), raw.pop("preset", None)
    pairs = dict(_pairs(overrides))
    # These two choose what the other overrides change, so they come first, however they are given.
    policy = pairs.pop("policy.name", policy)
    preset = pairs.pop("preset", preset) or own_preset
    _set_policy(raw, policy)
    if preset is not None:
        row = _preset_row(str(preset), presets, str(name))
        if raw["policy"]["name"] == "jano":
            raw["policy"] |= row
            raw["preset"] = preset
    for key, value in pairs.items():
        _assign(raw, key, value)
    return _validate(raw, str(name))


def change_sampling(sampling: SamplingConfig, changes: Mapping[str, Any]) -> SamplingConfig:
    """`sampling` with some of its keys changed.

    Raises:
        UserError: a value that does not fit.
    """
    try:
        return SamplingConfig.model_validate({**sampling.model_dump(), **changes})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(_sentence({**first, "loc": ("sampling", *first["loc"])}, {})) from error


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


def _check_arguments(name: object, *, preset: object, policy: object, overrides: object) -> None:
    """The types of `load_config`'s arguments; it would fail on others somewhere inside."""
    if not isinstance(name, str | Path):
        raise UserError(f"a config is loaded by its name or path, not by {name!r}: give one of the two")
    for word, value in {"preset": preset, "policy": policy}.items():
        if not isinstance(value, str | None):
            raise UserError(f"the {word} is given by its name, not by {value!r}: give a str, or None")
    texts = list(overrides) if isinstance(overrides, Sequence | Mapping) else [overrides]
    if isinstance(overrides, str) or not all(isinstance(text, str) for text in texts):
        raise UserError(
            f"overrides are a list of 'key=value' or a dictionary of keys and values, not {overrides!r}: "
            "write for example {'sampling.steps': 30}"
        )


def _find(name: str | Path) -> Path:
    if not str(name):
        raise UserError(f"the config has no name: choose one of {', '.join(config_names())}, or give a file")
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise UserError(
            f"config file {path} does not exist: give a file or one of {', '.join(config_names())}"
        )
    for folder in _CONFIG_FOLDERS:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = config_names()
    raise UserError(
        f"there is no config {str(name)!r}{_nearest(str(name), known)}: "
        f"choose one of {', '.join(known)} or give the path of a .yaml file"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"config file {path} cannot be read ({error.strerror}): give another one") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not valid YAML ({' '.join(str(error).split())}): correct the file"
        ) from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no settings: write at least the sections model and video")
    return raw


def _set_policy(raw: dict[str, Any], policy: str | None) -> None:
    """Switch the policy by name; the settings of another policy do not carry over."""
    own = raw.get("policy") or {}
    if not isinstance(own, dict):
        raise UserError(f"policy is a section, not {own!r}: write for example policy: {{name: jano}}")
    named = own.get("name", "jano")
    raw["policy"] = {**own, "name": named} if policy in (None, named) else {"name": policy}


def _preset_row(preset: str, presets: Any, source: str) -> dict[str, Any]:
    if not presets:
        raise UserError(f"config {source} has no presets: do not ask for {preset!r}, or add it to the file")
    if not isinstance(presets, dict) or not all(isinstance(row, dict) for row in presets.values()):
        raise UserError(f"config {source}: presets must hold rows of keys and values: correct the file")
    if preset not in presets:
        names = [str(name) for name in presets]
        raise UserError(
            f"config {source} has no preset {preset!r}{_nearest(preset, names)}: "
            f"choose one of {', '.join(names)}"
        )
    row: dict[str, Any] = presets[preset]
    return row


def _pairs(overrides: Sequence[str] | Mapping[str, Any]) -> list[tuple[str, Any]]:
    if isinstance(overrides, Mapping):
        return list(overrides.items())
    pairs = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(
                f"--set {text!r} is not of the form key=value: write for example --set sampling.steps=30"
            )
        try:
            pairs.append((key.strip(), yaml.safe_load(value)))
        except yaml.YAMLError as error:
            raise UserError(
                f"the value of --set {text!r} is not valid YAML: put it in double quotes inside the shell's"
            ) from error
    return pairs


def _assign(raw: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    node = raw
    for section in sections:
        child = node.get(section)
        node[section] = dict(child) if isinstance(child, dict) else {}
        node = node[section]
    node[leaf] = value


def _validate(raw: dict[str, Any], source: str) -> Config:
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"config {source}: {_sentence(error.errors()[0], raw)}") from error


def _sentence(error: Mapping[str, Any], raw: Mapping[str, Any]) -> str:
    """One of pydantic's errors in our words: which key, what is wrong with it, what to do."""
    where = [str(part) for part in error["loc"]]
    if where[0] == "policy":
        del where[1:2]  # which policy of the union; users never wrote it
    key, given = ".".join(where), error.get("input")
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key {key!r}{_nearest_key(where, raw)}: correct or remove it"
        case "missing":
            return f"{key} is missing: add it"
        case "union_tag_invalid":
            name, known = str(raw["policy"]["name"]), list(_POLICIES)
            return f"there is no policy {name!r}{_nearest(name, known)}: choose one of {', '.join(known)}"
        case "model_type" | "model_attributes_type":
            return f"{key} is a section, not {given!r}: set one of the keys in it"
        case "value_error":  # one of ours, already a sentence
            return str(error["ctx"]["error"])
        case "too_long":
            return f"{key} has {len(given or ())} values: give {error['ctx']['max_length']}"
    message = error["msg"].partition(", unable")[0]  # "... to parse string as an integer"
    verb = message.removeprefix("Input ") if message.startswith("Input ") else f"is wrong ({message})"
    return f"{key} {verb}, not {given!r}: correct it"


def _nearest_key(where: list[str], raw: Mapping[str, Any]) -> str:
    """A hint for an unknown key: one spelled alike, rather in the same section than in another."""
    section, leaf = ".".join(where[:-1]), where[-1]
    policy = raw.get("policy")
    name = policy.get("name") if isinstance(policy, dict) else "jano"

    def likeness(key: str) -> float:
        own_section, _, own_leaf = key.rpartition(".")
        return difflib.SequenceMatcher(None, leaf, own_leaf).ratio() + 0.1 * (own_section == section)

    best = max(_keys(Config, _POLICIES.get(str(name), JanoPolicyConfig)), key=likeness)
    return f" (did you mean {best!r}?)" if likeness(best) > 0.6 else ""


def _keys(model: type[BaseModel], policy: type[BaseModel], section: str = "") -> list[str]:
    """All keys of a model, dotted, sections included."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(section + name)
        inner = policy if section + name == "policy" else field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += _keys(inner, policy, f"{section}{name}.")
    return keys


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f" (did you mean {close[0]!r}?)" if close else ""
