"""Exchanges between two agents, what one read and what it wrote: priors are measured on them."""

from __future__ import annotations

from kvcomm.prompt import Codec, Hole, Template, Text, compile_template

EXCHANGES = (
    (
        "A baker makes 48 rolls in the morning and sells three quarters of them before noon. "
        "In the afternoon she bakes another 20, gives 5 of them to her neighbour, and sells "
        "half of all that is left at 2 dollars each. How many rolls does she have in the "
        "evening, and how much did she earn in the afternoon?",
        "Three quarters of 48 are 36, so 48 - 36 = 12 rolls are left at noon. With the 20 from "
        "the afternoon she has 12 + 20 = 32 rolls, and 32 - 5 = 27 after the gift. Half of 27 "
        "is 13.5; she can only sell whole rolls, so she sells 13 and keeps 14. At 2 dollars "
        "each she earns 13 * 2 = 26 dollars in the afternoon.",
    ),
    (
        "The Moon orbits the Earth once in 27.3 days and turns about its own axis in exactly "
        "the same time. Billions of years ago it turned faster. The Earth's gravity raises "
        "tides in the body of the Moon, two bulges that point to the Earth and away from it. "
        "Question: why do we see the same face of the Moon all the time, and has this always "
        "been so?",
        "The Moon turns once about its axis in the time of one orbit, so the same half always "
        "faces us. It has not always been so: it turned faster once. While it did, its tidal "
        "bulges were carried away from the line to the Earth, and the Earth's pull on them "
        "slowed the spin until both periods were equal. This is called tidal locking.",
    ),
    (
        "Write a Python function that takes a text and returns the words that occur more than "
        "once in it, without regard to upper and lower case, in alphabetical order. "
        "Punctuation at the edges of a word does not belong to it. An empty text gives an "
        "empty list.",
        "def repeated(text):\n    seen, twice = set(), set()\n"
        "    for word in text.lower().split():\n        word = word.strip('.,;:!?')\n"
        "        if not word:\n            continue\n"
        "        (twice if word in seen else seen).add(word)\n    return sorted(twice)\n\n"
        "The first set holds what was seen once, the second what came again.",
    ),
    # A long one, of prose: rotated KV of that errs more than of code or sums.
    (
        "The harbour of Vessby lies at the mouth of a small river, and for most of its "
        "history it was known for two things: herring and ropes. The first mention of the "
        "place is a letter of 1431, in which a merchant from the south complains that the "
        "people of Vessby sold him forty barrels of fish of which six were filled with sand. "
        "Nothing came of the complaint. By 1520 there were about three hundred people, a "
        "church of stone and a toll house, and in a good autumn as many as ninety boats lay "
        "on the beach below the cliffs.\n\n"
        "The rope works came later. In 1687 two brothers, Anders and Mikkel Holt, leased a "
        "strip of land behind the dunes that was four hundred metres long and only eight "
        "metres wide, which was just what a rope walk needs. They bought hemp from the east, "
        "tar from the forests inland, and employed at first nine men. Thirty years later "
        "there were seventy, and a rope from Vessby was asked for by name in ports ten days "
        "away. The secret, as far as there was one, was patience: the yarn was kept in warm "
        "tar for two nights instead of one, and every rope was hung with stones for a week "
        "before it was sold.\n\n"
        "The great storm of January 1794 ended the good years. It broke the old mole, carried "
        "away eleven houses and the whole of the lower rope walk, and moved so much sand that "
        "ships with a draught of more than two metres could not enter any more. The town "
        "asked the king for money and got a commission. It measured the harbour for two "
        "summers, wrote a report of 212 pages, and advised against any work, since the sand "
        "would come back. The grandson of Anders Holt sold what was left of the works in 1803 "
        "and moved to the capital.\n\n"
        "What saved the town was an accident. In 1846 a young doctor, Sofie Lindqvist, who "
        "was not allowed to practise in the capital, took over a practice in Vessby that "
        "nobody else wanted. She noticed that children with diseases of the lung, whom she "
        "sent to the beach for an hour every day, did better than those who stayed at home, "
        "and she kept careful lists for six years. When the lists were printed, families from "
        "inland began to arrive. A first guest house with twelve rooms was opened in 1855, a "
        "bath house in 1859, and a railway in 1871 brought four thousand visitors in its "
        "first summer. Lindqvist, who disliked crowds, is said to have remarked that she had "
        "hoped to empty beds and not to fill them.\n\n"
        "Today about 5,200 people live in Vessby, twice as many in July. The herring are "
        "gone, but a small company makes ropes once more, for sailing ships and theatres, on "
        "the strip of land behind the dunes; it has fourteen workers and a waiting list of "
        "eight months. The harbour is dredged every second year. Whether that pays is a "
        "question that comes up before every election, and the report of 212 pages is quoted "
        "by both sides.",
        "The text tells how a town lived from the sea in four different ways, one after "
        "another, and I go through them in order before I say what I think the lesson is.\n\n"
        "First there was fishing. We learn of it from a complaint about barrels with sand in "
        "them, so the earliest thing that is known of the place is a fraud, or at least the "
        "claim of one. A share of six barrels in forty is fifteen per cent, which is a lot "
        "for a mistake and not much for a habit. Ninety boats in a good autumn, with perhaps "
        "four men to a boat, would be more men than the town had people, so some of the boats "
        "must have come from elsewhere for the season. The author does not say so, but the "
        "numbers do.\n\n"
        "Second came the ropes. Here the account is clear: a long and narrow piece of land, "
        "hemp and tar from outside, and a process that took more time than that of others. "
        "From nine workers to seventy in thirty years is a growth of about seven per cent a "
        "year, steady rather than fast. The advantage was quality, and quality could be "
        "recognised, because people asked for the rope by name. A business of that kind "
        "depends on ships being able to come in, and that is where it failed in the end. The "
        "storm destroyed the lower half of the works, but it was the sand in front of the "
        "harbour that made it pointless to build them up again.\n\n"
        "Third came the visitors. The doctor did not set out to found a resort. She made an "
        "observation, wrote it down for six years, and published it, and others drew the "
        "conclusion that there was money in sea air. Nine years passed from her arrival to "
        "the first guest house and twenty-five to the railway. It is worth noting that the "
        "lists alone prove little: the children who were sent to the beach may have been the "
        "ones who were well enough to go. A careful reader would ask how they were chosen. "
        "The effect on the town, however, did not depend on whether she was right.\n\n"
        "Fourth, and on a small scale, the ropes have come back. Fourteen workers are a fifth "
        "of what there were at the height, but a waiting list of eight months suggests that "
        "the price could be higher or the works larger. The customers are those to whom the "
        "old way of making a thing is part of what they buy.\n\n"
        "What stays the same through all of it is the sand. It was in the barrels, it closed "
        "the harbour, it made the beach that the visitors came for, and it has to be dredged "
        "every second year. The commission was right that it would come back, and wrong to "
        "think that this settles the question: a cost that returns is still worth paying if "
        "what it keeps open is worth more. To decide that one would need to know the income "
        "from boats that use the harbour today, the cost of dredging, and what the town would "
        "lose in summer without either. None of the three is given in the text, so I would "
        "not take a side on what is written here alone.",
    ),
)


def templates(codec: Codec) -> tuple[Template, Template]:
    """The prompt of the agent that reads a question, and of one that reads its answer, too."""
    solver = compile_template(
        codec,
        [Text("You solve problems step by step.")],
        [Hole("question"), Text("\n\nWrite down how you solve it.")],
    )
    checker = compile_template(
        codec,
        [Text("You check the work of others.")],
        [Hole("question"), Text("\n\nsolver wrote:\n"), Hole("answer"), Text("\n\nIs it right?")],
    )
    return solver, checker
