"""Published constants of caching methods, with their sources, and those measured for wan-tiny."""

from typing import Any

# TeaCache's polynomials for text-to-video Wan2.1, highest power first, fitted by its authors
# (https://github.com/ali-vilab/TeaCache, TeaCache4Wan2.1). Those of the projected embedding belong to their
# "retention" mode: 5 first steps computed, no last one.
TEACACHE: dict[str, dict[str, Any]] = {
    "identity": {"coefficients": (1.0, 0.0)},
    "wan2.1-1.3b": {
        "coefficients": (2.39676752e3, -1.31110545e3, 2.01331979e2, -8.29855975, 1.37887774e-1),
        "embedding": "time",
    },
    "wan2.1-14b": {
        "coefficients": (-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404),
        "embedding": "time",
    },
    "wan2.1-1.3b-projected": {
        "coefficients": (-5.21862437e4, 9.23041404e3, -5.28275948e2, 1.36987616e1, -4.99875664e-2),
        "embedding": "projected",
        "first_steps": 5,
        "last_steps": 0,
    },
    "wan2.1-14b-projected": {
        "coefficients": (-3.03318725e5, 4.90537029e4, -2.65530556e3, 5.87365115e1, -3.15583525e-1),
        "embedding": "projected",
        "first_steps": 5,
        "last_steps": 0,
    },
}

# MagCache's magnitude ratios of 50 steps, cond branch. Wan2.1 (text-to-video): measured by its authors
# (https://github.com/Zehong-Ma/MagCache, MagCache4Wan2.1). wan-tiny: at guidance 3 and
# shift 3, by benchmarks/magcache_ratios.py.
MAGCACHE: dict[str, tuple[float, ...]] = {
    "wan-tiny": (
        1.0, 0.98126, 0.99729, 0.98692, 0.99311, 0.99646, 1.00095, 1.00751, 1.00337, 0.99295, 0.9925,
        1.00383, 0.99651, 0.9995, 0.99274, 0.98789, 0.9967, 0.99361, 0.99677, 0.99926, 0.99215, 0.99323,
        0.99113, 0.99332, 0.99637, 0.99597, 0.99368, 0.99301, 0.99164, 0.99735, 0.99698, 0.9965, 0.99164,
        0.99213, 0.9982, 0.99694, 0.99291, 0.99549, 0.99702, 0.99911, 0.9897, 0.99862, 0.99897, 0.99625,
        0.99855, 0.99415, 0.99956, 0.99663, 0.99515, 0.9957,
    ),
    "wan2.1-1.3b": (
        1.0, 1.0124, 1.00166, 0.99791, 0.99682, 0.99634, 0.99567, 0.99416, 0.99578, 0.9957, 0.99511, 0.99535,
        0.99552, 0.99541, 0.9954, 0.99489, 0.99518, 0.99484, 0.99481, 0.99415, 0.99419, 0.99396, 0.99388,
        0.99349, 0.99309, 0.9927, 0.99228, 0.99171, 0.99137, 0.99068, 0.99005, 0.98944, 0.98849, 0.98758,
        0.98644, 0.98504, 0.9836, 0.98202, 0.97977, 0.97717, 0.9741, 0.97003, 0.96538, 0.9593, 0.95086,
        0.94013, 0.92402, 0.90241, 0.86821, 0.81838,
    ),
    "wan2.1-14b": (
        1.0, 1.02504, 1.00025, 0.9985, 0.99779, 0.9966, 0.99482, 0.99467, 0.99664, 0.99434, 0.99533, 0.99468,
        0.99438, 0.99516, 0.99384, 0.99404, 0.99517, 0.99409, 0.99428, 0.99347, 0.99418, 0.99271, 0.99313,
        0.99215, 0.99218, 0.99216, 0.99163, 0.99138, 0.98982, 0.98996, 0.9887, 0.98772, 0.98767, 0.98573,
        0.98501, 0.9838, 0.98177, 0.98037, 0.97678, 0.97546, 0.97184, 0.96711, 0.96349, 0.95629, 0.94926,
        0.93964, 0.92511, 0.90693, 0.8796, 0.86111,
    ),
}  # fmt: skip
