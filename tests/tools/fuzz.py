# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Damage valid files at random and read them: every reader must succeed or refuse with a sentence.

python -m tests.tools.fuzz --minutes 10 --seed 0 [--only images json]

Each reader runs in a separate process, which is ended after SECONDS on one file. Exit code 1 if a reader raised
anything but an InputError, hung, or took more than MEMORY beyond what it held before the file. Such files are kept.
"""

import argparse
import collections
import contextlib
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/helpers"), str(ROOT / "tests/tools")]

SECONDS = 20.0
MEMORY = 512  # MiB
OUTCOMES = ("read", "refused", "traceback", "hang", "memory")
FAULTS = OUTCOMES[2:]
_NUMBERS = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\1\0", b"\1\0\0\0")


def damage(data: bytes, rng: random.Random) -> bytes:
    """Return data with one to five faults: bits, numbers, pieces that are lost, moved, repeated, or cut off."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        # Headers are short and decide the most.
        at = rng.randrange(min(len(found), 200) if rng.random() < 0.5 else len(found)) if found else 0
        length = rng.choice((1, 4, 16, 200))
        kind = rng.randrange(7)
        if kind == 0 and found:
            found[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            found[at : at + 1] = rng.randbytes(1)
        elif kind == 2:
            found[at : at + 4] = rng.choice(_NUMBERS)
        elif kind == 3:
            del found[at : at + length]
        elif kind == 4:
            found[at:at] = found[at : at + length] * rng.choice((1, 1, 50))
        elif kind == 5:
            found[at : at + length] = bytes(length)
        elif rng.random() < 0.3:
            del found[at:]
    return bytes(found)


def damage_path(sample: pathlib.Path, target: pathlib.Path, rng: random.Random) -> None:
    """Copy a file or a folder, and damage the file or one file of the folder."""
    if sample.is_file():
        target.write_bytes(damage(sample.read_bytes(), rng))
        return
    shutil.copytree(sample, target)
    file = rng.choice(sorted(path for path in target.rglob("*") if path.is_file()))
    file.write_bytes(damage(file.read_bytes(), rng))


# --------------------------------------------------------------------------------------------------------- worker


def _status(name: str) -> int:
    """Return a line of /proc/self/status in MiB, or 0 where there is none."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) >> 10
    return 0


def work(name: str) -> None:
    """Read the paths that come on stdin, one a line, and answer each with the outcome."""
    import fuzz_targets

    from uso_jax.common.errors import InputError

    warnings.simplefilter("ignore")
    with contextlib.suppress(ImportError):
        import resource

        # Beyond what the address space of the libraries takes; the exact figure is measured.
        limit = (_status("VmSize") + 8 * MEMORY) << 20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    answers = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before, outcome, detail = _status("VmRSS"), "read", ""
        try:
            fuzz_targets.TARGETS[name].read(pathlib.Path(json.loads(line)))
        except InputError as error:
            outcome, detail = "refused", str(error)[:200]
        except BaseException:
            outcome, detail = "traceback", traceback.format_exc()[-1500:]
        if (grown := _status("VmHWM") - before) > MEMORY:
            outcome, detail = "memory", f"{grown} MiB\n{detail}"
        print(json.dumps([outcome, detail, grown]), file=answers, flush=True)


class Worker:
    """A process that reads damaged files of one target."""

    def __init__(self, name: str):
        command = [sys.executable, __file__, "--worker", name]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, cwd=ROOT, text=True
        )
        self.warm = False

    def read(self, path: pathlib.Path) -> tuple[str, str, int]:
        """Return the outcome, its details and the memory in MiB. After a hang or a crash the worker is of no use."""
        late = threading.Event()
        end = lambda: (late.set(), self._process.kill())
        timer = threading.Timer(SECONDS if self.warm else 6 * SECONDS, end)  # the first one imports the libraries
        timer.start()
        try:
            self._process.stdin.write(json.dumps(str(path)) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        finally:
            timer.cancel()
        self.warm = True
        if line:
            return tuple(json.loads(line))
        code = self._process.wait()
        return ("hang", "", 0) if late.is_set() else ("traceback", f"the process ended with {code}", 0)

    def stop(self) -> None:
        self._process.kill()
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


# ----------------------------------------------------------------------------------------------------------- main


def fuzz(name: str, seconds: float, seed: int, kept: pathlib.Path) -> tuple[collections.Counter, list[str], int]:
    """Try one target for some seconds. Return outcomes, faults in words, and the most memory in MiB."""
    import fuzz_targets

    rng, counts, faults, most = random.Random(f"{seed} {name}"), collections.Counter(), [], 0
    worker = Worker(name)
    with tempfile.TemporaryDirectory() as folder:
        samples, tries = pathlib.Path(folder, "samples"), pathlib.Path(folder, "tries")
        samples.mkdir()
        fuzz_targets.TARGETS[name].samples(samples)
        chosen, end, started = sorted(samples.iterdir()), time.monotonic() + seconds, None
        while time.monotonic() < end or not counts:
            shutil.rmtree(tries, ignore_errors=True)
            tries.mkdir()
            sample = rng.choice(chosen)
            # Readers keep files open by path, so each try has another one.
            path = tries / f"x{counts.total()}{sample.suffix if sample.is_file() else ''}"
            damage_path(sample, path, rng)
            whole = path.read_bytes() if path.is_file() else None
            if not worker.warm:  # imports do not count
                started = time.monotonic()
            outcome, detail, grown = worker.read(path)
            if started is not None:
                end, started = end + time.monotonic() - started, None
            counts[outcome] += 1
            most = max(most, grown)
            if outcome in FAULTS:
                saved = kept / f"{name.replace(' ', '_')}_{len(faults)}_{outcome}"
                kept.mkdir(parents=True, exist_ok=True)
                saved.write_bytes(whole) if whole is not None else shutil.copytree(path, saved, dirs_exist_ok=True)
                faults.append(f"{name}: {outcome}, kept as {saved}\n{detail}")
            if outcome == "hang" or "process ended" in detail:
                worker.stop()
                worker = Worker(name)
    worker.stop()
    return counts, faults, most


def main(argv: list[str] | None = None) -> int:
    """Try all targets in turn and print a table."""
    import fuzz_targets

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all targets together (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(fuzz_targets.TARGETS), default=list(fuzz_targets.TARGETS))
    parser.add_argument("--kept", type=pathlib.Path, default=pathlib.Path("fuzz_faults"), help="folder of bad files")
    args = parser.parse_args(argv)
    rows, faults, total = [], [], collections.Counter()
    for name in args.only:
        counts, found, most = fuzz(name, 60 * args.minutes / len(args.only), args.seed, args.kept)
        rows.append([name, *(counts[outcome] for outcome in OUTCOMES), most])
        faults += found
        total.update(counts)
    print(f"{'reader':14}", *(f"{title:>10}" for title in (*OUTCOMES, "most MiB")))
    for name, *numbers in (*rows, ["all", *(total[outcome] for outcome in OUTCOMES), max(row[-1] for row in rows)]):
        print(f"{name:14}", *(f"{number:10}" for number in numbers))
    kinds = {fault.strip().rpartition("\n")[2]: fault for fault in faults}  # one of each last line
    print(*kinds.values(), sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2])
    else:
        sys.exit(main())
