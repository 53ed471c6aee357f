"""`kvcomm index` and `kvcomm cache`: KV that is there before anybody asks, and after."""

import json
import os
from pathlib import Path

MODEL = ("--model", "random:llama-tiny")
TEXTS = [{"title": f"Town {n}", "text": f"It has {n} bridges. " * (3 + n)} for n in range(6)]


def corpus(folder: Path, count: int = 6) -> str:
    path = folder / "corpus.jsonl"
    path.write_text("\n".join(json.dumps(text) for text in TEXTS[:count]))
    return str(path)


def test_a_corpus_is_indexed_once_and_what_is_new_later(cli, tmp_path: Path) -> None:
    where = ("--kv-cache", str(tmp_path / "kv"))
    plan = json.loads(cli("index", corpus(tmp_path, 4), *MODEL, *where, "--dry-run", "--json").out)
    assert (plan["passages"], plan["known"], plan["computed_tokens"]) == (4, 0, 0)
    ended = cli("index", corpus(tmp_path, 4), *MODEL, *where, "--json")
    first = json.loads(ended.out)
    assert first["computed_tokens"] > first["tokens"] > 0
    assert "4 passages, 0 of them known; to compute: " in ended.err
    second = json.loads(cli("index", corpus(tmp_path), *MODEL, *where, "--json").out)
    assert (second["known"], second["tokens"] < first["tokens"]) == (4, True)
    again = cli("index", corpus(tmp_path), *MODEL, *where)
    assert "6 passages, 6 of them known; to compute: 0 tokens" in again.out
    listed = json.loads(cli("cache", "list", *where, "--json").out)
    (folder,) = listed["folders"]
    assert (folder["model"], folder["texts"]) == ("random:llama-tiny", 6)
    assert "random:llama-tiny" in cli("cache", "list", *where).out
    for file in list((tmp_path / "kv").glob("*.kv"))[:2]:
        os.utime(file, (1, 1))
    assert "2 texts would go" in cli("cache", "prune", *where, "--older-than", "9", "--dry-run").out
    assert "2 texts gone" in cli("cache", "prune", *where, "--older-than", "9").out
    assert "4 texts gone" in cli("cache", "prune", *where, "--all").out
    assert cli("cache", "prune", *where, "--all").out == "Nothing to remove.\n"


def test_the_kv_of_another_model_is_refused(cli, tmp_path: Path) -> None:
    where = ("--kv-cache", str(tmp_path / "kv"))
    assert cli("index", corpus(tmp_path), *MODEL, *where).code == 0
    ended = cli("index", corpus(tmp_path), "--model", "random:qwen3-tiny", *where)
    assert ended.code == 2
    assert "was computed by random:llama-tiny" in ended.err
    assert "choose another --kv-cache folder, or --kv-cache none" in ended.err
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    ended = cli("index", corpus(tmp_path), *MODEL, "--kv-cache", str(tmp_path / "texts"))
    assert "is no KV cache (it has no manifest.json)" in ended.err


def test_what_does_not_fit_is_said_before_anything_is_computed(cli, tmp_path: Path) -> None:
    small = ("--kv-cache", str(tmp_path / "kv"), "--kv-cache-size", "1kB")
    ended = cli("index", corpus(tmp_path), *MODEL, *small)
    assert ended.code == 2
    assert "use a larger --kv-cache-size, or --kv-dtype bfloat16" in ended.err
    assert not (tmp_path / "kv").exists()
    assert "write float32, bfloat16" in cli("index", "x", *MODEL, "--kv-dtype", "int4").err
    assert "an index is kept on disk" in cli("index", "x", *MODEL, "--kv-cache", "none").err
    assert "say what is to go" in cli("cache", "prune").err
    assert "there is no such folder" in cli("cache", "list", "--kv-cache", "nowhere").err
    assert "No KV is kept in" in cli("cache", "list").out


def test_a_run_keeps_the_kv_of_its_inputs_unless_it_keeps_nothing(cli, tmp_path: Path) -> None:
    words = ("run", "A question of some length, " * 9, *MODEL, "--max-tokens", "4")
    for state, kept in (("none", 0), (str(tmp_path / "state"), 1)):
        assert cli(*words, "--state", state, "--out", f"runs/{kept}").code == 0
        folders = json.loads(cli("cache", "list", "--json").out)["folders"]
        assert [folder["texts"] for folder in folders] == [1] * kept


def test_reuse_across_questions_is_measured(cli, tmp_path: Path) -> None:
    shape = ("bench", "rag", "--suite", "rag-mini", *MODEL, "--questions", "2", "--passages", "2")
    ended = cli(*shape, "--modes", "exact,auto,query-20", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert (found["questions"], found["passages"]) == (2, 2)
    assert list(found["modes"]) == ["dense", "exact", "auto", "query-20"]
    assert found["modes"]["query-20"]["reused_fraction"] > 0.4
    shown = cli(*shape, "--modes", "query-20", "--gold", "--length", "64").out
    assert "query-20" in shown
    assert max(map(len, shown.split("\n"))) <= 80
    assert "mode 'x' is unknown" in cli(*shape, "--modes", "x").err
    assert "--ahead 'x': write questions or none" in cli(*shape, "--ahead", "x").err
    assert "questions behind --skip 99" in cli(*shape, "--skip", "99").err
