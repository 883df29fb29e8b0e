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


MEASURED = """
import sys
from smsnapd.cli.main import main
status = main(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
open("peak-kib", "w").write(peak.split()[1])
sys.exit(status)
"""


def test_more_than_five_gib(tmp_path: Path) -> None:
    notebook = Notebook(tmp_path)
    notebook.well("init")
    (tmp_path / "secret").write_text("article\n")
    (tmp_path / "writer.py").write_text(WRITER)
    (tmp_path / "measured.py").write_text(MEASURED)
    python = f"{sys.executable} -W ignore"
    seal = "openssl enc -aes-256-cbc -iter 100000 -pass file:secret"
    taking = f"{python} measured.py import - --openssl-passphrase-file secret"
    environment = {**os.environ, "PYTHONPATH": str(Path(smsnapd.__file__).parents[1])}
    subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{python} writer.py {SIZE} | pigz -1 | {seal} | {taking}"],
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    assert int((tmp_path / "peak-kib").read_text()) * 1024 < MOST_BYTES
    (snapshot,) = notebook.well("snapshots", "--json").json
    assert (snapshot["files"], snapshot["bytes"], snapshot["complete"]) == (2001, SIZE + 200_000, True)
    notebook.well("restore", "--target", "back", "d3")
    assert (tmp_path / "back/d3/small-1998").read_bytes() == b"%100d" % 1998
