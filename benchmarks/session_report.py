"""The report of `session.py` as JSON, Markdown and a plot of hit rate against prompt tokens."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.files import write_bytes, write_json

Json = dict[str, Any]
COLUMNS = (
    ("prompt_tokens", "prompt tokens", "{:.0f}"),
    ("prefix_tokens", "injected", "{:.0f}"),
    ("output_tokens", "output", "{:.1f}"),
    ("retrieve_ms", "retrieve ms", "{:.1f}"),
    ("prefill_ms", "prefill ms", "{:.0f}"),
    ("generate_ms", "generate ms", "{:.0f}"),
    ("f1", "F1", "{:.2f}"),
    ("evidence_recall", "evidence", "{:.2f}"),
)


def write_report(folder: Path, report: Json, before: Mapping[str, Any] | None) -> None:
    """`report.json`, `report.md`, `curve.png`. With the report of an earlier run, differences to it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    write_bytes(folder / "report.md", ("\n".join(_lines(report, before)) + "\n").encode())
    plot(folder / "curve.png", report)


def _lines(report: Json, before: Mapping[str, Any] | None) -> Iterator[str]:
    yield f"# Session benchmark: {report['model']}, {report['dtype']}, at most {report['k']} memories"
    yield ""
    yield f"`{report['command']}`; {report['hardware']['device']}, {report['hardware']['threads']} threads."
    for session in report["sessions"]:
        earlier = _same(before, session)
        yield ""
        yield f"## {session['set']}, {session['facts']} facts, {session['questions']} questions"
        costs = session["costs"]
        yield ""
        yield f"A memory: {costs['block_bytes']:.0f} bytes of KV states, encoded in {costs['encode_ms']:.1f} ms."
        yield ""
        names = [name for _, name, _ in COLUMNS]
        yield f"| mode | hit rate | {' | '.join(names)} |" + (" hit | tokens | ms |" if earlier else "")
        yield "|---|---|" + "---|" * len(names) + ("---|---|---|" if earlier else "")
        for mode, found in session["modes"].items():
            cells = [_cell(found[key], form) for key, _, form in COLUMNS]
            rate = f"{found['hit_rate']:.3f} [{found['low']:.2f}, {found['high']:.2f}]"
            yield f"| {mode} | {rate} | {' | '.join(cells)} |" + _delta(found, earlier, mode)
        yield ""
        for name, (mean, low, high) in session["differences"].items():
            yield f"- {name}: {mean:+.3f} [{low:+.3f}, {high:+.3f}]"
        for name, same in session["same_answers"].items():
            yield f"- {name}: {same} of {session['questions']} answers are those without it, normalised"
        yield from _styles(session)


def _styles(session: Json) -> Iterator[str]:
    styles = [*next(iter(session["modes"].values()))["by_style"].items()]
    yield ""
    yield (
        "| hit rate by kind of question | " + " | ".join(f"{name} ({of['n']})" for name, of in styles) + " |"
    )
    yield "|---|" + "---|" * len(styles)
    for mode, found in session["modes"].items():
        yield (
            f"| {mode} | "
            + " | ".join(f"{found['by_style'][name]['hit_rate']:.2f}" for name, _ in styles)
            + " |"
        )


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _same(before: Mapping[str, Any] | None, session: Json) -> Json | None:
    """The earlier run's session with the same facts."""
    for other in before["sessions"] if before else ():
        if (other["set"], other["facts"]) == (session["set"], session["facts"]):
            modes: Json = other["modes"]
            return modes
    return None


def _delta(found: Json, earlier: Json | None, mode: str) -> str:
    if earlier is None:
        return ""
    if mode not in earlier:
        return " | | |"
    was = earlier[mode]
    return (
        f" {found['hit_rate'] - was['hit_rate']:+.3f} | {found['prompt_tokens'] - was['prompt_tokens']:+.0f} | "
        f"{found['generate_ms'] - was['generate_ms']:+.0f} |"
    )


def plot(path: Path, report: Json) -> None:
    """Hit rate with its interval against prompt tokens, a panel for each set of facts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sessions = report["sessions"]
    figure, panels = pyplot.subplots(
        1, len(sessions), figsize=(4.2 * len(sessions), 4), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, session in zip(panels[0], sessions, strict=True):
        for mode, found in session["modes"].items():
            rate = found["hit_rate"]
            bars = [[max(0.0, rate - found["low"])], [max(0.0, found["high"] - rate)]]
            panel.errorbar(found["prompt_tokens"], rate, yerr=bars, marker="o", capsize=3, label=mode)
        panel.set(xscale="log", xlabel="prompt tokens processed", ylim=(0, 1.02))
        panel.set_title(f"{session['set']}, {session['facts']} facts")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("hit rate")
    panels[0][-1].legend(fontsize=8)
    figure.suptitle(f"{report['model']}, {report['dtype']}")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
