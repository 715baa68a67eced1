"""Three rows of plots, a column for each model: tokens/s over streams, latency over load, share of b."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.compare.samples import HTTP, OFFLINE, RATE, SHARE, TPOT, Case, Samples

_COLORS = {"Continuo": "C0", "transformers": "C1", "CTranslate2": "C2", "llama.cpp": "C3"}
_LINES = {"fp32": ":", "bf16": "--", "int8": "-", "Q8_0": "-"}


def draw(samples: Samples, models: Sequence[str]) -> Callable[[Any], None]:
    def plot(axes: Any) -> None:
        figure = axes.get_figure()
        figure.set_size_inches(5 * len(models), 11)
        places = figure.add_gridspec(3, len(models), height_ratios=(4, 3, 3))
        axes.set_subplotspec(places[0, 0])
        for column, model in enumerate(models):
            above = axes if column == 0 else figure.add_subplot(places[0, column])
            _rates(above, samples, model)
            _latency(figure.add_subplot(places[1, column]), samples, model)
            _shares(figure.add_subplot(places[2, column]), samples, model)

    return plot


def style(engine: str) -> dict[str, Any]:
    """A color for whose it is, a line for its numbers, a marker for continuous batching."""
    marker = "s" if "continuous" in engine else "."
    return {
        "color": _COLORS[engine.split()[0]],
        "linestyle": _LINES[engine.split()[-1]],
        "marker": marker,
        "label": engine,
    }


def _engines(samples: Samples, model: str, path: str, figure: str = RATE) -> list[str]:
    found = [
        case.engine
        for case, name in samples.by_case
        if case[:2] == (model, path) and name == figure
    ]
    return list(dict.fromkeys(found))


def _rates(axes: Any, samples: Samples, model: str) -> None:
    for engine in _engines(samples, model, OFFLINE):
        streams = samples.streams_of(model, OFFLINE, engine)
        rates = [samples.median(Case(model, OFFLINE, engine, each)) for each in streams]
        axes.plot(streams, rates, **style(engine))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(f"streams, offline, {model}")
    axes.set_ylabel("tokens/s")
    if axes.lines:
        axes.legend(fontsize=6)


def _latency(axes: Any, samples: Samples, model: str) -> None:
    for engine in _engines(samples, model, HTTP, TPOT):
        cases = [
            Case(model, HTTP, engine, each) for each in samples.streams_of(model, HTTP, engine)
        ]
        times = [samples.median(case, TPOT) for case in cases]
        axes.plot([samples.median(case) for case in cases], times, **style(engine))
    axes.set_xlabel(f"tokens/s over HTTP, {model}, by requests in flight")
    axes.set_ylabel("time per token, median, ms")
    if axes.lines:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.legend(fontsize=6)
    else:
        axes.set_axis_off()  # not measured


def _shares(axes: Any, samples: Samples, model: str) -> None:
    engines = _engines(samples, model, OFFLINE, SHARE)
    if not engines:  # a cache may hold the model
        axes.set_axis_off()
        return
    shares = [samples.median(Case(model, OFFLINE, engine, 1), SHARE) for engine in engines]
    axes.barh(engines, shares, color=[_COLORS[engine.split()[0]] for engine in engines])
    axes.invert_yaxis()
    axes.tick_params(labelsize=6)
    axes.set_xlabel(f"{model}, one stream: share of b")
