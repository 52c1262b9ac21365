"""What a trace shows, in a few plain sentences."""

from itertools import pairwise

from moe_llava.routing.paths import PathTable
from moe_llava.routing.statistics import MODALITIES, RouteStatistics


def findings(statistics: RouteStatistics, paths: list[PathTable]) -> list[str]:
    """Sentences on load, idle experts, modality, decisiveness and paths. What they say is description, not cause."""
    if not statistics.tokens.sum():
        return ["No token was traced."]
    sentences = [_traced(statistics), _load(statistics), _dead(statistics)]
    if len(statistics.present()) == len(MODALITIES):
        sentences.append(_modality(statistics))
    sentences.append(_decided(statistics))
    return sentences + [_path(table) for table in paths if table.paths]


def percent(share: float) -> str:
    """A share in percent with two digits that tell something."""
    return f"{100 * share:.0f}\u00a0%" if share >= 0.1 else f"{100 * share:.2g}\u00a0%"


def layer_names(layers: tuple[int, ...]) -> str:
    """Indices of layers for reading: a series of one step is cut short."""
    steps = {after - before for before, after in pairwise(layers)}
    if len(layers) > 4 and len(steps) == 1:
        return f"{layers[0]}, {layers[1]}, … {layers[-1]}"
    return ", ".join(map(str, layers))


def _traced(statistics: RouteStatistics) -> str:
    info = statistics.info
    text, image = (int(count) for count in statistics.tokens)
    return (
        f"{text:,} text tokens and {image:,} image patches of {statistics.samples:,} samples went through "
        f"{len(info.layers)} sparse layers of {info.num_experts} experts, {info.top_k} for each token."
    )


def _load(statistics: RouteStatistics) -> str:
    load, violation = statistics.load(), statistics.max_violation()
    place = int(violation.argmax())
    return (
        f"The most uneven layer is {statistics.info.layers[place]}: its busiest expert gets "
        f"{percent(load[place].max())} of the choices, where {percent(1 / statistics.info.num_experts)} is even "
        f"(MaxVio {violation[place]:.2f})."
    )


def _dead(statistics: RouteStatistics) -> str:
    dead = statistics.dead()
    if not dead:
        return "Every expert was chosen by some token."
    number = statistics.info.num_experts * len(statistics.info.layers)
    return f"{len(dead)} of {number} experts were chosen by no token."


def _modality(statistics: RouteStatistics) -> str:
    information, most = statistics.information(), statistics.modality_entropy()
    place = int(information.argmax())
    share = information[place] / max(most, 1e-12)
    kept = "next to nothing" if share < 0.01 else "little" if share < 0.1 else "a part" if share < 0.5 else "most"
    return (
        f"The first expert tells {kept} of whether a token is text or image: at most {information[place]:.3f} of "
        f"{most:.3f} bits ({percent(share)}), in layer {statistics.info.layers[place]}."
    )


def _decided(statistics: RouteStatistics) -> str:
    spreads = [
        (MODALITIES[kind], statistics.mean_entropy(kind).mean(), statistics.mean_margin(kind).mean())
        for kind in statistics.present()
    ]
    means = [f"{name} {percent(entropy)} and {margin:.2f}" for name, entropy, margin in spreads]
    return (
        "Entropy of the routers as a share of the largest possible, and the margin between their first two "
        f"probabilities, mean over layers: {'; '.join(means)}."
    )


def _path(table: PathTable) -> str:
    what = "image patches" if table.kind == MODALITIES.index("image") else "text tokens"
    best = table.paths[0]
    if best.tokens == 1:
        return f"No two {what} took the same path through all sparse layers."
    steps = " → ".join(",".join(map(str, experts)) for experts in best.experts)
    return (
        f"The path most travelled by {what} is {steps}: {percent(best.token_share)} of them, in "
        f"{percent(best.sample_share)} of the samples; there are {table.distinct:,} different ones."
    )
