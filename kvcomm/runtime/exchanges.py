"""Exchanges between agents, and passages with questions: priors are measured on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kvcomm.prompt import Codec, Hole, Template, Text, compile_template

# Passages by the name of their placeholder.
Read = Mapping[str, str]

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


# Passages, and questions over some of them: priors of inputs that earlier prompts have read.
PASSAGES = (
    "Orsa Ferry\nThe Orsa ferry crosses the lake between Nordby and the island of Hallen. It "
    "was built in 1928 at the Lindholm yard and carried coal until 1951, when the owner, "
    "Karin Dahl, had the hold made into a saloon for ninety passengers. The steam engine was "
    "replaced by a diesel in 1966. Since 2004 the ferry has belonged to a society of "
    "volunteers.",
    "Lindholm Yard\nLindholm was a shipyard at the mouth of the Vara, founded in 1873 by the "
    "brothers Erik and Tomas Lindholm. It built 214 ships, most of them ferries and fishing "
    "boats, and employed up to four hundred people. After a fire in 1959 the yard moved to "
    "Sandvik, where it closed eleven years later. The old slipway is a museum today.",
    "Karin Dahl\nKarin Dahl (1897 to 1983) was a ship owner and a member of parliament. The "
    "daughter of a teacher, she took over three coal barges from her uncle at the age of 24. "
    "She sat in parliament from 1936 to 1948, where she worked for free school meals. Her "
    "memoirs, Against the Wind, appeared in 1970.",
    "Hallen\nHallen is an island of six square kilometres with about 150 people. Its church "
    "has a wooden tower from 1640 and a bell that was cast in Riga. Apples have been grown "
    "there since monks brought the first trees; the variety Hallen Red ripens in late October"
    " and keeps until May. A bridge was planned twice, in 1961 and 1988, and never built.",
    "The Glass Orchard\nThe Glass Orchard is a novel by Miriam Oduya from 1999. A botanist "
    "comes back to the valley of her childhood to save an old kind of apple, and finds that "
    "her brother has sold the land. The book was translated into nineteen languages and won "
    "the Harrow prize. A film of it, directed by Paul Renner, was shot on an island in 2003.",
    "Miriam Oduya\nMiriam Oduya, born in Kisumu in 1961, studied botany in Leeds before she "
    "began to write. Her first book, a collection of stories, was printed in 400 copies. With"
    " her second, a novel, she became known in many countries. She teaches at a school for "
    "writers in Bristol and has been a judge of the Harrow prize four times.",
    "Harrow Prize\nThe Harrow prize is given every second year to a novel in English by a "
    "writer who has published no more than three books. It was founded in 1985 by the "
    "publisher Anne Harrow and carries 20,000 pounds. Only once, in 1993, was it shared by "
    "two books. The jury has five members, who serve for two rounds at most, one after the "
    "other.",
    "Paul Renner\nPaul Renner is a director from Graz. He began as a camera assistant and made"
    " commercials for ten years. His first film, Slow Water, ran for a year in a single "
    "cinema in Vienna. He works with small crews and without artificial light wherever he "
    "can. His fourth film, after a novel, was seen by two million people and paid for the "
    "next three.",
    "Mount Teral\nMount Teral is a dormant volcano of 3,482 metres in the north of the Sarin "
    "range. It last erupted in 1804, when ash fell as far as the coast, 160 kilometres away. "
    "The first ascent is credited to the surveyor Ida Brandt in 1871, who measured its height"
    " with an error of four metres. A research station stands at 2,900 metres.",
    "Ida Brandt\nIda Brandt was a surveyor and a maker of maps. She was employed by the "
    "railway of the Sarin valley from 1866, at first as a clerk. Her map of the range, in "
    "twelve sheets, was in use until 1930. She described her journeys in letters to her "
    "sister Clara, which were found in an attic in 1978 and are kept in the archive of the "
    "city of Maren.",
    "Sarin Valley Railway\nThe railway through the Sarin valley was built between 1865 and "
    "1874 and is 92 kilometres long. It climbs 1,140 metres and has 31 tunnels, the longest "
    "of which took six years. Trains were pulled by steam until 1937. Goods traffic ended in "
    "1991; in summer four trains a day carry walkers to the foot of Mount Teral.",
    "Maren\nMaren is a city of 84,000 people where the Sarin flows into the sea. Its port was "
    "the third of the country until the railway to Lodde was opened in 1902. The city has a "
    "university with a well known faculty of geology, and an archive whose oldest paper, a "
    "grant of market rights, is from 1263. The fish market is held on Tuesdays and Fridays.",
)
QUESTIONS = (
    ("In which year did the yard that built the Orsa ferry burn?", (3, 2, 0, 1)),
    ("How old was the owner of the ferry when her memoirs appeared?", (1, 3, 0, 2)),
    ("What had the writer of The Glass Orchard studied?", (7, 6, 4, 5)),
    ("Who directed the film after the novel that won the Harrow prize?", (5, 6, 7, 4)),
    ("For whom did the surveyor work who first climbed Mount Teral?", (11, 10, 8, 9)),
    ("Where are the letters of Ida Brandt to her sister kept?", (8, 10, 11, 9)),
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


def reader(codec: Codec, names: Sequence[str], *, first: bool = False) -> Template:
    """The prompt of an agent that reads passages, and answers a question over them.

    One that is `first` to read them is asked for something else.
    """
    parts: list[Text | Hole] = []
    for name in names:
        parts += [Hole(name), Text("\n\n")]
    if first:
        parts.append(Text("What do these texts have in common?"))
        return compile_template(codec, [Text("You compare texts.")], parts)
    parts += [Text("Question: "), Hole("question"), Text("\nAnswer in a few words.")]
    return compile_template(codec, [Text("You answer questions.")], parts)


def readings() -> Iterator[tuple[str, list[Read], list[tuple[str, Read]]]]:
    """Which passages are read first, together, and the questions over some of them behind that.

    "short" passages as they are, and "long" ones: each several of these.
    """
    short = {f"passage{number}": text for number, text in enumerate(PASSAGES)}
    firsts: list[Read] = [
        {f"passage{number}": PASSAGES[number] for number in range(start, start + 4)}
        for start in range(0, len(PASSAGES), 4)
    ]
    asked: list[tuple[str, Read]] = [
        (question, {f"passage{number}": short[f"passage{number}"] for number in places})
        for question, places in QUESTIONS
    ]
    yield "short", firsts, asked
    half = len(PASSAGES) // 2
    one, two = "\n\n".join(PASSAGES[:half]), "\n\n".join(PASSAGES[half:])
    story = EXCHANGES[-1][0]
    yield (
        "long",
        [{"story": story, "one": one, "two": two}],
        [
            (QUESTIONS[0][0], {"two": two, "one": one}),
            (QUESTIONS[-1][0], {"one": one, "story": story, "two": two}),
        ],
    )
