"""The scheduler's side: what is supplied, to whom, and what is let go of."""

import subprocess
import sys
from array import array
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvcomm.vllm.facts import Facts, Told
from kvcomm.vllm.protocol import (
    OffsetLesson,
    OffsetQuestion,
    Piece,
    Publish,
    Reply,
    Request,
    salt_of,
)
from tests.vllm.simulated import BLOCK, Scheduler

MODEL = ("linear", "template", "label")
ROW = "0" * 31 + "f"


def n(number: int) -> str:
    """A name."""
    return f"{number:032x}"


def publish(server: Scheduler, name: str, tokens: list[int], start: int = 0) -> None:
    reply = server.ask(tokens, ask=Request(publish=(Publish(name, start, len(tokens)),)))
    assert reply is not None
    assert reply.published == (name,)


def supplied(server: Scheduler, tokens: list[int], *pieces: Piece, **more: Any) -> Reply:
    reply = server.ask(tokens, salt_of(ROW), Request(row=ROW, pieces=pieces, **more))
    assert reply is not None
    server.check()
    return reply


TEXT = list(range(100, 120))


def test_the_pure_modules_need_neither_torch_nor_vllm() -> None:
    code = (
        "import sys, kvcomm.vllm.catalogue, kvcomm.vllm.refusals; "
        "print([m for m in ('torch', 'transformers', 'vllm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_prompt_is_supplied_but_for_its_last_token() -> None:
    server = Scheduler()
    publish(server, n(1), TEXT)
    assert supplied(server, TEXT, Piece(0, 20, n(1))).supplied == (0, 19)


def test_supplying_stops_at_the_first_gap() -> None:
    server = Scheduler()
    publish(server, n(1), TEXT)
    pieces = Piece(0, 6, n(1)), Piece(8, 20, n(1), 8)
    assert supplied(server, TEXT, *pieces).supplied == (0, 6)


def test_pieces_may_come_in_any_order_and_overlap() -> None:
    server = Scheduler()
    publish(server, n(1), TEXT)
    pieces = Piece(4, 20, n(1), 4), Piece(0, 6, n(1))
    assert supplied(server, TEXT, *pieces).supplied == (0, 19)


def test_supplying_stops_at_a_name_that_is_gone_and_says_so() -> None:
    server = Scheduler()
    publish(server, n(1), TEXT)
    reply = supplied(server, TEXT, Piece(0, 6, n(1)), Piece(6, 10, n(2)), Piece(10, 20, n(1), 10))
    assert reply.supplied == (0, 6)
    assert reply.missing == (n(2),)


def test_nothing_is_supplied_as_other_tokens() -> None:
    server = Scheduler()
    publish(server, n(1), TEXT)
    reply = supplied(server, [1, *TEXT], Piece(0, 20, n(1)))
    assert "not the tokens" in reply.refused
    assert reply.supplied == (0, 0)
    reply = supplied(server, [*TEXT, *TEXT], Piece(0, 30, n(1)))
    assert "not the tokens" in reply.refused


@pytest.mark.parametrize("salt", ["", n(1), salt_of(n(2)), "kvcomm:"])
def test_nothing_is_supplied_without_the_salt_of_the_row(salt: str) -> None:
    server = Scheduler()
    publish(server, n(1), TEXT)
    reply = server.ask(TEXT, salt, Request(row=ROW, pieces=(Piece(0, 10, n(1)),), keep=True))
    assert reply is not None
    assert "cache_salt" in reply.refused
    assert reply.supplied == (0, 0)
    assert not len(server.catalogue.rows)


def test_nothing_is_supplied_without_a_row() -> None:
    server = Scheduler()
    publish(server, n(1), TEXT)
    reply = server.ask(TEXT, salt_of(ROW), Request(pieces=(Piece(0, 10, n(1)),)))
    assert reply is not None
    assert reply.supplied == (0, 0)


def test_a_refused_request_is_told_why() -> None:
    server = Scheduler()
    publish(server, n(1), TEXT)
    ask = Request(row=ROW, pieces=(Piece(0, 10, n(1)),), publish=(Publish(n(2), 0, 20),))
    run = server.start(TEXT, salt_of(ROW), ask, "it has images")
    assert server.schedule(run) == 0
    server.step(run)
    reply = server.finish(run)
    assert reply is not None
    assert reply.refused == "it has images"
    assert reply.published == ()


def test_what_makes_no_sense_is_refused_in_words() -> None:
    server = Scheduler()
    server.catalogue.arrived("a", TEXT, "", {"kvcomm": {"version": 1, "pieces": [{"start": 3}]}})
    reply = server.catalogue.finished("a", TEXT, 10, [])
    assert reply is not None
    assert reply.refused


def test_a_request_that_asks_nothing_is_answered_nothing() -> None:
    assert Scheduler().ask(TEXT) is None


# --- names ---


def test_a_name_is_not_written_twice() -> None:
    server = Scheduler()
    publish(server, n(1), TEXT)
    reply = server.ask([1, 2, 3], ask=Request(publish=(Publish(n(1), 0, 3),)))
    assert reply is not None
    assert reply.published == ()
    assert supplied(server, TEXT, Piece(0, 20, n(1))).supplied == (0, 19)


def test_the_name_used_longest_ago_makes_way() -> None:
    server = Scheduler(budget=50)
    publish(server, n(1), TEXT)
    publish(server, n(2), [t + 100 for t in TEXT])
    supplied(server, TEXT, Piece(0, 5, n(1)))
    publish(server, n(3), [t + 200 for t in TEXT])
    server.check()
    assert supplied(server, TEXT, Piece(0, 5, n(1))).missing == ()
    assert supplied(server, TEXT, Piece(0, 5, n(2))).missing == (n(2),)


def test_a_name_in_use_does_not_make_way_and_one_too_large_is_not_kept() -> None:
    server = Scheduler(budget=30)
    publish(server, n(1), TEXT)
    run = server.start(TEXT, salt_of(ROW), Request(row=ROW, pieces=(Piece(0, 20, n(1)),)))
    reply = server.ask([1] * 15, ask=Request(publish=(Publish(n(2), 0, 15),)))
    assert reply is not None
    assert reply.published == ()
    assert server.schedule(run) == 19
    server.step(run)
    server.finish(run)
    reply = server.ask([1] * 31, ask=Request(publish=(Publish(n(2), 0, 31),)))
    assert reply is not None
    assert reply.published == ()
    server.check()


def test_a_released_name_stays_for_those_that_use_it() -> None:
    server = Scheduler()
    publish(server, n(1), TEXT)
    run = server.start(TEXT, salt_of(ROW), Request(row=ROW, pieces=(Piece(0, 20, n(1)),)))
    server.ask([1], ask=Request(release=(n(1), n(7))))
    assert server.schedule(run) == 19
    server.step(run)
    server.finish(run)
    server.step()
    assert not server.entries
    assert supplied(server, TEXT, Piece(0, 5, n(1))).missing == (n(1),)


def test_an_answer_is_published_without_its_last_token() -> None:
    server = Scheduler()
    reply = server.ask(TEXT, ask=Request(publish=(Publish(n(1), 15),)), answer=[1, 2, 3])
    assert reply is not None
    assert reply.published == (n(1),)
    text = [7, *TEXT[15:], 1, 2, 8]
    assert supplied(server, text, Piece(0, 1, n(9)), Piece(1, 8, n(1))).missing == (n(9),)
    assert supplied(server, text[1:], Piece(0, 7, n(1))).supplied == (0, 7)


def test_an_aborted_request_publishes_what_it_has_said() -> None:
    """A server aborts an answer at a stop text."""
    server = Scheduler()
    run = server.start(TEXT, "", Request(publish=(Publish(n(1), 15),)))
    server.schedule(run)
    server.step(run)
    reply = server.finish(run, [1, 2], "FINISHED_ABORTED")
    assert reply is not None
    assert reply.published == (n(1),)
    server.step()
    assert supplied(server, [*TEXT[15:], 1, 2, 8], Piece(0, 6, n(1))).supplied == (0, 6)


def test_a_request_that_failed_publishes_no_answer() -> None:
    server = Scheduler()
    run = server.start(TEXT, "", Request(publish=(Publish(n(1), 15),)))
    server.schedule(run)
    server.step(run)
    reply = server.finish(run, [1, 2], "FINISHED_ERROR")
    assert reply is not None
    assert reply.published == ()
    server.step()
    server.check()


def test_prompts_under_a_row_are_not_published_but_answers_are() -> None:
    server = Scheduler()
    publish(server, n(1), TEXT)
    wanted = Publish(n(2), 0, 10), Publish(n(3), 12), Publish(n(4), 20), Publish(n(5), 18)
    ask = Request(row=ROW, pieces=(Piece(0, 18, n(1)),), publish=wanted)
    reply = server.ask(TEXT, salt_of(ROW), ask, answer=[1, 2, 3])
    assert reply is not None
    assert reply.published == (n(4), n(5))
    # A request with a row's salt sees what it was filled with, whatever it says.
    reply = server.ask(TEXT, salt_of(ROW), Request(publish=(Publish(n(6), 0, 20),)))
    assert reply is not None
    assert reply.published == ()


# --- rows ---


def test_a_row_grows_by_its_pins_and_the_copy_of_its_last_block() -> None:
    server = Scheduler()
    publish(server, n(1), TEXT)
    prompt = [*range(10), *TEXT, *range(50, 60)]
    piece = Piece(10, 30, n(1))
    reply = server.ask(prompt[:10], salt_of(ROW), Request(row=ROW, keep=True))
    assert reply is not None
    assert server.catalogue.rows.pinned == 10 // BLOCK
    server.forget()
    assert supplied(server, prompt, piece).supplied == (8, 30)
    assert server.catalogue.rows.pinned == 0
    assert len(server.catalogue.rows) == 0
    assert not +server.used


def test_a_row_is_kept_as_a_copy_where_there_are_few_blocks() -> None:
    server = Scheduler(blocks=8)
    publish(server, n(1), TEXT)
    prompt = [*range(14), *TEXT]
    ask = Request(row=ROW, keep=True)
    for stop in (6, 14):
        server.ask(prompt[:stop], salt_of(ROW), ask)
        server.check()
    server.free = 0
    server.ask([*prompt[:14], *TEXT[:3]], salt_of(ROW), Request(
        row=ROW, keep=True, pieces=(Piece(14, 16, n(1)),)
    ))  # fmt: skip
    server.check()
    server.forget()
    assert server.catalogue.rows.pinned <= 4
    assert supplied(server, prompt, Piece(14, 34, n(1))).supplied[1] == 33


def test_rows_let_go_of_their_blocks_when_somebody_waits_for_them() -> None:
    server = Scheduler()
    server.ask(TEXT[:10], salt_of(ROW), Request(row=ROW, keep=True))
    server.ask(TEXT[:10], salt_of(n(5)), Request(row=n(5), keep=True))
    run = server.start(TEXT[:11], salt_of(n(5)), Request(row=n(5)))
    server.catalogue.give_way()
    server.step()
    assert server.catalogue.rows.pinned == 2  # of the one that is under way
    server.schedule(run)
    server.step(run)
    server.finish(run)
    server.forget()
    assert supplied(server, TEXT).supplied == (0, 10)
    server.step()
    assert not server.entries
    assert not +server.used


def test_a_row_that_cannot_be_copied_makes_way() -> None:
    server = Scheduler(budget=5)
    server.ask(TEXT[:10], salt_of(ROW), Request(row=ROW, keep=True))
    server.catalogue.give_way()
    server.settle()
    server.step()
    assert not len(server.catalogue.rows)
    assert not +server.used


def test_a_row_that_has_no_room_ends() -> None:
    server = Scheduler(budget=2)
    ask = Request(row=ROW, keep=True)
    reply = server.ask(TEXT[:7], salt_of(ROW), ask)
    assert reply is not None
    assert "no room" in reply.refused
    assert not len(server.catalogue.rows)
    assert not +server.used
    server.check()


def test_a_row_goes_on_with_the_same_tokens_only_and_one_request_at_a_time() -> None:
    server = Scheduler()
    server.ask(TEXT[:7], salt_of(ROW), Request(row=ROW, keep=True))
    other = server.ask([1, 2, 3, 4, 5, 6, 7, 8], salt_of(ROW), Request(row=ROW, keep=True))
    assert other is not None
    assert "go on" in other.refused
    run = server.start(TEXT, salt_of(ROW), Request(row=ROW))
    assert server.schedule(run) == 7
    server.step(run)
    other = server.ask(TEXT, salt_of(ROW), Request(row=ROW))
    assert other is not None
    assert "under way" in other.refused
    server.finish(run)
    assert not len(server.catalogue.rows)


def test_a_row_ends_with_an_abort_when_told_and_after_a_while() -> None:
    server = Scheduler(ttl=10)
    keep = Request(row=ROW, keep=True)
    server.ask(TEXT, salt_of(ROW), keep)
    run = server.start(TEXT, salt_of(ROW), keep)
    server.finish(run, ended="FINISHED_ABORTED")
    assert not len(server.catalogue.rows)
    server.ask(TEXT, salt_of(ROW), keep)
    server.ask([1], ask=Request(ends=(ROW,)))
    assert not len(server.catalogue.rows)
    server.ask(TEXT, salt_of(ROW), keep)
    server.now += 11
    server.step()
    assert not len(server.catalogue.rows)
    assert not +server.used
    server.step()
    assert not server.entries


def test_a_row_that_is_ended_while_its_request_runs_is_not_kept() -> None:
    server = Scheduler()
    run = server.start(TEXT, salt_of(ROW), Request(row=ROW, keep=True))
    server.schedule(run)
    server.ask([1], ask=Request(ends=(ROW,)))
    server.step(run)
    reply = server.finish(run)
    assert reply is not None
    assert "ended" in reply.refused
    assert not len(server.catalogue.rows)
    assert not +server.used


def test_a_row_stays_while_its_request_runs() -> None:
    server = Scheduler(ttl=10)
    server.ask(TEXT[:6], salt_of(ROW), Request(row=ROW, keep=True))
    run = server.start(TEXT, salt_of(ROW), Request(row=ROW))
    server.now += 100
    server.step()
    assert server.schedule(run) == 6


def test_after_a_preemption_an_answer_has_what_it_began_with_or_fails() -> None:
    server = Scheduler()
    publish(server, n(1), TEXT)
    ask = Request(row=ROW, pieces=(Piece(0, 18, n(1)),))
    for lost in (False, True):
        run = server.start(TEXT, salt_of(ROW), ask)
        assert server.schedule(run) == 18
        server.step(run)
        run.tokens += [1, 2]
        server.release(run.blocks)
        run.blocks = []
        server.forget()
        if lost:
            server.catalogue.clear()
        server.schedule(run, emitted=2)
        server.step(run)
        assert len(server.failed) == lost
        reply = server.finish(run, ended="FINISHED_ERROR" if lost else "")
        assert reply is not None
        assert lost or reply.supplied == (0, 18)


def test_before_it_says_anything_a_preempted_prompt_is_supplied_what_is_there() -> None:
    server = Scheduler()
    publish(server, n(1), TEXT)
    run = server.start(TEXT, salt_of(ROW), Request(row=ROW, pieces=(Piece(0, 18, n(1)),)))
    server.schedule(run)
    server.step()
    server.release(run.blocks)
    run.blocks = []
    server.catalogue.clear()
    assert server.schedule(run) == 0
    server.step(run)
    assert not server.failed


def test_vllm_may_want_less_than_was_promised() -> None:
    server = Scheduler()
    publish(server, n(1), TEXT)
    run = server.start(TEXT, salt_of(ROW), Request(row=ROW, pieces=(Piece(0, 20, n(1)),)))
    assert server.catalogue.match(run.key, 20, 0) == 19
    server.catalogue.allocated(run.key, 7, [1, 2])
    (load,) = server.catalogue.take().loads
    assert load.stop == 7
    reply = server.finish(run)
    assert reply is not None
    assert reply.supplied == (0, 7)


# --- learning ---


def test_a_piece_with_a_model_needs_one_that_every_rank_knows() -> None:
    server = Scheduler(ranks=2)
    publish(server, n(1), TEXT)
    piece = Piece(0, 10, n(1), 0, MODEL)
    assert supplied(server, TEXT, piece).supplied == (0, 0)
    told = Told(True, "yes", 3, 0.5)
    server.tell(told, MODEL, ranks=1)
    assert supplied(server, TEXT, piece).supplied == (0, 0)
    server.tell(told, MODEL, ranks=2)
    assert supplied(server, TEXT, piece).supplied == (0, 10)


def test_a_model_that_learned_shorter_texts_predicts_none_that_is_longer() -> None:
    server = Scheduler()
    publish(server, n(1), TEXT)
    publish(server, n(2), TEXT[:3])
    anchors = ("anchors", "template", "0")
    server.tell(Told(True, "yes", 3, 1.0, reach=19, literals=(3,)), anchors)
    assert supplied(server, TEXT, Piece(0, 10, n(1), 0, anchors)).supplied == (0, 0)
    assert supplied(server, TEXT, Piece(0, 3, n(2), 0, anchors)).supplied == (0, 3)
    literal = Piece(0, 3, n(2), 0, anchors, behind=n(1))
    assert supplied(server, TEXT, literal).supplied == (0, 0)  # the text before it is too long
    server.tell(Told(True, "yes", 3, 1.0, reach=20, literals=(3,)), anchors)
    assert supplied(server, TEXT, literal).supplied == (0, 3)
    server.tell(Told(True, "yes", 3, 1.0, reach=20, literals=(4,)), anchors)
    assert supplied(server, TEXT, literal).supplied == (0, 0)


def test_only_computed_prompts_teach_and_only_what_they_say() -> None:
    server = Scheduler()
    publish(server, n(1), TEXT)
    prompt = [1, 2, *TEXT, 3]
    lesson = OffsetLesson(MODEL, n(1), 2, 22)
    server.ask(prompt, ask=Request(lessons=(lesson,)))
    assert len(server.lessons) == 1
    server.ask(prompt, salt_of(ROW), Request(row=ROW, lessons=(lesson,)))
    server.ask(prompt, salt_of(ROW), Request(lessons=(lesson,)))
    server.ask([1, *prompt], ask=Request(lessons=(lesson,)))
    server.ask(prompt[:20], ask=Request(lessons=(lesson,)))
    assert len(server.lessons) == 1


def test_lessons_wait_in_a_line_that_ends() -> None:
    server = Scheduler(budget=400, ranks=2)
    publish(server, n(1), TEXT)
    ask = Request(lessons=(OffsetLesson(MODEL, n(1), 0, 20),))
    for _ in range(8):
        server.ask([*TEXT, 1], ask=ask)
    assert len(server.lessons) == 5  # a quarter of the store
    assert server.catalogue.about()["lessons_dropped"] == 3
    server.catalogue.heard(Facts(lessons={0: tuple(server.lessons)}))
    assert server.catalogue.about()["lessons_waiting"] == 5
    server.catalogue.heard(Facts(lessons={1: tuple(server.lessons)}))
    assert server.catalogue.about()["lessons_waiting"] == 0
    assert server.catalogue.about()["lessons_learned"] == 5


def test_a_lesson_has_the_literal_behind_it_where_all_of_it_is_there() -> None:
    server = Scheduler()
    publish(server, n(1), TEXT)
    publish(server, n(2), [1, 2, 3])
    lesson = OffsetLesson(MODEL, n(1), 0, 20, 0, n(2))
    for after, behind in (([1, 2, 3, 4], 3), ([1, 2], 0), ([1, 2, 4, 4], 0)):
        run = server.start([*TEXT, *after], "", Request(lessons=(lesson,)))
        server.schedule(run)
        ((teach,),) = [save.lessons for save in server.step(run).after]
        assert teach.behind == behind
        assert (teach.literal is None) == (not behind)
        server.finish(run)


def test_questions_are_answered_in_order_when_all_ranks_have_spoken() -> None:
    server = Scheduler(ranks=2)
    publish(server, n(1), TEXT)
    asked = (
        OffsetQuestion(MODEL, n(1), 0, 20),
        OffsetQuestion(MODEL, n(2), 0, 2),
        OffsetQuestion(MODEL, n(1), 1, 20),
    )
    run = server.start([1, 2], "", Request(questions=asked))
    server.schedule(run)
    orders = server.step(run)
    (number,) = (ask.number for ask in orders.asks)
    for rank, left in enumerate((1.0, 2.0)):
        told = Told(True, "yes", 3 + rank, left / 4, left, 4.0)
        server.catalogue.heard(Facts(answers={rank: {number: told}}))
    reply = server.finish(run)
    assert reply is not None
    assert reply.missing == (n(2),)
    first, second, third = reply.answers
    assert first == (True, "linear offsets: 3 samples, error left 0.38", 3, 3 / 8)
    assert second is None
    assert third is None


def test_models_are_told_while_they_are_new_and_to_those_who_ask() -> None:
    server = Scheduler()
    server.tell(Told(True, "yes", 3, 0.5), MODEL)
    key = " ".join(MODEL)
    for now, query, there in ((0, False, True), (100, False, True), (300, False, False),
                              (300, True, True)):  # fmt: skip
        server.now = now
        reply = server.ask([1, 2], ask=Request(query=query, release=(n(1),)))
        assert reply is not None
        assert (key in (reply.models or {})) == there
        assert (reply.about is not None) == query
    server.catalogue.heard(Facts(models={0: {MODEL: None}}))
    reply = server.ask([1, 2], ask=Request(query=True))
    assert reply is not None
    assert not reply.models


# --- going off ---


def test_a_connector_that_is_off_supplies_nothing_and_lets_go_of_all() -> None:
    server = Scheduler()
    publish(server, n(1), TEXT)
    server.ask(TEXT[:7], salt_of(n(9)), Request(row=n(9), keep=True))
    run = server.start(TEXT, salt_of(ROW), Request(row=ROW, pieces=(Piece(0, 20, n(1)),)))
    server.catalogue.heard(Facts(failed={0: "why"}))
    server.settle()
    assert server.schedule(run) == 0
    server.step(run)
    reply = server.finish(run)
    assert reply is not None
    assert reply.refused == "rank 0: why"
    server.step()
    assert not server.entries
    assert not +server.used
    reply = server.ask(TEXT, ask=Request(publish=(Publish(n(2), 0, 5),)))
    assert reply is not None
    assert reply.refused == "rank 0: why"
    assert reply.published == ()


# --- any order of things ---

VOCABULARY = st.integers(0, 2)
TEXTS = st.lists(VOCABULARY, min_size=1, max_size=14)


class Clients(RuleBasedStateMachine):
    """Clients publish, grow rows, leave, and release, in any order, in a small store."""

    def __init__(self) -> None:
        super().__init__()
        self.server = Scheduler(budget=60, blocks=24, ttl=50)
        self.texts: dict[str, list[int]] = {}
        self.rows: dict[str, list[int]] = {}
        self.running: list[tuple[Any, Request]] = []
        self.count = 0

    def fresh(self) -> str:
        self.count += 1
        return n(self.count)

    @rule(tokens=TEXTS, answer=TEXTS)
    def publish(self, tokens: list[int], answer: list[int]) -> None:
        name, message = self.fresh(), self.fresh()
        ask = Request(publish=(Publish(name, 0, len(tokens)), Publish(message, len(tokens))))
        reply = self.server.ask(tokens, name, ask, answer)
        assert reply is not None
        if name in reply.published:
            self.texts[name] = tokens
        if message in reply.published:
            self.texts[message] = answer[:-1]
            assert len(answer) > 1

    def pieces(self, data: st.DataObject, begin: int) -> tuple[list[int], list[Piece]]:
        """Some tokens behind `begin`, and what fills most of them."""
        tokens: list[int] = []
        pieces = []
        for name in data.draw(st.lists(st.sampled_from(sorted(self.texts) or [n(0)]), max_size=3)):
            text = self.texts.get(name, [1])
            tokens += data.draw(st.lists(VOCABULARY, max_size=2))
            hole = data.draw(st.integers(0, len(text) - 1))
            start = begin + len(tokens)
            pieces.append(Piece(start + hole, start + len(text), name, hole))
            tokens += text
        return [*tokens, 2], pieces

    @precondition(lambda self: len(self.running) < 3)
    @rule(data=st.data(), keep=st.booleans())
    def arrive(self, data: st.DataObject, keep: bool) -> None:
        busy = {ask.row for _, ask in self.running}
        idle = sorted(set(self.rows) - busy)
        row = data.draw(st.sampled_from([*idle, ""])) or self.fresh()
        before = self.rows.get(row, [])
        tokens, pieces = self.pieces(data, len(before))
        ask = Request(row=row, keep=keep, pieces=tuple(pieces))
        run = self.server.start([*before, *tokens], salt_of(row), ask)
        self.server.schedule(run)
        self.running.append((run, ask))

    @precondition(lambda self: self.running)
    @rule()
    def step(self) -> None:
        self.server.step(*(run for run, _ in self.running))
        for run, ask in self.running:
            if self.server.catalogue.rows._rows.get(ask.row) and ask.keep:
                self.rows[ask.row] = run.tokens[: run.prompt]

    @precondition(lambda self: self.running)
    @rule(ended=st.sampled_from(["", "", "FINISHED_ABORTED"]), data=st.data())
    def finish(self, ended: str, data: st.DataObject) -> None:
        self.step()
        run, ask = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        reply = self.server.finish(run, [1], ended)
        assert reply is not None
        assert not reply.refused or "ended" in reply.refused, reply
        if ended or not ask.keep or reply.refused:
            self.rows.pop(ask.row, None)
        self.server.step(*(run for run, _ in self.running))

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.texts) or [n(0)]))
        row = data.draw(st.sampled_from([*sorted(self.rows), n(0)]))
        self.server.ask([1], "x", Request(release=(name,), ends=(row,)))
        self.texts.pop(name, None)
        self.rows.pop(row, None)

    @rule()
    def give_way(self) -> None:
        self.server.catalogue.give_way()
        self.server.settle()
        self.server.step()
        assert not self.server.catalogue.rows.held

    @rule(seconds=st.sampled_from([1.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.server.now += seconds
        self.server.forget()

    @invariant()
    def bounded(self) -> None:
        names = self.server.catalogue.names
        assert names.used <= names.budget
        assert self.server.catalogue.rows.pinned <= 24

    def teardown(self) -> None:
        while self.running:
            run, _ = self.running.pop()
            self.server.step(run)
            self.server.finish(run, [1], "FINISHED_ABORTED")
        self.server.catalogue.clear()
        self.server.settle()
        self.server.step()
        assert not +self.server.used, "blocks are left"
        assert not self.server.entries, "entries are left"
        assert self.server.catalogue.names.used == 0


TestClients = Clients.TestCase


def test_names_compare_tokens() -> None:
    server = Scheduler()
    publish(server, n(1), TEXT)
    name = server.catalogue.names.get(n(1))
    assert name is not None
    assert name.holds(array("I", TEXT[3:5]), 3)
    assert not name.holds(array("I", TEXT[3:5]), 4)
