"""Run the tests with real frameworks, each in an environment of its own: ``make interop``.

One line for each framework says what ran. A framework that could not be set up is named as skipped,
and skipped is not passed: the exit code is 1 then, as where a test fails.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from importlib.metadata import distributions
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FRAMEWORKS = {
    "openai-agents": "test_openai_agents.py",
    "langgraph": "test_langgraph.py",
    "mcp": "test_mcp.py",
    "agentdojo": "test_agentdojo.py",
    "inspect-ai": "test_inspect.py",
    "promptfoo": "test_promptfoo.py",
}
EXTRAS = {"inspect-ai": ["inspect-ai", "pyarrow"], "promptfoo": []}  # what no extra brings
# Tracing tools run alone, in the versions whose shapes differ, beside the tests of this project.
TRACERS = {
    "pydantic-ai-1": ("pydantic-ai-slim[openai]==1.0.10", "openai<2", "opentelemetry-sdk<1.36"),
    "pydantic-ai-2": ("pydantic-ai-slim[openai]>=2,<3", "opentelemetry-sdk"),
    "traceloop": ("opentelemetry-instrumentation-openai", "openai", "opentelemetry-sdk"),
    "openinference": ("openinference-instrumentation-openai", "openai", "opentelemetry-sdk"),
    "traceloop-0": (
        "opentelemetry-instrumentation-openai==0.33.12",
        "openai<2",
        "opentelemetry-sdk",
    ),
    "openai-agents-traces": ("openai-agents>=0.24,<0.25",),
    "langfuse": ("langfuse>=5,<6", "openai"),
    "langfuse-2": ("langfuse>=2,<3", "openai<2"),
    "langsmith": ("langsmith", "langgraph", "langchain-openai"),
}
PACKAGES = {name: packages[0] for name, packages in TRACERS.items()}


def environment(name: str) -> Path | str:
    """Return the Python of a framework's environment, or why there is none."""
    folder = ROOT / ".venv-interop" / name
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    extra = "" if name in EXTRAS else f"[{name}]"
    wanted = ["-c", str(ROOT / ".constraints.txt"), "-e", f"{ROOT}{extra}", "pytest", "pyyaml"]
    wanted += EXTRAS.get(name, [])
    wanted = list(TRACERS.get(name, wanted))
    done = subprocess.run([*pip, *wanted], capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        return said[0] if said else "pip could not install it"
    return python


def version_of(name: str) -> str:
    site = next((ROOT / ".venv-interop" / name / "lib").glob("python3*")) / "site-packages"
    package = re.split(r"[\[=<>]", PACKAGES.get(name, name))[0]
    found = [d.version for d in distributions(name=package, path=[str(site)])]
    return found[0] if found else "?"


def main(names: list[str]) -> int:
    worst = 0
    for name in names or (*FRAMEWORKS, *TRACERS):
        python = environment(name)
        if isinstance(python, str):
            print(f"{name}: SKIPPED ({python})", flush=True)
            worst = 1
            continue
        runs = sys.executable if name in TRACERS else str(python)
        command = [runs, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null"]
        command += [f"--rootdir={HERE}", FRAMEWORKS.get(name, "test_tracers.py")]
        given = {**os.environ, "TRACER": name, "TRACER_PYTHON": str(python)}
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, env=given)
        lines = re.findall(r"^\d+ (?:passed|failed|skipped|error).*$", done.stdout, re.MULTILINE)
        said = lines[-1] if lines else "nothing ran"
        print(f"{name} {version_of(name)}: {said}", flush=True)
        if done.returncode or "passed" not in said:
            print(done.stdout[-4000:], done.stderr[-1000:], sep="\n")
            worst = 1
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
