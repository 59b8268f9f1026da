"""Calls of the modules, drawn: each is a dictionary of plain values, which JSON keeps whole."""

from random import Random
from typing import Any

Case = dict[str, Any]

DTYPES = ("float32", "float32", "bfloat16", "float16")
VALUES = ("normal", "normal", "normal", "tiny", "denormal", "large", "constant", "mean 1000", "zeros", "sparse", "nan")
LEVELS = ("baseline", "avx2", "avx512")
KERNELS = (1, 3, 5, 7, 9, 11)


def draw(seed: int, index: int, only: str | None = None, small: bool = False) -> Case:
    """Return one call: the same for the same arguments. `small` keeps to sizes that an interpreter can do."""
    random = Random(f"{seed} {index}")
    name = only or random.choice([*DRAWS])
    module, shapes, extra = DRAWS[name](random, small)
    dtype = random.choice(DTYPES)
    autocast = random.choice(("bfloat16", "float16")) if random.random() < 0.2 else None
    case = {
        "module": name,
        "options": module,
        "shapes": shapes,
        **extra,
        "dtype": dtype,
        "param_dtype": "float32" if autocast else dtype,
        "autocast": autocast,
        "values": random.choice(VALUES),
        "weights": random.choice(("normal", "normal", "normal", "tiny", "large")),
        "layouts": [_layout(random, len(shape)) for shape in shapes],
        "grad_layouts": [_layout(random, len(shape)) for shape in shapes],
        "param_layout": random.choice(("dense", "dense", "offset", "gaps")),
        "guard": random.choice((None, "end", "end", "start")),
        "grad": random.choice(("all", "all", "all", "x", "parameters", "some", "none", "inference")),
        "threads": random.choice((1, 2, 5)),
        "isa": random.choice(LEVELS),
        "seed": random.randrange(1 << 30),
    }
    if random.random() < 0.08:
        _spoil(random, case)
    return case


def _layout(random: Random, dims: int) -> dict[str, Any]:
    """Return how a tensor lies: the order of its axes in memory, what is left free, where it starts."""
    order = [*range(dims)]
    plain: dict[str, Any] = {"order": order, "step": [1] * dims, "pad": [0] * dims, "offset": 0, "expand": []}
    kind = random.choice(("dense", "dense", "last", "last", "offset", "slice", "steps", "permuted", "expanded"))
    if kind == "last" or random.random() < 0.2:
        plain["order"] = [0, *range(2, dims), 1]
    if kind == "offset":
        plain["offset"] = random.randint(1, 17)
    if kind == "slice":
        plain["pad"] = [random.choice((0, 0, 1, 3)) for _ in order]
    if kind == "steps":
        plain["step"] = [random.choice((1, 1, 2, 3)) for _ in order]
    if kind == "permuted":
        plain["order"] = random.sample(order, dims)
    if kind == "expanded":
        plain["expand"] = random.sample(order, random.randint(1, dims))
    return plain


def _size(random: Random, most: int) -> int:
    odd, usual = random.choice((1, 2, 3, 7, 8, 14, 16, 17)), random.randint(1, most)
    return random.choice((min(odd, most), usual))


def _batch(random: Random) -> int:
    return random.choice((0, 1, 1, 1, 2, 2, 3, 4, 5))


def _map(random: Random, channels: int, small: bool, least: int = 1) -> list[int]:
    most = 12 if small else 40
    return [_batch(random), channels, *(max(least, _size(random, most)) for _ in range(2))]


def _divisor(random: Random, number: int) -> int:
    return random.choice([n for n in range(1, number + 1) if number % n == 0])


def _spatial(random: Random) -> dict[str, Any]:
    return {"group_kernel_sizes": [random.choice(KERNELS) for _ in range(4)]}


def _channel(random: Random, dim: int, height: int, width: int) -> dict[str, Any]:
    return {
        "head_num": _divisor(random, dim),
        "window_size": random.choice((-1, *range(1, min(height, width, 9) + 1))),
        "qkv_bias": random.random() < 0.5,
        "down_sample_mode": random.choice(("avg_pool",) * 5 + ("max_pool",) * 4 + ("recombination",)),
    }


def _scsa(random: Random, small: bool, spatial: bool = True, channel: bool = True) -> tuple[dict, list, dict]:
    dim = 4 * _size(random, 8 if small else 40) if spatial else _size(random, 32 if small else 160)
    shape = _map(random, dim, small)
    options = {"dim": dim, "gate_layer": random.choice(("sigmoid", "sigmoid", "softmax"))}
    if spatial:
        options |= _spatial(random)
    if channel:
        options |= _channel(random, dim, *shape[2:])
    if options.get("down_sample_mode") == "recombination" and options["window_size"] == -1:
        options["window_size"] = 1
    return options, [shape], {}


