"""Modes and a user's own policies, by name."""

from pathlib import Path

import pytest

from kvcomm.errors import UsageError
from kvcomm.tasks.methods import chosen, own_policy

HEAD = "from kvcomm.reuse.policy import Exact\nfrom kvcomm.reuse.recipe import Realign, Recipe\n"
TWO = HEAD + "a = Realign(Recipe('one'))\nb = Realign(Recipe('two'))\n"


def write(tmp_path: Path, text: str, name: str = "mine.py") -> str:
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def test_modes_policies_and_classes_of_them_are_taken_once(tmp_path: Path) -> None:
    assert chosen(["dense", "exact", "dense"]) == (["dense", "exact"], {})
    path = write(tmp_path, TWO + "class Mine(Exact):\n    name = 'three'\n")
    modes, own = chosen([f"{path}:a", "exact", f"{path}:Mine", f"{path}:a"])
    assert modes == ["one", "exact", "three"]
    assert [own[name].policy.name for name in ("one", "three")] == ["one", "three"]
    assert own["one"].digest == own["three"].digest
    again = write(tmp_path, TWO + "# other\n", "other.py")
    assert own_policy(f"{again}:a").digest != own["one"].digest
    with pytest.raises(UsageError, match="both called 'one'"):
        chosen([f"{path}:a", f"{again}:a"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD, "holds no policy: assign a Policy"),
        (TWO, "holds 2 policies: say which"),
        (HEAD + "policy = Exact()\n", "is called 'exact', as a mode is"),
        (HEAD + "policy = Realign(Recipe('x', offsets='last'))", "the offset family 'last'"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        own_policy(write(tmp_path, text))
