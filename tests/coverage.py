#!/usr/bin/env python3
"""Runs tests, and tells which lines of `src` they have not run.

Only this crate is compiled with LLVM's counters (`-C instrument-coverage`), and so is the program that tests start.
What a killed process has run does not count. Test code and the simulator are not lines of the gateway. It needs
`rustup component add llvm-tools`.

    tests/coverage.py [--at-least PERCENT] [ARGUMENT…]    with arguments for `cargo test`
    tests/coverage.py --lib                               only the unit tests
    tests/coverage.py --no-run                            compiles them

The uncovered lines of each file are in target/coverage/uncovered.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Collection

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
WORK = TARGET / "coverage"
NOT_THE_GATEWAY = re.compile(r"(^|/)(\w*tests(\.rs|/)|simulator/|testing\.rs$|fuzz\.rs$)")
# A file is printed if fewer of its lines are covered, in percent.
PRINTED_BELOW = 90
TEST_CODE = re.compile(r"^( *)#\[cfg\(test\)\]\n(?: *#\[.*\n)*(?:.*;\n|(?:.*\n)*?\1\}\n)", re.MULTILINE)

WRAPPER = """#!/usr/bin/env python3
import os, sys
os.execvp(sys.argv[1], [*sys.argv[1:], "-C", "instrument-coverage"])
"""


def prepare() -> dict[str, str]:
    """The environment in which cargo compiles this crate with counters, and dependencies as always."""
    WORK.mkdir(parents=True, exist_ok=True)
    wrapper = WORK / "rustc"
    # Not a shell script, because some shells drop CARGO_BIN_EXE_workspace-gateway.
    wrapper.write_text(WRAPPER)
    wrapper.chmod(0o755)
    # Processes of one program add to two files.
    return {**os.environ, "RUSTC_WORKSPACE_WRAPPER": str(wrapper), "LLVM_PROFILE_FILE": f"{WORK}/%2m.profraw"}


def tool(name: str) -> str:
    command = ["rustc", "--print", "target-libdir"]
    libraries = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    path = pathlib.Path(libraries.strip()).parent / "bin" / name
    return str(path) if path.exists() else sys.exit(f"there is no {path}: rustup component add llvm-tools")


def programs(arguments: list[str], environment: dict[str, str]) -> set[str]:
    """Compiles what `cargo test` runs, and the program that tests start."""
    command = ["cargo", "test", "--no-run", "--message-format=json-render-diagnostics", *arguments]
    built = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if built.returncode != 0:
        sys.exit(built.returncode)
    return {path for line in built.stdout.splitlines() if (path := json.loads(line).get("executable"))}


def counted(objects: set[str]) -> dict[str, dict[int, int]]:
    """How often each line of the gateway has run, by file."""
    merged = WORK / "merged.profdata"
    subprocess.run([tool("llvm-profdata"), "merge", "--sparse", "-o", merged, *WORK.glob("*.profraw")], check=True)
    first, *others = sorted(objects)
    command = [tool("llvm-cov"), "export", "--format=lcov", "--skip-functions", f"--instr-profile={merged}", first]
    command += [f"--object={path}" for path in others]
    exported = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    files: dict[str, dict[int, int]] = {}
    for line in exported.splitlines():
        kind, _, value = line.partition(":")
        if kind == "SF":
            path = pathlib.Path(value)
            name = str(path.relative_to(ROOT / "src")) if path.is_relative_to(ROOT / "src") else ""
            lines = {} if not name or NOT_THE_GATEWAY.search(name) else files.setdefault(name, {})
        elif kind == "DA":
            number, count = map(int, value.split(",")[:2])
            lines[number] = count
    for name, lines in files.items():
        text = (ROOT / "src" / name).read_text()
        for found in TEST_CODE.finditer(text):
            first, last = (text.count("\n", 0, end) + 1 for end in found.span())
            for number in range(first, last):
                lines.pop(number, None)
    return {name: lines for name, lines in files.items() if lines}


def uncovered(lines: dict[int, int]) -> str:
    """The numbers of lines that have not run, consecutive ones as a range."""
    ranges: list[list[int]] = []
    previous_ran = True
    for number, count in sorted(lines.items()):
        if count == 0:
            if previous_ran:
                ranges.append([number, number])
            ranges[-1][1] = number
        previous_ran = count > 0
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def share(counts: Collection[int]) -> float:
    return 100 * sum(count > 0 for count in counts) / len(counts)


def main() -> int:
    arguments, at_least = sys.argv[1:], 0.0
    if arguments[:1] == ["--at-least"]:
        at_least, arguments = float(arguments[1]), arguments[2:]
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    environment = prepare()
    objects = programs([option for option in options if option != "--no-run"], environment)
    if "--no-run" in options:
        return 0
    # Those of build scripts, too.
    for old in WORK.glob("*.profraw"):
        old.unlink()
    tests = subprocess.run(["cargo", "test", *arguments], env=environment)
    if tests.returncode != 0:
        return tests.returncode
    files = counted(objects)
    with open(WORK / "uncovered", "w") as report:
        for name, lines in sorted(files.items()):
            line = f"{share(lines.values()):5.1f} %  src/{name}: {uncovered(lines)}"
            print(line, file=report)
            if share(lines.values()) < PRINTED_BELOW:
                print(line)
    every = [count for lines in files.values() for count in lines.values()]
    print(f"Tests have run {share(every):.2f} % of the {len(every)} lines of the gateway. The limit is {at_least} %.")
    return 1 if share(every) < at_least else 0


if __name__ == "__main__":
    sys.exit(main())
