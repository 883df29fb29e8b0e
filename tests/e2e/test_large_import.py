"""A tarball of over 5 GiB, by the article's backup commands, streams into a snapshot in little memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import smsnapd
from tests.e2e.transcript import Notebook

pytestmark = pytest.mark.slow
GIB = 1024**3
SIZE = 5 * GIB + 12_345
MOST_BYTES = 250_000_000
"""Of memory, whatever the size: ahead of each layer a few MiB, and chunks on their way."""

WRITER = """
import sys, tarfile
size, block = int(sys.argv[1]), bytearray(1 << 20)
info = tarfile.TarInfo("large")
info.size = size
write = sys.stdout.buffer.write
write(info.tobuf())
for start in range(0, size, len(block)):
    block[:8] = start.to_bytes(8, "big")
    write(memoryview(block)[: size - start])
write(bytes(-size % 512))
for number in range(2000):
    info = tarfile.TarInfo(f"d{number % 7}/small-{number}")
    info.size = 100
    write(info.tobuf() + b"%100d" % number + bytes(412))
write(bytes(10240))
"""


def test_more_than_five_gib(tmp_path: Path) -> None:
    notebook = Notebook(tmp_path)
    notebook.well("init")
    (tmp_path / "secret").write_text("article\n")
    (tmp_path / "writer.py").write_text(WRITER)
    seal = "openssl enc -aes-256-cbc -iter 100000 -pass file:secret"
    pipeline = f"{sys.executable} writer.py {SIZE} | pigz -1 | {seal}"
    environment = {**os.environ, "PYTHONPATH": str(Path(smsnapd.__file__).parents[1])}
    command = [sys.executable, "-m", "smsnapd.cli.main", "import", "-", "--openssl-passphrase-file", "secret"]
    with subprocess.Popen(
        ["bash", "-o", "pipefail", "-c", pipeline], cwd=tmp_path, stdout=subprocess.PIPE
    ) as source:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdin=source.stdout)
        assert source.stdout is not None
        source.stdout.close()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert (process.returncode, source.returncode) == (0, 0)
    assert usage.ru_maxrss * 1024 < MOST_BYTES
    (snapshot,) = notebook.well("snapshots", "--json").json
    assert (snapshot["files"], snapshot["bytes"], snapshot["complete"]) == (2001, SIZE + 200_000, True)
    notebook.well("restore", "--target", "back", "d3")
    assert (tmp_path / "back/d3/small-1998").read_bytes() == b"%100d" % 1998
