"""What `run.sh` runs: the parts of the list in README.md, in fresh processes, each with its own
time limit; one that fails or is too slow is said to, and the others go on.

    python experiments/gpu/measure.py OUT [correct] [speed] [trl] [vocabulary] [profile]
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
BENCHMARKS = HERE.parent / "benchmarks"
MODELS = ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B")
# Weights in float32 and all that is computed in bfloat16, as one trains.
BFLOAT16 = " ".join(
    f"--{flag} bfloat16"
    for flag in ("student.compute.dtype", "teacher.compute.dtype", "teacher.dtype")
)
TESTS = "tests/models/test_attention.py tests/losses tests/rollout/test_sampler.py"


def commands(part: str, work: Path) -> Iterator[tuple[str, str, int]]:
    """Of a part: what is measured, the command, and its limit in seconds."""
    ours, theirs = f"python3 {BENCHMARKS / 'ours.py'}", f"python3 {BENCHMARKS / 'theirs.py'}"
    data = f"--data.source {work / 'prompts.jsonl'}"
    small = work / MODELS[0].split("/")[1]
    if part == "correct":
        yield "check device", "python3 -m jopd.check device", 120
        # Exact float32 products, as the tests' tolerances are those of float32.
        exact = "env JAX_PLATFORMS=cuda,cpu JAX_DEFAULT_MATMUL_PRECISION=highest"
        yield "tests", f"{exact} python3 -m pytest -q -n 0 -x {TESTS}", 150
    if part == "speed":
        yield "machine", f"{ours} machine -", 60
        for name in MODELS:
            model = work / name.split("/")[1]
            flags = f"{model} {data} {BFLOAT16}"
            for rows in (32, 128, 512):
                what = f"{name} decode {rows}"
                yield what, f"{ours} decode {flags} rows={rows} prompt=256 new=512", 90
            for length in (1024, 4096):
                what, rows = f"{name} phases {length}", 32_768 // length
                lengths = f"rows={rows} prompt=256 new={length - 256}"
                yield what, f"{ours} phases {flags} {lengths} --micro-batches 2", 90
        for new, parts in ((512, 4), (2048, 16)):
            what, lengths = f"{MODELS[0]} step 64 x (256 + {new})", f"prompt=256 new={new}"
            flags = f"{small} {data} {BFLOAT16} --micro-batches {parts}"
            yield what, f"{ours} step {flags} rows=64 {lengths}", 120
    if part == "trl":
        prompts = f"prompts={work / 'prompts.jsonl'}"
        what = f"{MODELS[0]} step 64 x (256 + 512), TRL"
        lengths = "rows=64 new=512 part=16"
        yield what, f"{theirs} distillation {small} {prompts} {lengths}", 180
        yield (
            f"{MODELS[0]} decode 128, transformers",
            f"{theirs} decode {small} rows=128 prompt=256 new=512",
            90,
        )
    if part == "vocabulary":
        for form in ("naive", "chunked", "tiled"):
            yield f"vocabulary, {form}", f"python3 {BENCHMARKS / 'vocabulary.py'} {form}", 60
    if part == "profile":
        flags = f"{small} {data} {BFLOAT16} --micro-batches 4"
        yield "profile", f"{ours} profile {flags} rows=64 prompt=256 new=512", 120


PARTS = ("correct", "speed", "trl", "vocabulary", "profile")


def main(out: str, *chosen: str) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder, Path(out, "results.jsonl").open("a") as file:
        work = Path(folder)
        (work / "prompts.jsonl").write_text((json.dumps({"prompt": "12 + 7 = " * 28}) + "\n") * 256)
        for part in chosen or PARTS:
            for what, command, limit in commands(part, work):
                for name in MODELS:
                    make(name, work / name.split("/")[1], command)
                found = measured(command, limit, Path(out))
                file.write(json.dumps({"what": what, "command": command, **found}) + "\n")
                file.flush()
                rows.append((what, found))
    for what, found in rows:
        print(f"{what:48} {json.dumps(found)[:300]}")


def make(name: str, folder: Path, command: str) -> None:
    """Writes the model down before the first command that reads it."""
    if str(folder) in command and not folder.exists():
        subprocess.run(
            [sys.executable, HERE / "random_model.py", name, folder], check=True, timeout=120
        )


def measured(command: str, limit: int, out: Path) -> dict:
    """What a process says in its last line, as JSON or as it is; the rest goes to `OUT/log`."""
    start = time.perf_counter()
    with (out / "log").open("a") as log:
        log.write(f"$ {command}\n")
        try:
            done = subprocess.run(
                command.split(), stdout=subprocess.PIPE, stderr=log, text=True, timeout=limit
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"not done after {limit} s"}
        log.write(done.stdout)
    seconds = round(time.perf_counter() - start, 1)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    if done.returncode:
        return {"failed": last or f"exit {done.returncode}", "process_seconds": seconds}
    try:
        return {**json.loads(last), "process_seconds": seconds}
    except ValueError:
        return {"said": last, "process_seconds": seconds}


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main(*sys.argv[1:])
