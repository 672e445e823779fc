"""What the reviews of the generated `sentiment` task are about: scenes, their nouns and their plain facts.

A scene gives the nouns and the neutral sentences around an opinion. Nouns marked `*_unseen` stand in the
test split only. Facts carry no opinion; their slots (`{day}`, `{person}`, ...) are filled from `FILLERS`.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ASIDES", "FILLERS", "GENERAL_FACTS", "PEOPLE", "SCENES", "Scene"]


@dataclass(frozen=True)
class Scene:
    """Nouns and neutral sentences of one kind of review.

    Attributes
    ----------
    things, things_unseen : tuple of str
        Singular nouns that can be what the review is about ("hotel").
    aspects, aspects_unseen : tuple of str
        Parts of it, without an article; a trailing `+` marks a plural ("room", "waiters+").
    before : str
        The earlier one it is compared with, after an adjective ("hotel we stayed at last year").
    again : str
        The act of choosing it again ("stay there again").
    got : str
        How the writer came to it, with the noun in `{thing}` ("stayed at a {thing}" without the article).
    facts : tuple of str
        Whole neutral sentences with slots.
    """

    things: tuple[str, ...]
    things_unseen: tuple[str, ...]
    aspects: tuple[str, ...]
    aspects_unseen: tuple[str, ...]
    before: str
    again: str
    got: str
    facts: tuple[str, ...]


FILLERS: dict[str, tuple[str, ...]] = {
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "month": ("January", "March", "April", "May", "June", "August", "September", "October", "November"),
    "number": ("two", "three", "four", "five", "six", "seven", "eight"),
    "person": (
        "sister",
        "brother",
        "mother",
        "father",
        "neighbour",
        "cousin",
        "flatmate",
        "colleague",
        "daughter",
        "son",
        "wife",
        "husband",
        "boss",
        "uncle",
        "aunt",
    ),
    "dish": (
        "soup",
        "lamb",
        "pasta",
        "fish",
        "risotto",
        "curry",
        "salad",
        "duck",
        "omelette",
        "stew",
        "pizza",
    ),
    "city": (
        "Lisbon",
        "Prague",
        "Dublin",
        "Porto",
        "Vienna",
        "Oslo",
        "Leeds",
        "Lyon",
        "Boston",
        "Ghent",
        "Turin",
    ),
    "colour": ("black", "white", "grey", "green", "blue", "red"),
    "room": ("kitchen", "study", "living room", "bedroom", "hallway", "garage"),
    "way": ("by train", "by car", "by bus", "on foot", "by taxi", "by bicycle"),
}

PEOPLE: tuple[str, ...] = (
    "my sister",
    "my brother",
    "my neighbour",
    "a colleague",
    "a friend of mine",
    "the local paper",
    "my cousin",
    "my boss",
    "the man at the desk",
    "one reviewer",
    "my flatmate",
    "my uncle",
    "somebody online",
    "my dentist",
)

# Opinions about something else: they carry an opinion word and say nothing about what is reviewed.
ASIDES: tuple[str, ...] = (
    "I had just come from {a adj?} day at work.",
    "The week had been {adj?} for reasons that have nothing to do with this.",
    "My {person} was in {a adj?} mood that day, as usual.",
    "My {person} was busy telling me about {a adj?} football match.",
    "On the radio they were talking about {a adj?} football season.",
    "My {person} spent the time reading {a adj?} novel about sailors.",
    "Afterwards my {person} sang {a adj?} song about a parrot.",
    "My {person} prefers a {thing} in {city}, which {other} calls {adj?}.",
    "There is another {thing} in {city} that {other} calls {adj?}, but I do not know it.",
    "{Other} once wrote {a adj?} article about something similar, which I have not read.",
    "Years ago my {person} had {a adj?} {thing}, but that is another story.",
    "Earlier that day my {person} had told me {a adj?} story about a lost umbrella.",
)

GENERAL_FACTS: tuple[str, ...] = (
    "It was a {day} in {month}.",
    "That was in {month}, on a {day}.",
    "I wrote this on a {day}, {number} days later.",
    "My {person} had asked me to write this.",
    "Somebody at work had asked me about it.",
    "It is about {number} months ago now.",
    "My {person} paid, since it was my turn the last time.",
    "I have {number} brothers, and one of them lives in {city}.",
)

SCENES: tuple[Scene, ...] = (
    Scene(
        things=("restaurant", "bistro", "diner", "pizzeria", "pub", "place"),
        things_unseen=("brasserie", "steakhouse", "tavern", "noodle bar"),
        aspects=(
            "food",
            "service",
            "menu",
            "wine list",
            "waiters+",
            "starters+",
            "main course",
            "soup",
            "bread",
        ),
        aspects_unseen=(
            "dessert",
            "atmosphere",
            "side dishes+",
            "coffee",
            "kitchen",
            "cocktails+",
            "seating",
        ),
        before="place we used to go to",
        again="eat there again",
        got="ate at",
        facts=(
            "I had the {dish}, and my {person} had the {dish2}.",
            "We were {number} people and sat near the door.",
            "We came {way} and got a table by the window.",
            "It is open until {number} in the morning on a {day}.",
            "The {dish} comes with rice or potatoes.",
            "My {person} does not eat meat and chose the {dish}.",
            "There are {number} tables outside and {number2} inside.",
            "They also do the {dish} as a takeaway on a {day}.",
        ),
    ),
    Scene(
        things=("film", "movie", "comedy", "thriller", "documentary", "drama"),
        things_unseen=("western", "sequel", "remake", "biopic"),
        aspects=(
            "plot",
            "acting",
            "soundtrack",
            "script",
            "ending",
            "dialogue",
            "special effects+",
            "lead actor",
        ),
        aspects_unseen=("camera work", "costumes+", "opening scene", "supporting cast", "editing", "pacing"),
        before="one I saw last week",
        again="watch it again",
        got="saw",
        facts=(
            "I saw it on a {day} with my {person}.",
            "It runs for two hours and {number} minutes.",
            "It is set in {city} in the nineteen-fifties.",
            "The story begins in {city} and ends in {city2}.",
            "It is about a teacher who moves to {city} with {number} children.",
            "The book it is based on came out {number} years ago.",
            "There were {number} of us in the row, and my {person} brought popcorn.",
            "I watched it in the original language with subtitles.",
        ),
    ),
    Scene(
        things=("novel", "book", "biography", "crime story", "audiobook"),
        things_unseen=("memoir", "short story collection", "travelogue"),
        aspects=(
            "plot",
            "writing",
            "translation",
            "first chapter",
            "characters+",
            "ending",
            "dialogue",
            "cover",
        ),
        aspects_unseen=("narrator", "prose", "illustrations+", "second half", "preface"),
        before="one I read last month",
        again="read it again",
        got="read",
        facts=(
            "It has {number} parts and about four hundred pages.",
            "I read it on the train to {city}.",
            "My {person} gave it to me in {month}.",
            "It is set in {city} during one summer.",
            "The story is told by a man who repairs clocks in {city}.",
            "The author lives in {city} and has written {number} others.",
            "I finished it on a {day}, in {number} evenings.",
            "We read it for our book club in {month}.",
        ),
    ),
    Scene(
        things=("phone", "laptop", "camera", "tablet", "printer", "speaker"),
        things_unseen=("smartwatch", "projector", "monitor", "e-reader"),
        aspects=(
            "battery",
            "build quality",
            "sound",
            "software",
            "buttons+",
            "manual",
            "delivery",
            "packaging",
        ),
        aspects_unseen=("display", "customer support", "charging cable", "set-up", "wireless connection"),
        before="one I had before",
        again="buy it again",
        got="bought",
        facts=(
            "I ordered it on a {day} and it came {number} days later.",
            "I bought it in {month} for my {person}.",
            "Mine is the {colour} one.",
            "It comes with {number} cables and a {colour} pouch.",
            "I use it in the {room} for about {number} hours a day.",
            "My {person} has the {colour} version of it.",
            "It replaces one that I had used for {number} years.",
            "You can get it in {colour} or in {colour2}.",
        ),
    ),
    Scene(
        things=("kettle", "vacuum cleaner", "backpack", "office chair", "coffee maker", "desk lamp"),
        things_unseen=("toaster", "suitcase", "mattress", "blender"),
        aspects=("design", "build quality", "finish", "instructions+", "delivery", "packaging", "material"),
        aspects_unseen=("workmanship", "warranty service", "spare parts+", "seller"),
        before="one I had before",
        again="buy it again",
        got="bought",
        facts=(
            "I ordered it on a {day} and it came {number} days later.",
            "It stands in the {room} next to the window.",
            "Mine is the {colour} one.",
            "My {person} has the same one in {colour}.",
            "It weighs about {number} pounds.",
            "I have used it for {number} weeks now.",
            "It was a present from my {person}.",
            "You can get it in {colour} or in {colour2}.",
        ),
    ),
    Scene(
        things=("hotel", "guest house", "hostel", "campsite", "holiday flat"),
        things_unseen=("resort", "lodge", "inn", "motel"),
        aspects=("room", "breakfast", "staff", "bed", "view", "bathroom", "location", "reception", "towels+"),
        aspects_unseen=("pool", "balcony", "shower", "lobby", "mattresses+", "housekeeping"),
        before="one we stayed at last year",
        again="stay there again",
        got="stayed at",
        facts=(
            "We stayed for {number} nights in {month}.",
            "We came {way} from {city}.",
            "Our room was on the {colour} corridor, {number} doors from the lift.",
            "Breakfast is served from {number} until ten.",
            "There is a bus to the centre every {number} minutes.",
            "I travelled with my {person} on the way to {city}.",
            "We had booked it {number} weeks in advance.",
            "My {person} had the room across the hall.",
        ),
    ),
    Scene(
        things=("tour", "boat trip", "city walk", "museum", "day trip"),
        things_unseen=("safari", "cruise", "gallery", "excursion"),
        aspects=(
            "guide",
            "organisation",
            "schedule",
            "lunch",
            "audio guide",
            "views+",
            "explanations+",
            "route",
        ),
        aspects_unseen=("exhibits+", "gift shop", "transfer", "commentary", "itinerary"),
        before="one we did in the spring",
        again="book it again",
        got="booked",
        facts=(
            "We were a group of {number} and started at noon.",
            "It starts near the station in {city}.",
            "It took {number} hours with a break in between.",
            "We did it on a {day} in {month}.",
            "My {person} had bought the tickets {number} days before.",
            "They offer it in {number} languages.",
            "Most of the others had come {way}.",
            "It ends at the bridge, {number} streets from the start.",
        ),
    ),
    Scene(
        things=("concert", "musical", "opera", "show", "play"),
        things_unseen=("ballet", "recital", "cabaret"),
        aspects=("music", "singing", "stage design", "first act", "orchestra", "acoustics+", "lighting"),
        aspects_unseen=("choreography", "encore", "soloist", "second act", "direction"),
        before="one I heard in the autumn",
        again="see it again",
        got="went to",
        facts=(
            "We sat in row {number}, to the left of the aisle.",
            "It began at {number} in the evening.",
            "There was one break, and the bar had {number} kinds of juice.",
            "The tickets were a present from my {person}.",
            "They will play in {city} next, and then in {city2}.",
            "My {person} had come all the way from {city}.",
            "It was the last of {number} evenings.",
            "I went on a {day} with {number} people from work.",
        ),
    ),
)
