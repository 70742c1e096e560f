"""Paths of a sandbox opened from the host end in its root."""

import os
import signal
from pathlib import Path

import pytest

from headrace.sandbox import rooted

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="another process's root is root's to see")


def test_a_link_in_the_root_of_a_process_leads_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("/dev")
    (tmp_path / "up").symlink_to("../../../../dev")
    with (tmp_path / "root").open("w"):
        pass
    ours, its = os.pipe()
    child = os.fork()
    if child == 0:
        os.chroot(tmp_path)
        os.close(ours)
        os.write(its, b"x")
        signal.pause()
        os._exit(0)
    try:
        os.close(its)
        assert os.read(ours, 1) == b"x"
        for path in (b"/out/null", b"/up/null", b"/../../../../dev/null"):
            with pytest.raises(FileNotFoundError):
                os.close(rooted.opened(child, path, os.O_RDONLY))
        assert rooted.kinds(child, [b"/root", b"/out/null"]) == "f-"
        os.close(rooted.opened(child, b"/root", os.O_RDONLY))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ours)
