"""What every test run shares. One process tests one backend: `KHUB_BACKEND=torch pytest`."""

import os
import sys
import tempfile
import zlib

import blocking
import pytest

# Before anything imports khub or a framework.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KHUB_HOME", os.path.join(tempfile.gettempdir(), "khub-tests-have-no-home"))
if os.environ.get("KHUB_TEST_BLOCK_OTHERS") == "1":
    blocking.hide(blocking.others(os.environ["KHUB_BACKEND"]))

_NOTES = pytest.StashKey[list]()


def pytest_configure(config):
    config.stash[_NOTES] = []


@pytest.fixture(autouse=True)
def _same_random_numbers(request):
    """Seed every test by its name: a failure in CI is seen again on the desk."""
    import khub

    seed = zlib.crc32(request.node.nodeid.encode())
    khub.utils.set_random_seed(seed)
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(seed)


@pytest.fixture
def note(request):
    """Call it with a line to be printed after the tests."""
    return request.config.stash[_NOTES].append


def pytest_terminal_summary(terminalreporter, config):
    for line in config.stash[_NOTES]:
        terminalreporter.write_line(line)
