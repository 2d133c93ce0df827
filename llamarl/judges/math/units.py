"""The units that an answer may carry or leave out."""

import re

_SPELLINGS = {
    "percent": "% percent",
    "degree": "degrees degree deg",
    "mm": "mm millimeter millimeters millimetre millimetres",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "m": "m meter meters metre metres",
    "km": "km kilometer kilometers kilometre kilometres",
    "inch": "in inch inches",
    "foot": "ft foot feet",
    "yard": "yd yard yards",
    "mile": "mi mile miles",
    "mg": "mg milligram milligrams",
    "g": "g gram grams",
    "kg": "kg kilogram kilograms",
    "pound": "£ lb lbs pound pounds",
    "ounce": "oz ounce ounces",
    "ton": "ton tons",
    "ml": "ml mL milliliter milliliters",
    "l": "l L liter liters litre litres",
    "gallon": "gal gallon gallons",
    "second": "s sec second seconds",
    "minute": "min minute minutes",
    "hour": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "year years",
    "mile/hour": "mph",
    "km/hour": "kmh kph",
    "dollar": "\\$ dollar dollars USD",
    "cent": "¢ cent cents",
    "euro": "€ euro euros EUR",
    "yen": "¥ yen JPY",
    "rupee": "₹ rupee rupees INR",
    "unit": "unit units",
    "radian": "rad radian radians",
}
_UNITS = {spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in spellings.split()}
_ENDING = re.compile(
    r"(?P<number>.*[\d})]|.*\\pi)(?P<gap> ?)(?P<prefix>square |sq\.? |cubic )?"
    r"(?P<unit>%|\\\$|[€£¥₹¢]|[A-Za-z]+(?:/[a-z]+)?)(?P<power>\^\{?[23]\}?| squared| cubed)?"
)
_POWERS = {"square ": 2, "sq ": 2, "sq. ": 2, "cubic ": 3, " squared": 2, " cubed": 3}
_CURRENCY = re.compile(r"([+-]?) ?(\\\$|[€£¥₹]) ?(.+)")
_SCALE = re.compile(r"(.*\d) ?(hundred|thousand|million|billion|trillion|dozen)")
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}

_MAX_WORDS = 4
_NO_NOUNS = frozenset(
    """
    and or not nor but if is isn was are versus vs than except either neither instead otherwise wrong incorrect false
    half halves third thirds fourth fourths quarter quarters fifth fifths sixth sixths seventh sevenths eighth eighths
    ninth ninths tenth tenths twelfth twelfths hundredth hundredths thousandth thousandths millionth millionths
    plus minus times over by divided multiplied mod modulo base percent percentage point remainder root power negative
    squared cubed factorial percentile to through until between less fewer more about approximately roughly nearly
    almost least most ago score scores pair pairs gross double twice triple thrice inverse reciprocal opposite
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety dozen dozens none nothing infinity
    sin cos tan cot sec csc log exp sqrt mod max min gcd lcm pi theta alpha beta
    """.split()  # noqa: SIM905  a list of one word a line would be a hundred lines long
)
"""Words that change the number before them, or say another."""
_NO_BEGINNINGS = ("hundr", "thous", "tausend", "mill", "bill", "trill", "hunder", "cient", "infin")


def split_unit(text: str) -> tuple[str, str]:
    r"""A cleaned text as (number, unit); the unit has one name, such as `cm^2`, or is empty where none is known.

    split_unit("5 square inches")      # ("5", "inch^2")
    split_unit(r"\$5")                # ("5", "dollar")
    split_unit("18 apples")            # ("18 apples", "")
    """
    if match := _CURRENCY.fullmatch(text):
        number, other = split_unit(match[3])
        currency = _UNITS[match[2]]
        return (match[1] + number, currency) if other in ("", currency) else (text, "")
    match = _ENDING.fullmatch(text.replace(" per ", "/"))
    unit = _unit(match["unit"]) if match else None
    if match is None or unit is None or (len(match["unit"]) == 1 and match["unit"].isalpha() and match["gap"] == ""):
        return text, ""  # 5m may be five times m
    powers = [part for part in (match["prefix"], match["power"]) if part]
    if len(powers) > 1:
        return text, ""
    power = _POWERS.get(powers[0]) or int(re.sub(r"\D", "", powers[0])) if powers else 1
    return match["number"], unit if power == 1 else f"{unit}^{power}"


def _unit(spelling: str) -> str | None:
    """The name of a unit, or of one unit per another."""
    if spelling in _UNITS:
        return _UNITS[spelling]
    unit, _, per = spelling.partition("/")
    return f"{_UNITS[unit]}/{_UNITS[per]}" if unit in _UNITS and per in _UNITS else None


def split_nouns(text: str) -> tuple[str, tuple[str, ...]]:
    """A cleaned text as (number, words of what is counted); no words where it does not end in such.

    split_nouns("18 red apples")       # ("18", ("red", "apple"))
    split_nouns("18 hundred")          # ("18 hundred", ())
    """
    words = text.split(" ")
    num_nouns = 0
    while num_nouns < len(words) and words[-1 - num_nouns].isalpha():
        num_nouns += 1
    nouns = [word.casefold() for word in words[len(words) - num_nouns :]]
    is_noun_phrase = 0 < len(nouns) <= _MAX_WORDS and len(nouns) < len(words) and len(nouns[0]) > 2
    if not is_noun_phrase or any(map(_changes_number, nouns)):
        return text, ()
    return " ".join(words[:-num_nouns]), tuple(noun.removesuffix("s") for noun in nouns)


def _changes_number(word: str) -> bool:
    return word in _NO_NOUNS or word.startswith(_NO_BEGINNINGS) or (len(word) == 1 and word != "a")


def split_scale(text: str) -> tuple[str, int]:
    """A cleaned text as (number, factor): `2.5 million` is 2.5 times 1,000,000."""
    match = _SCALE.fullmatch(text)
    return (match[1], _SCALES[match[2]]) if match else (text, 1)
