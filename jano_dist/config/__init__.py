"""Configuration: what can be set, how it is read, and what is said of a setting that does not fit."""

from jano_dist.config.load import (
    change_config,
    change_sampling,
    config_names,
    load_config,
    parse_overrides,
    preset_names,
)
from jano_dist.config.policies import (
    BLOCK_POLICIES,
    CHOOSING,
    POLICIES,
    EnhanceConfig,
    ForecastPolicyConfig,
    FullPolicyConfig,
    JanoPolicyConfig,
    UniformPolicyConfig,
)
from jano_dist.config.settings import (
    CacheConfig,
    Config,
    MeshConfig,
    ModelConfig,
    RuntimeConfig,
    SamplingConfig,
    SnapshotConfig,
    VideoConfig,
    check_prompt,
    notes_on_skipping,
)

__all__ = [
    "BLOCK_POLICIES",
    "CHOOSING",
    "POLICIES",
    "CacheConfig",
    "Config",
    "EnhanceConfig",
    "ForecastPolicyConfig",
    "FullPolicyConfig",
    "JanoPolicyConfig",
    "MeshConfig",
    "ModelConfig",
    "RuntimeConfig",
    "SamplingConfig",
    "SnapshotConfig",
    "UniformPolicyConfig",
    "VideoConfig",
    "change_config",
    "change_sampling",
    "check_prompt",
    "config_names",
    "load_config",
    "notes_on_skipping",
    "parse_overrides",
    "preset_names",
]
