"""Settings of policy jano with which a run of eight steps has every kind of step."""

SHORT_JANO = {
    "policy.warmup": 3,
    "policy.cooldown": 1,
    "policy.static_threshold": 0.3,
    "policy.moderate_threshold": 0.6,
    "policy.static_interval": 4,
    "policy.moderate_interval": 2,
}
