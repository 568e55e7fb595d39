"""A crew of threads gives what one worker gives, and refuses what it cannot do in one sentence."""

import threading

import numpy as np
import pytest

from emlab.app.blocks import process_blocks
from emlab.app.tasks import check_crew, hire
from emlab.errors import EmlabError, InputError

VOLUME = np.random.default_rng(3).normal(size=(13, 21, 18)).astype(np.float32)


def different(values, origin):
    """A result that depends on the block, so that blending matters."""
    return values + np.float32(sum(origin))


def square(number):
    return number**2, threading.current_thread() is threading.main_thread()


def fail(number):
    raise InputError(f"not {number}")


@pytest.fixture(scope="module")
def crew():
    pytest.importorskip("distributed")
    with hire(2) as found:
        yield found


def test_answers_come_in_the_order_of_the_calls(crew):
    calls = ((number,) for number in range(25))
    assert list(crew.each(square, calls)) == [(number**2, False) for number in range(25)]


def test_one_worker_here_needs_no_dask():
    with hire(1) as found:
        assert found is None


def test_an_error_of_a_task_is_the_error_of_the_call(crew):
    with pytest.raises(InputError, match="not 3"):
        list(crew.each(fail, [(3,)]))


def test_blocks_by_a_crew_are_blended_to_the_same_bytes(crew, tmp_path):
    def run(folder, **options):
        target = np.zeros_like(VOLUME)
        report = process_blocks(
            VOLUME, target, (8, 9, 10), 1, different, journal=tmp_path / folder, **options
        )
        return target, report

    expected, alone = run("alone")
    result, report = run("crew", crew=crew)
    np.testing.assert_array_equal(result, expected)
    assert (report.computed, report.blocks) == (alone.computed, alone.blocks)
    assert not list((tmp_path / "crew").glob("*.npy"))
    again, nothing = run("crew", crew=crew)
    assert nothing.computed == 0
    assert not again.any()


def test_a_run_that_stopped_goes_on_with_a_crew(crew, tmp_path):
    calls = []

    def stops(values, origin):
        calls.append(origin)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return different(values, origin)

    target = np.zeros_like(VOLUME)
    where = {"journal": tmp_path / "journal"}
    with pytest.raises(KeyboardInterrupt):
        process_blocks(VOLUME, target, (8, 9, 10), 2, stops, **where)
    report = process_blocks(VOLUME, target, (8, 9, 10), 2, different, crew=crew, **where)
    whole = np.zeros_like(VOLUME)
    process_blocks(VOLUME, whole, (8, 9, 10), 2, different)
    np.testing.assert_array_equal(target, whole)
    assert report.computed == report.blocks - 3


@pytest.mark.parametrize(
    ("workers", "scheduler", "said"),
    [(0, None, "at least 1"), (1, "localhost", "tcp://host:8786")],
)
def test_what_is_no_crew_is_refused(workers, scheduler, said):
    with pytest.raises(InputError, match=said):
        check_crew(workers, scheduler)


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("emlab.app.tasks.PATIENCE", 0.3)
    with pytest.raises(EmlabError, match="dask scheduler"), hire(1, "tcp://127.0.0.1:9"):
        pass
