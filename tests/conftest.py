"""What tests of several files stand on."""

import itertools
import signal
import threading
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from hypothesis import settings

from pipelab import clock, feed
from pipelab.transport.memory import Mailboxes

settings.register_profile("the same examples each time, on a machine of any speed", derandomize=True, deadline=None)
settings.load_profile("the same examples each time, on a machine of any speed")

OF_NOTEBOOKS = ("IPython", "anywidget", "ipywidgets", "nbformat", "papermill", "plotly")
MISSING = {package for package in OF_NOTEBOOKS if find_spec(package) is None}
"""Packages of the notebooks that this machine lacks, as one of GPUs may."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """Where one of them is missing, a test that comes to need it is skipped."""
    try:
        return (yield)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in MISSING:
            raise
        pytest.skip(f"no {package} here")


pytest_runtest_setup = pytest_runtest_call  # or its fixtures do


@pytest.fixture
def one_intra_op_thread():
    """Bit-equality needs the same summation order in the operators of both sides."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def travelling(request):
    """Ranks get the functions and classes of the test's own file by value: they could not import it."""
    cloudpickle = pytest.importorskip("cloudpickle")
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture
def interruptible():
    """A job in the background of a shell ignores Control-C, and so would its tests and all that they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def a_second_each(monkeypatch):
    """In virtual time whatever is measured takes one second, on any machine: its clock counts how often it is read."""
    fine = SimpleNamespace(resolution=1e-9)
    counts = {"thread_time": itertools.count().__next__, "get_clock_info": lambda name: fine}
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=clock.time.perf_counter, **counts))


@pytest.fixture
def given_up(monkeypatch):
    """A hang for as long as the virtual ranks that wait have patience: it returns once their run is given up."""
    over, abort = threading.Event(), Mailboxes.abort

    def abort_and_tell(mailboxes):
        abort(mailboxes)
        over.set()

    monkeypatch.setattr(Mailboxes, "abort", abort_and_tell)
    return lambda: over.wait(60)


@pytest.fixture
def all_is_heard(monkeypatch):
    """A listener has all the time it needs for what is left when the run is over."""
    monkeypatch.setattr(feed, "FAREWELL", 240.0)
