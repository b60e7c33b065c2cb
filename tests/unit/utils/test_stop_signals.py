import os
import signal
import threading
import time

import pytest

from sat_vg.backbone_finetuning.utils.errors import InterruptedRun
from sat_vg.backbone_finetuning.utils.exit_codes import run_command
from sat_vg.backbone_finetuning.utils.stop_signals import (
    ONE_REQUEST_S,
    STOP_SIGNALS,
    InterruptRequest,
    StoppedBySignal,
)


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_is_a_request_and_the_second_stops_at_once(number):
    before = [signal.getsignal(each) for each in STOP_SIGNALS]
    with InterruptRequest() as request:
        assert not request.requested
        send(number)
        send(number)  # in the same breath, as coreutils' timeout does
        assert request.requested
        assert request.number == number
        assert request.name == ("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)
        time.sleep(ONE_REQUEST_S)
        with pytest.raises(StoppedBySignal):
            send(number)
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == before


def test_outside_the_main_thread_signals_are_left_alone():
    failures = []

    def use() -> None:
        try:
            with InterruptRequest() as request:
                failures.extend([request.requested] if request.requested else [])
        except ValueError as error:
            failures.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert not failures


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)])
def test_before_the_training_a_signal_ends_the_command_with_a_message(capsys, number, code):
    tidied = []

    def action() -> None:
        try:
            send(number)
            time.sleep(5)
        finally:
            send(number)  # the second of one request does not disturb the tidying
            tidied.append(True)

    assert run_command(action) == code
    assert tidied == [True]
    assert capsys.readouterr().err == f"stopped at once by {signal.Signals(number).name}; " + (
        "what was saved before is untouched\n"
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)])
def test_a_saved_run_ends_with_the_code_that_says_resumable(capsys, number, code):
    def action() -> None:
        raise InterruptedRun("saved", number)

    assert run_command(action) == code
    assert capsys.readouterr().err == "saved\n"


def test_a_current_folder_that_was_removed_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run_command(lambda: None) == 2
    assert "error: the current folder cannot be found" in capsys.readouterr().err
