import os
import signal
import threading

import pytest

from fpbench.records.store import held_back


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_the_block(number):
    happened = []
    before = signal.signal(number, lambda *_: happened.append("signal"))
    try:
        with held_back():
            os.kill(os.getpid(), number)
            happened.append("written")
        assert happened == ["written", "signal"]
    finally:
        signal.signal(number, before)


def test_an_error_in_the_block_and_a_signal_both_come_out():
    with pytest.raises(KeyboardInterrupt) as caught, held_back():
        os.kill(os.getpid(), signal.SIGINT)
        raise OSError("disk")
    assert isinstance(caught.value.__context__, OSError)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_are_left_alone():
    seen = []

    def work():
        with held_back():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
