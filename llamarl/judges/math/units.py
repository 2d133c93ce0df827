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
    "pound": "lb lbs pound pounds",
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
    "mph": "mph",
    "km/h": "km/h kmh kph",
    "m/s": "m/s",
    "dollar": "dollar dollars USD",
    "cent": "cent cents",
    "euro": "euro euros EUR",
    "unit": "unit units",
    "radian": "rad radian radians",
}
_UNITS = {spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in spellings.split()}
_ENDING = re.compile(
    r"(?P<number>.*[\d})]|.*\\pi)(?P<gap> ?)(?P<prefix>square |sq\.? |cubic )?(?P<unit>%|[A-Za-z]+(?:/[a-z])?)"
    r"(?P<power>\^\{?[23]\}?| squared| cubed)?"
)
_POWERS = {"square ": 2, "sq ": 2, "sq. ": 2, "cubic ": 3, " squared": 2, " cubed": 3}


def split_unit(text: str) -> tuple[str, str]:
    """A cleaned text as (number, unit); the unit has one name, such as `cm^2`, or is empty where none is known.

    split_unit("5 square inches")      # ("5", "inch^2")
    split_unit("18 apples")            # ("18 apples", "")
    """
    match = _ENDING.fullmatch(text)
    unit = _UNITS.get(match["unit"]) if match else None
    if match is None or unit is None or (len(match["unit"]) == 1 and match["unit"].isalpha() and match["gap"] == ""):
        return text, ""  # 5m may be five times m
    powers = [part for part in (match["prefix"], match["power"]) if part]
    if len(powers) > 1:
        return text, ""
    power = _POWERS.get(powers[0]) or int(re.sub(r"\D", "", powers[0])) if powers else 1
    return match["number"], unit if power == 1 else f"{unit}^{power}"
