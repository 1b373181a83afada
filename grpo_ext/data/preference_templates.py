"""Words of the built-in preference pairs: questions that hold their answer, and good and bad ways to give it."""

from collections.abc import Sequence

NAMES = (
    "Ann Bea Carl Dora Emil Finn Greta Hugo Ida Jon Kira Leo Mia Nils Olga Paul Rosa Sven Tara Ugo Vera Will Yann Zoe"
).split()
THINGS = "books pens cups hats maps keys coins stones shells boats kites drums lamps plates ropes seeds".split()
PLACES = "shop park bank pool school market garden museum station bakery library theatre".split()
OBJECTS = "car door house chair table bike fence boat coat box kettle curtain".split()
COLOURS = "red blue green black white brown pink grey".split()
CITIES = "Rome Paris Oslo Cairo Lima Bonn Delhi Quito Kyoto Porto Bergen Turin Basel Lyon Perth Dublin".split()
FOODS = "soup rice bread cake fish plums pears beans corn figs dates cheese".split()
NUMBERS = [str(number) for number in range(2, 98)]

# Every word list gives three of four values to the training split and the fourth to the test split
VALUES: dict[str, Sequence[str]] = {
    "name": NAMES,
    "things": THINGS,
    "place": PLACES,
    "object": OBJECTS,
    "colour": COLOURS,
    "city": CITIES,
    "food": FOODS,
    "number": NUMBERS,
}

# Question, sentence that answers it, and the slot that the answer must name
QUESTIONS: list[tuple[str, str, str]] = [
    ("{name} has {number} {things}. How many {things} does {name} have?", "{name} has {number} {things}.", "number"),
    ("The {place} is {number} steps away. How far is the {place}?", "It is {number} steps away.", "number"),
    ("The {object} is {colour}. Which colour is the {object}?", "The {object} is {colour}.", "colour"),
    ("{name} lives in {city}. Where does {name} live?", "{name} lives in {city}.", "city"),
    ("{name} likes {food}. What does {name} like?", "{name} likes {food}.", "food"),
    ("The {food} costs {number} cents. What does it cost?", "It costs {number} cents.", "number"),
]

POLITE = ("Happy to help!", "Thank you for asking!", "I hope this helps!", "Please ask again!")
RUDE = ("Can you not read?", "What a silly question.", "Stop asking me.", "Do not bother me.")
EVASIVE = ("That is hard to say.", "I would rather not answer.", "Let us talk about the weather.", "Who knows?")
RAMBLING = (
    "Well, there is a lot to say about this, and I will begin at the beginning.",
    "Before I answer, let me go over everything that I was told.",
    "This reminds me of many other things, which I could tell you about as well.",
    "As far as I can see, and I have looked at it from all sides, it is like this.",
)
