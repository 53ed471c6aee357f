"""The letters that answers choose, against a table for every way to say one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm.tasks.scoring import score_choice
from kvcomm.tasks.scoring.choice import chosen_letter

CHOICES = ("a red fox", "eight", "eighty", "none of these")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Answer: B", "B"),
        ("The answer is (C).", "C"),
        ("the answer is **D**", "D"),
        ("Answer: B. eight", "B"),
        ("Answer: b", "B"),
        ("Answer: eight", "B"),
        ("Answer: the second one, (B)", "B"),
        (r"So \boxed{A}", "A"),
        (r"So \boxed{\text{C}}", "C"),
        ("Let me think.\n\nC", "C"),
        ("Let me think.\nB) eight", "B"),
        ("Option D", "D"),
        ("A good reason speaks for eighty", "C"),
        ("Answer: A good reason speaks for it", ""),
        ("A or B, who knows", ""),
        ("eight or eighty", ""),
        ("The answer is A. No: the answer is C", "C"),
        ("The answer is B. I hope the answer is clear.", "B"),
        ("**Answer**: C", "C"),
        ("The correct option is D", "D"),
        ("The answer is definitely B", "B"),
        ("The answer is B because (A) is wrong", "B"),
        ("The answer is A because B is wrong", "A"),
        ("The best answer is D, not B", "D"),
        ("Answer: (C), a choice like (A)", "C"),
        ("Answer: not B", ""),
        ("Answer: A or C", ""),
        ("The answer is (A) or (B)", ""),
        ("Answer: A/B", ""),
        (r"$$\boxed{\textbf{(D)}}$$", "D"),
        ("C\nFor it is late.", "C"),
        ("A. a red fox, no\nB. eight, yes\nC. eighty, no\nD. none of these, no", ""),
        ("I do not know", ""),
        ("", ""),
    ],
)
def test_letters(text: str, letter: str) -> None:
    for gold in "ABCD":
        score = score_choice(text, gold, CHOICES)
        assert score.extracted == letter
        assert score.correct == (letter == gold)


NUMBERS = ("3", "4", "five apples", "none of the above")
ILLS = ("Hepatitis B", "Gout", "asthma", "scurvy")
COSTS = ("O(D)", "O(D^2)", "O(B)", "O(1)")
ORGANS = ("the heart", "a lung", "the liver", "the skin")

READ = {
    "at the end": [
        ("Only the third statement aligns with this. (C)", "C"),
        ("It follows from the rule.\n\n(X) C", "C"),
        ("After counting, we get it: ( D )", "D"),
        ("So it must be ( C ).", "C"),
        ("That settles it. (c)", "C"),
        ("This leaves only [B].", "B"),
        ("So it is (C), not (D).", "C"),
        ("(X): (C)", "C"),
        ("None of them is right, so D.", "D"),
        ("This rules out (B)", ""),
        ("It is not (C)", ""),
        ("It lies between (A) and (C)", ""),
        ("It could be (B) or (C).", ""),
        ("Let us look at f(C)", ""),
        ("The grade is a B.", ""),
    ],
    "behind a verb": [
        ("Answer seems to be A.", "A"),
        ("Therefore, the correct answer would be C.", "C"),
        ("The answer to this question is C.", "C"),
        ("The answer is not A but C.", "C"),
        ("The answer isn't A, it's C", "C"),
        ("The answer is not A or B but rather D.", "D"),
        ("The answer is neither (A) nor (B), but (C).", "C"),
        ("The answer must therefore be (B).", "B"),
        ("The answer, I think, is C.", "C"),
        ("The answer turns out to be D", "D"),
        ("The answer we are looking for is (D).", "D"),
        ("The answer's B.", "B"),
        ("The answer is most likely C", "C"),
        ("Answer → C", "C"),
        ("Answer - C", "C"),
        ("The answer is not B", ""),
        ("The answer cannot be B.", ""),
        ("The answer is not A. B is wrong.", ""),
        ("The answer is C, or maybe B.", ""),
        ("I have no answer.", ""),
    ],
    "with a verdict": [
        ("C is the correct answer.", "C"),
        ("I would pick B — a safe choice.", "B"),
        ("C, because five is right.", "C"),
        ("I'd go with C.", "C"),
        ("I would rather pick C than B.", "C"),
        ("I choose A.", "A"),
        ("(C) is right.", "C"),
        ("Option B seems to be the best choice.", "B"),
        ("Let's go with D.", "D"),
        ("D seems most plausible.", "D"),
        ("C is the answer I would give.", "C"),
        ("It must be C.", "C"),
        ("Solver 1 says C is correct, but I would pick D.", "D"),
        ("Both B and C seem right, but C is the best answer.", "C"),
        ("I would not pick B", ""),
        ("I wouldn't pick B.", ""),
        ("Nobody would pick B.", ""),
        ("I would pick A or B", ""),
        ("I would pick A good book", ""),
        ("I will take B vitamins", ""),
        ("C is incorrect.", ""),
        ("C is not the correct answer.", ""),
        ("Is C correct?", ""),
        ("If C is correct, then more follows.", ""),
        ("I doubt that B is correct.", ""),
        ("A is correct. C is correct.", ""),
        ("A. J. P. Taylor wrote it.", ""),
    ],
    "in lower case": [
        ("Answer: d. nothing listed here", "D"),
        ("Answer: d) nothing listed here", "D"),
        ("Answer: (d) nothing listed here", "D"),
        ("Answer: b: four", "B"),
        ("Answer: d - nothing listed here", "D"),
        ("d. none of the above", "D"),
        ("Answer: a good reason", ""),
        ("Answer: (a) or (b)", ""),
        ("The answer is (c), since it fits.", "C"),
        ("I would pick (c).", "C"),
        ("c. 1850 it was built", ""),
    ],
    "decorated": [
        ("Answer: 'C'", "C"),
        ("<answer>C</answer>", "C"),
        ("Answer： C", "C"),
        ("Answer：（C）", "C"),
        ("Answer: “C”", "C"),
        ("‘C’", "C"),
        ('{"answer": "C"}', "C"),
        ("<final_answer>\n(C)\n</final_answer>", "C"),
        ("<b>Answer:</b> <i>C</i>", "C"),
        ("**Answer:** `C`", "C"),
        ("Answer: [[C]]", "C"),
        ("Answer: C<|im_end|>", "C"),
        ("<answer></answer>", ""),
        ("<answer>A or C</answer>", ""),
    ],
}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        pytest.param(*case, id=f"{kind}: {case[0]}")
        for kind, cases in READ.items()
        for case in cases
    ],
)
def test_letters_are_read_as_people_write_them(text: str, letter: str) -> None:
    assert (chosen_letter(text, NUMBERS) or "") == letter


@pytest.mark.parametrize(
    ("text", "choices", "letter"),
    [
        # A letter within a choice's own text is none, and the leading letter comes first.
        ("The answer is Hepatitis B, which is viral.", ILLS, "A"),
        ("The answer is the virus of Hepatitis B", ILLS, "A"),
        ("I would pick Hepatitis B.", ILLS, "A"),
        ("Hepatitis B is the correct answer.", ILLS, "A"),
        ("Answer: B (not Hepatitis B)", ILLS, "B"),
        ("The answer is not Hepatitis B.", ILLS, ""),
        ("Answer: A (O(D))", COSTS, "A"),
        ("The answer is O(D).", COSTS, "A"),
        ("Answer: O(D^2)", COSTS, "B"),
        ("It must be O(B)", COSTS, "C"),
        ("Answer: Plan B", COSTS, ""),
        ("The answer is vitamin C", COSTS, ""),
        ("The answer is both A and B.", ("3", "both A and B", "5", "6"), "B"),
        ("Answer: C. botulinum", ("C. botulinum", "E. coli", "B. cereus", "yeast"), "A"),
        ("Answer: B cells", ("T cells", "nerves", "fat", "B cells"), "D"),
        # A text, with its article or without.
        ("Answer: liver", ORGANS, "C"),
        ("Answer: heart.", ORGANS, "A"),
        ("Answer: the lung", ORGANS, "B"),
        ("It is the skin, I think.", ORGANS, "D"),
        ("C five apples", NUMBERS, "C"),
        ("The answer is not the heart but the liver", ORGANS, "C"),
        ("The answer is an ear", ORGANS, ""),
        ("The answer is not the liver.", ORGANS, ""),
        ("Answer: liver or skin", ORGANS, ""),
        ("Answer: delivery", ORGANS, ""),
        ("Answer: 4.", NUMBERS, "B"),
        ("Answer: 3,5", NUMBERS, ""),
        ("Answer: 3 or 5", NUMBERS, ""),
        ("Answer: 3 + x", NUMBERS, ""),
        ("Answer: six", ("six", "six", "7", "8"), ""),
        ("Answer: B", ("C", "D", "A", "B"), "B"),
        ("I would pick B.", ("I", "II", "III", "I and II"), "B"),
        ("I think so.", ("I", "II", "III", "I and II"), ""),
        ("The answer is I, since II fails.", ("I", "II", "III", "I and II"), "A"),
        ("The answer is I and II.", ("I", "II", "III", "I and II"), "D"),
    ],
)
def test_a_text_stands_for_its_letter(text: str, choices: tuple[str, ...], letter: str) -> None:
    assert (chosen_letter(text, choices) or "") == letter


FRAMES = (
    "Answer: {}",
    "The answer is ({}).",
    "The correct answer would be {}.",
    "Therefore it holds. ( {} )",
    "{} is the correct answer.",
    "I would pick {}.",
    "{}, because it fits.",
    "<answer>{}</answer>",
    "Answer： '{}'",
    "So \\boxed{{\\text{{{}}}}}",
    "I see.\n\n**{}**",
)
WORDS = st.text("kmpqwxz", min_size=3, max_size=9)
TEXTS = WORDS | st.sampled_from(("vitamin C", "O(B)", "both A and B", "7", "A, D", "Plan A"))


@given(st.lists(TEXTS, min_size=4, max_size=4), st.sampled_from("ABCD"), st.sampled_from(FRAMES))
def test_a_letter_is_found_in_every_frame(choices: list[str], letter: str, frame: str) -> None:
    assert chosen_letter(frame.format(letter), choices) == letter


@given(st.lists(WORDS, min_size=4, max_size=4, unique=True), st.sampled_from("ABCD"))
def test_a_text_is_found_in_every_frame(choices: list[str], letter: str) -> None:
    text = choices["ABCD".index(letter)]
    for frame in (f"The answer is {text}.", f"Answer: the {text}", f"It was {text} that did it."):
        assert chosen_letter(frame, choices) == letter


@given(st.text(max_size=80), st.lists(st.text(max_size=9), max_size=5))
def test_any_text_is_read(text: str, choices: list[str]) -> None:
    assert chosen_letter(f"Answer: {text}", choices) in (*"ABCD", None)
    assert chosen_letter(text, [text, *choices]) in (*"ABCD", None)
