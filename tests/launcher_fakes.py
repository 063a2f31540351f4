"""Stand-ins for what clusters have on PATH: they note how they were called, and do for real what a test needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The verb: takes the next exit code of its machine's list; 0 for "finished" when there is none left.
VERB = """
import os, signal, sys, time
from pathlib import Path
home = Path(os.environ["HOME"])
left = (home / "codes").read_text().split() if (home / "codes").exists() else []
code = left.pop(0) if left else "0"
(home / "codes").write_text(" ".join(left))
if code == "wait":  # as the real one: SIGTERM is a wish to save and start again
    signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), os.write(1, b"saved\\n"), os._exit(42)))
with open(home / "argv", "a") as file:
    print(*sys.argv[1:], file=file)
os.write(1, b"training\\n")  # lines of several workers, each in one piece
if code == "wait":
    time.sleep(60)
elif code == "slow":
    time.sleep(2)
    code = "0"
elif code == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(code))
"""

NOTE = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path
name, home = Path(sys.argv[0]).name, Path(os.environ["FAKES"])
with open(home / "calls", "a") as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
"""

# `srun --nodes=N … COMMAND`: one process a node with the variables Slurm sets; exits like srun, with the highest code.
SRUN = """
import subprocess
words = sys.argv[1:]
nodes = int(next(word for word in words if word.startswith("--nodes=")).partition("=")[2])
command = [word for index, word in enumerate(words) if not all(w.startswith("--") for w in words[: index + 1])]
def start(index):
    folder = home / f"node{index}"
    folder.mkdir(exist_ok=True)
    step = {"SLURM_STEP_NODELIST": os.environ.get("NODELIST", "127.0.0.1"), "SLURM_NTASKS": str(nodes)}
    step |= {"SLURM_PROCID": str(index), "SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": str(nodes)}
    process = subprocess.Popen(command, env={**os.environ, **step, "HOME": str(folder)})
    (folder / "pid").write_text(str(process.pid))
    return process
codes = [process.wait() for process in [start(index) for index in range(nodes)]]
sys.exit(max(128 - code if code < 0 else code for code in codes))
"""

# gcloud on one queued resource: its states stand in a file, its workers are folders, and ssh runs the command there.
GCLOUD = """
import shutil, subprocess, time
action, state = sys.argv[4], home / "state"
flags = dict(word[2:].partition("=")[::2] for word in sys.argv[6:])
if action == "describe":
    if not state.exists():
        sys.exit("NOT_FOUND")
    states = state.read_text().split()
    state.write_text(" ".join(states[1:] or states))
    if states[0] == "UNREACHABLE":
        sys.exit("ERROR: there is no network")
    print(states[0])
elif action == "create":
    state.write_text("WAITING_FOR_RESOURCES ACTIVE")
elif action == "delete":
    state.unlink()
elif action == "ssh":
    def start(index):
        folder = home / f"worker{index}"
        (folder / ".local" / "bin").mkdir(parents=True, exist_ok=True)
        shutil.copy(home / "uv", folder / ".local" / "bin" / "uv")
        return subprocess.Popen(["bash", "-c", flags["command"]], cwd=folder, env={**os.environ, "HOME": str(folder)})
    connections = [start(index) for index in range(2)]
    if (home / "lose").exists() and "tail" in flags["command"]:
        (home / "lose").unlink()
        time.sleep(1)
        for connection in connections:
            connection.kill()
        sys.exit(255)
    sys.exit(next((code for code in [process.wait() for process in connections] if code), 0))
"""

# `uv venv .venv` and `uv pip install`.
UV = """
if sys.argv[1] == "venv":
    (Path(".venv/bin")).mkdir(parents=True, exist_ok=True)
    if not Path(".venv/bin/python").exists():
        os.symlink(sys.executable, ".venv/bin/python")
"""


def put(path: Path, text: str) -> None:
    """Writes an executable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Cluster:
    """A folder with fakes on its PATH, and what was said to them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        for name, body in {"srun": SRUN, "gcloud": GCLOUD, "scontrol": "", "xpk": "", "pip": ""}.items():
            put(home / "bin" / name, NOTE + body)
        put(home / "uv", NOTE + UV)
        self.environment = {
            **os.environ,
            "FAKES": str(home),
            "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "TPU_POLL_SECONDS": "0.1",
        }

    def start(self, script: str, *words: str, cwd: Path = ROOT, **variables: str) -> subprocess.Popen:
        """Starts a launcher."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = ["bash", str(ROOT / "launch" / script), *words]
        return subprocess.Popen(command, cwd=cwd, env={**self.environment, **variables}, **pipes)

    def run(self, script: str, *words: str, **variables: str) -> tuple[int, str, str]:
        """Runs a launcher to its end: exit code, output, error output."""
        process = self.start(script, *words, **variables)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def calls(self, name: str) -> list[list[str]]:
        """How a fake was called."""
        file = self.home / "calls"
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [row[1:] for row in rows if row[0] == name]
