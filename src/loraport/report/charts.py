"""Small drawings as inline SVG: a bar with its error, and lines with bands over a dial. Colours come from the page."""

import itertools
from collections.abc import Callable, Sequence

from loraport.report.comparison import Curve, Measure, Score
from loraport.report.markup import Safe, element, join


def meter(score: Score, measure: Measure) -> Safe:
    """A bar from zero to the mean, with a whisker of one standard error on each side."""

    def place(value: float) -> float:
        return round(100 * min(max((value - measure.low) / (measure.high - measure.low), 0.0), 1.0), 2)

    start, end = sorted((place(0.0), place(score.mean)))
    low, high = place(score.mean - score.error), place(score.mean + score.error)
    return element(
        "svg",
        {"class": "meter", "viewBox": "0 0 100 10", "preserveAspectRatio": "none", "aria-hidden": "true"},
        element("rect", {"class": "track", "x": 0, "y": 2, "width": 100, "height": 4}),
        element("rect", {"class": "fill", "x": start, "y": 2, "width": end - start, "height": 4}),
        element("line", {"class": "whisker", "x1": low, "x2": high, "y1": 4, "y2": 4}),
    )


def lines(curves: Sequence[Curve], measure: Measure, axis: str) -> Safe:
    """Curves with bands of one standard error; labels stand at the right ends."""
    width, height, left, right, top, bottom = 430, 230, 40, 130, 12, 34
    xs = [x for curve in curves for x, _ in curve.points]
    tops = [score.mean + score.error for curve in curves for _, score in curve.points]
    bottoms = [score.mean - score.error for curve in curves for _, score in curve.points]
    low, high = min([*bottoms, measure.low]), max(tops) * 1.05
    first, last = min(xs), max(xs)

    def px(x: float) -> float:
        return round(left + (width - left - right) * (x - first) / ((last - first) or 1), 1)

    def py(y: float) -> float:
        return round(top + (height - top - bottom) * (high - y) / ((high - low) or 1), 1)

    parts: list[str] = []
    for step in range(5):
        y = low + (high - low) * step / 4
        parts.append(element("line", {"class": "axis", "x1": left, "x2": width - right, "y1": py(y), "y2": py(y)}))
        parts.append(element("text", {"x": left - 6, "y": py(y) + 4, "text-anchor": "end"}, measure.show(y)))
    for x in dict.fromkeys(xs):
        parts.append(element("text", {"x": px(x), "y": height - bottom + 16, "text-anchor": "middle"}, f"{x:g}"))
    middle = (left + width - right) / 2
    parts.append(element("text", {"x": middle, "y": height - 4, "text-anchor": "middle"}, axis))
    for curve, at in zip(curves, _apart([py(curve.points[-1][1].mean) for curve in curves]), strict=True):
        parts.append(_curve(curve, px, py))
        label = element("tspan", {"class": "dot"}, curve.label)
        parts.append(element("g", {"class": curve.kind}, element("text", {"x": width - right + 8, "y": at + 4}, label)))
    picture = element(
        "svg",
        {
            "viewBox": f"0 0 {width} {height}",
            "role": "img",
            "aria-label": f"{measure.title} over {axis}",
            "width": "100%",
        },
        *parts,
    )
    return element("figure", None, picture, element("figcaption", None, measure.title))


def _curve(curve: Curve, px: Callable[[float], float], py: Callable[[float], float]) -> Safe:
    line = " ".join(f"{px(x)},{py(score.mean)}" for x, score in curve.points)
    over = [f"{px(x)},{py(score.mean + score.error)}" for x, score in curve.points]
    under = [f"{px(x)},{py(score.mean - score.error)}" for x, score in reversed(curve.points)]
    dots = [element("circle", {"class": "dot", "cx": px(x), "cy": py(s.mean), "r": 2.5}) for x, s in curve.points]
    band = element("polygon", {"class": "band", "points": " ".join(over + under)})
    return element(
        "g", {"class": curve.kind}, band, element("polyline", {"class": "line", "points": line}), join(*dots)
    )


def _apart(places: list[float], gap: float = 13.0) -> list[float]:
    """Push label positions apart so that none covers another, keeping their order."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    for before, after in itertools.pairwise(order):
        moved[after] = max(moved[after], moved[before] + gap)
    return moved
