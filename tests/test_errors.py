"""Errors that users act on: they can be sent from one process to another."""

import pickle

import pytest

from kvcomm.errors import KvcommError, NodeFailed, NotANumber, ReplicaLost, RunTimeout, UsageError


@pytest.mark.parametrize(
    "error",
    [
        UsageError("use another"),
        NodeFailed("judge", 2, ValueError("no")),
        RunTimeout(2.5, "waiting"),
        NotANumber("float16"),
        ReplicaLost("replica 1 was lost"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_as_it_was(error: KvcommError) -> None:
    found = pickle.loads(pickle.dumps(error))
    assert (type(found), str(found)) == (type(error), str(error))
    assert vars(found) == vars(error)
