"""Proves in one command, on a machine with a GPU, what cannot be shown without one: `make gpu`.

    python benchmarks/gpu.py               # everything, at most eight minutes; with Detectron2, twelve
    python benchmarks/gpu.py --parts build "new image sizes"
    python benchmarks/gpu.py --device cpu                   # the same code at tiny sizes, which proves nothing

It needs torch and timm (and pytest), no network, and Detectron2 only for the detectors' steps. Every part of
gpu_parts.py runs in a process of its own with a time limit, and the rest goes on after a failure. One table
is printed; JSON and markdown of the same, and a log of all that the parts printed, are named by card and versions
and written anew after every part, so that a run that is cut off leaves what it found. The exit code is 0 where
every part ran or was skipped for a reason and no target was missed, 1 otherwise.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import op

NO_GPU = "No GPU: the same code runs at tiny sizes on this CPU, which measures and proves nothing."
RESULTS = op.ROOT / "benchmarks" / "results"
EXIT_CODES = {"ran": 0, "skipped": 0, "failed": 1}


def run_part(name: str, device: str) -> dict[str, Any]:
    """Runs a part in this process: its rows and targets, or why there are none."""
    import gpu_parts

    try:
        if device == "cuda" and name != "build":
            op.require_compiled(device)
        figures = gpu_parts.PARTS[name].run(device)
    except gpu_parts.SkippedError as reason:
        return {"status": "skipped", "why": str(reason)}
    except (gpu_parts.FailedError, SystemExit) as reason:
        return {"status": "failed", "why": str(reason)}
    targets = [{**asdict(target), "met": target.met} for target in figures.targets]
    return {"status": "ran", "rows": figures.rows, "targets": targets}


def run_apart(name: str, device: str, seconds: float) -> dict[str, Any]:
    """Runs a part in a process of its own, which is ended with all that it started after `seconds`."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "part.json"
        command = [sys.executable, __file__, f"--part={name}", f"--device={device}"]
        process = subprocess.Popen(
            [*command, f"--json={found}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            result = {"status": "failed", "why": f"not done after {seconds:.0f} s"}
        except BaseException:  # Ctrl-C: nothing is left running
            os.killpg(process.pid, signal.SIGKILL)
            raise
        else:
            why = f"ended with {process.returncode}: {last_line(output)}"
            result = (
                json.loads(found.read_text())
                if found.exists()
                else {"status": "failed", "why": why}
            )
    return {**result, "output": output}


def last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1] if lines else "nothing was printed"


def seconds_for(names: list[str], left: float) -> float:
    """What the first of these parts may take: its own limit, or its share of the time left if that is more."""
    import gpu_parts

    limits = [gpu_parts.PARTS[name].seconds for name in names]
    return min(left, max(limits[0], left * limits[0] / sum(limits)))


def run_all(
    names: list[str],
    device: str,
    minutes: float,
    keep: Callable[[dict[str, dict[str, Any]]], None],
) -> dict[str, dict[str, Any]]:
    """Runs parts one after the other within the time, says how each went, and keeps what is known so far."""
    end, results = time.monotonic() + 60 * minutes, {}
    for number, name in enumerate(names):
        left = end - time.monotonic()
        print(f"{name} ...", end=" ", flush=True)
        start = time.monotonic()
        if left < 5:
            result = {"status": "failed", "why": f"no time left of {minutes:g} minutes"}
        else:
            result = run_apart(name, device, seconds_for(names[number:], left))
        results[name] = {**result, "seconds": time.monotonic() - start}
        print(f"{in_words(result)} ({results[name]['seconds']:.0f} s)", flush=True)
        if result["status"] == "failed" and result.get("output"):
            print("\n".join("    " + line for line in result["output"].splitlines()[-15:]))
        keep(results)
    return results


def write_results(
    path: Path, about: dict[str, str], results: dict[str, dict[str, Any]], note: str | None
) -> None:
    """Writes the figures as JSON and as markdown, and a log of all that the parts printed."""
    parts = {name: {k: v for k, v in r.items() if k != "output"} for name, r in results.items()}
    op.write(path, {"machine": about, "parts": parts})
    path.with_suffix(".md").write_text(report(about, results, note))
    logs = [f"=== {name}\n{result.get('output', '')}" for name, result in results.items()]
    path.with_suffix(".log").write_text("\n".join(logs))


def in_words(result: dict[str, Any]) -> str:
    return result["status"] + (f": {result['why']}" if "why" in result else "")


def missed(results: dict[str, dict[str, Any]]) -> list[str]:
    """What does not hold, by name: targets, and parts that failed."""
    found = [f"{name}: {r['why']}" for name, r in results.items() if r["status"] == "failed"]
    for part, result in results.items():
        found += [
            f"{part}: {t['name']} is {t['value']:.3g}, more than {t['limit']:g}"
            for t in result.get("targets", ())
            if not t["met"]
        ]
    return found


def machine(device: str) -> dict[str, str]:
    """The card, versions, and which commit this is."""
    import torch

    git = ["git", "-C", str(op.ROOT), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except OSError:
        commit = ""
    found = {**op.machine(device), "CUDA": str(torch.version.cuda), "commit": commit or "unknown"}
    if device == "cuda":
        found["cuDNN"] = str(torch.backends.cudnn.version())
    return found


def file_name(machine: dict[str, str]) -> str:
    """gpu_<card>_torch<version>_cuda<version>, of letters that any file system takes."""
    card = "".join(c if c.isalnum() else "-" for c in machine["device"]).strip("-").lower()
    torch_version = machine["torch"].partition("+")[0]
    return f"gpu_{card}_torch{torch_version}_cuda{machine['CUDA']}"


def report(
    machine: dict[str, str], results: dict[str, dict[str, Any]], note: str | None = None
) -> str:
    """A note, one table of all targets, one of the parts, and each part's figures, as markdown."""
    lines = [f"# {machine['device']}", "", *([note, ""] if note else [])]
    lines += [", ".join(f"{key} {value}" for key, value in machine.items() if key != "device"), ""]
    targets = [(part, t) for part, r in results.items() for t in r.get("targets", ())]
    rows = [
        {
            "part": part,
            "target": target["name"],
            "measured": target["value"],
            "at most": target["limit"],
            "verdict": "met" if target["met"] else "MISSED",
        }
        for part, target in targets
    ]
    lines += ["## Targets", "", *(table(rows) if rows else ["None was measured."]), ""]
    parts = [
        {"part": name, "outcome": in_words(result), "seconds": round(result["seconds"])}
        for name, result in results.items()
    ]
    lines += ["## Parts", "", *table(parts), ""]
    for name, result in results.items():
        if result.get("rows"):
            lines += [f"## {name[0].upper()}{name[1:]}", "", *table(result["rows"]), ""]
    return "\n".join(lines)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows of any keys as a markdown table."""
    keys = list(dict.fromkeys(key for row in rows for key in row))

    def shown(value: Any) -> str:
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        return text.replace("|", "\\|").replace("\n", " ")

    lines = [
        keys,
        ["---"] * len(keys),
        *([shown(row.get(key, "")) for key in keys] for row in rows),
    ]
    return ["| " + " | ".join(line) + " |" for line in lines]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], help="cuda where torch can use one")
    parser.add_argument("--parts", nargs="+", help="names of parts, as printed; all without it")
    parser.add_argument(
        "--minutes", type=float, help="for all parts: 8, or 12 where there are detectors to run"
    )
    parser.add_argument("--output", type=Path, help="folder of the results")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # what a part's own process runs
    parser.add_argument("--json", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    import gpu_parts
    import torch

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.part:
        result = run_part(options.part, device)
        op.write(options.json, result)
        return EXIT_CODES[result["status"]]

    names = options.parts or list(gpu_parts.PARTS)
    if unknown := [name for name in names if name not in gpu_parts.PARTS]:
        parser.error(f"no part is called {unknown[0]!r}; there are {', '.join(gpu_parts.PARTS)}")
    about = machine(device)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    if device == "cpu":
        print(NO_GPU)
    minutes = options.minutes or (8 if gpu_parts.find_missing("detectron2") else 12)
    note = NO_GPU if device == "cpu" else None
    folder = options.output or (RESULTS if device == "cuda" else op.ROOT / "build" / "gpu")
    path = folder / f"{file_name(about)}.json"
    keep = functools.partial(write_results, path, about, note=note)
    results = run_all(names, device, minutes, keep)
    print("\n" + report(about, results, note))
    print(f"written: {path}, .md and .log")
    wrong = missed(results)
    for name in wrong:
        print(f"MISSED  {name}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
