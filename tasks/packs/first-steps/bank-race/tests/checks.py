"""Compiles bank.c with driver.c and its own bank.h, and runs one scenario per test."""

import os
import shutil

import grading

ORIGINAL = "4901210f64913d1da007bc5619363a70ee79fd47d6a16b9765700d85693de5dd"

FOLDER = "/tmp/bank-grading"
DRIVER = f"{FOLDER}/driver"


def build():
    shutil.rmtree(FOLDER, ignore_errors=True)
    os.makedirs(FOLDER)
    for source in ("/tests/bank.h", "/tests/driver.c", "/app/bank.c"):
        shutil.copy(source, FOLDER)
    command = ["gcc", "-O2", "-pthread", "-o", DRIVER, "driver.c", "bank.c"]
    grading.output(command, cwd=FOLDER, timeout_s=30)


def holds(scenario):
    assert os.path.exists(DRIVER), "bank.c does not compile with driver.c"
    status, _, err = grading.run([DRIVER, scenario], timeout_s=3)
    assert status == 0, f"{scenario}: status {status}, {err.strip()}"


def test_it_compiles_with_other_programs():
    build()
    with open("/tests/bank.h", "rb") as ours, open("/app/bank.h", "rb") as theirs:
        assert ours.read() == theirs.read(), "bank.h changed"


def test_wrong_arguments_are_refused():
    holds("arguments")


def test_a_transfer_to_the_same_account():
    holds("same_account")


def test_opposite_transfers_do_not_deadlock():
    holds("opposite")


def test_competing_transfers_do_not_overdraw():
    holds("overdraft")


def test_transfers_of_other_accounts_run_at_the_same_time():
    # Fails with one lock around everything.
    holds("parallel")


def test_the_total_is_exact_while_money_moves():
    holds("total")


def test_the_trace_is_called_once_for_each_real_transfer():
    holds("trace")


def test_nothing_is_lost_under_load():
    holds("stress")


grading.main(globals(), needs="/app/bank.c", original=ORIGINAL)