def _smsa(random: Random, small: bool) -> tuple[dict, list, dict]:
    return _scsa(random, small, channel=False)


def _pcsa(random: Random, small: bool) -> tuple[dict, list, dict]:
    return _scsa(random, small, spatial=False)


def _cfsam(random: Random, small: bool) -> tuple[dict, list, dict]:
    heads = random.choice((1, 2, 4))
    dim = heads * random.choice((16, 32) if small else (1, 3, 8, 16, 32))
    channels = [_size(random, 24) for _ in range(random.randint(1, 3))]
    batch = _batch(random)
    shapes = [[batch, c, _size(random, 12), _size(random, 12)] for c in channels]
    tokens = sum(shape[2] * shape[3] for shape in shapes)
    options = {
        "in_channels": channels,
        "dim": dim,
        "num_parts": random.randint(1, min(4, tokens)),
        "num_heads": heads,
        "mlp_ratio": random.choice((1.0, 2.0, 4.0)),
        "depth": random.choice((0, 1, 1, 2)),
        **{name: random.random() < 0.5 for name in ("conv_bias", "qkv_bias", "local", "fusion")},
    }
    return options, shapes, {}


def _lga(random: Random, small: bool) -> tuple[dict, list, dict]:
    heads = random.choice((1, 1, 2, 3, 4, 8))
    dim = heads * _size(random, 4 if small else 24)
    options = {
        "embed_dim": dim,
        "num_heads": heads,
        "local_kernel_sizes": [random.choice(KERNELS) for _ in range(random.randint(1, 3))],
        "global_kernel_size": random.choice((*KERNELS, 13)),
        "height": _size(random, 20),
        "width": _size(random, 20),
        "num_scales": random.randint(1, 4),
        "contraction": random.choice(("paper", "paper", "released", "spatial")),
        "branches": random.choice(("both", "both", "local", "global")),
    }
    return options, [_map(random, dim, small)], {}


def _levels(random: Random, dim: int) -> dict[str, Any]:
    return {
        "dim": dim,
        "num_layers": random.randint(1, 3),
        "kernel_size": random.choice(KERNELS[:4]),
        "pool_size": random.choice((1, 2, 2, 2, 3)),
        "aggregate": random.choice(("concat", "sum")),
    }


def _acp(random: Random, small: bool) -> tuple[dict, list, dict]:
    dim = _size(random, 16 if small else 80)
    return _levels(random, dim), [_map(random, dim, small)], {}


def _cat(random: Random, small: bool) -> tuple[dict, list, dict]:
    dim = _size(random, 32 if small else 160)
    shape = [_batch(random), random.randint(1, 40 if small else 260), dim]
    return {"dim": dim, "num_concepts": _size(random, 16 if small else 80)}, [shape], {}


def _interaction(random: Random, small: bool) -> tuple[dict, list, dict]:
    dim = _size(random, 16 if small else 80)
    size = [_size(random, 10 if small else 20) for _ in range(2)]
    prefix = random.choice((0, 0, 1, 5))
    concepts = {"num_concepts": _size(random, 64), "num_prefix_tokens": prefix}
    return _levels(random, dim) | concepts, [[_batch(random), prefix + size[0] * size[1], dim]], {"size": size}


DRAWS = {
    "SCSA": _scsa,
    "SMSA": _smsa,
    "PCSA": _pcsa,
    "CFSAM": _cfsam,
    "LocalGlobalAttention": _lga,
    "AggressiveConvPooling": _acp,
    "ConceptualAttention": _cat,
    "EnhancedInteraction": _interaction,
}


def _spoil(random: Random, case: Case) -> None:
    """Make a call that nothing promises to serve, and that has to be refused by name or be right."""
    shape = random.choice(case["shapes"])
    what = random.choice(("axis", "axis", "empty", "dtype", "parameters", "option"))
    if what == "axis":
        shape[random.randrange(len(shape))] += random.choice((-1, 1))
    if what == "empty":
        shape[random.randrange(1, len(shape))] = 0
    if what == "dtype":
        case["dtype"] = random.choice(("float64", "int64", "bool", "complex64"))
    if what == "parameters":
        case["param_dtype"] = random.choice(("float64", *DTYPES))
    if what == "option":
        numbers = [name for name, value in case["options"].items() if type(value) is int]
        case["options"][random.choice(numbers)] = random.choice((-1, 0, 1, 5, 1000))
