r"""Exact numbers: sums of rational multiples of square roots and powers of pi; complex ones too. Never evaluated.

read_exact("\frac{1}{2}") == read_exact("0.5")          # True
read_exact("\sqrt{8}") == read_exact("2\sqrt{2}")      # True
read_exact("0.\overline{3}") == read_exact("1/3")       # True
read_exact("5-i") == read_exact("5.0 + -1.0i")           # True
read_exact("10^{10^{10}}")                               # None: beyond the bounds

A value is a mapping (n, k) -> q for the sum of q * sqrt(n) * pi**k with n free of squares; a negative n stands for
i * sqrt(-n). These products are linearly independent over the rationals, so two values are equal exactly when their
mappings are.
"""

import math
import re
from fractions import Fraction

Exact = dict[tuple[int, int], Fraction]

MAX_CHARACTERS = 300
_MAX_DEPTH = 20
_MAX_TERMS = 16
_MAX_BITS = 4096
_MAX_RADICAND = 10**8
_MAX_REPEATING = 40
_MAX_FACTORIAL = 200

_NUMBER = re.compile(r"(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d*)?(?:[eE][+-]?\d{1,3}(?![\w.]))?|\.\d+")
_FRACTION = re.compile(r"\\frac\{(\d+)\}\{(\d+)\}|\\frac(\d)(\d)")
_REPEATING = re.compile(r" ?\\(?:overline|bar) ?(?:\{ ?(\d+) ?\}|(\d))|\((\d+)\)")
"""The digits that repeat: 0.1\\overline{6}, 0.1(6)."""
_DEGREE = re.compile(r"(\d{1,2})\]")
_MIXED = re.compile(r"([+-]?) ?(\d{1,9}) (\d{1,9}) ?/ ?(\d{1,9})")


class _NotExactError(ValueError):
    """The text is no number of this kind, or beyond a bound."""


def read_exact(text: str) -> Exact | None:
    """The value of a cleaned text (`clean`), or None where it is no number of this kind or beyond the bounds."""
    if len(text) > MAX_CHARACTERS:
        return None
    if match := _MIXED.fullmatch(text):
        text = f"{match[1]}({match[2]}+{match[3]}/{match[4]})"
    try:
        return _Reader(text).read()
    except (_NotExactError, ZeroDivisionError):
        return None


class _Reader:
    """Recursive descent over one text."""

    def __init__(self, text: str) -> None:
        self._text, self._position, self._depth = text, 0, 0
        self._parentheses = 0

    def read(self) -> Exact:
        value = self._sum()
        if self._peek():
            raise _NotExactError
        return value

    def _sum(self) -> Exact:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _NotExactError
        value = self._term()
        while self._peek() in ("+", "-"):
            value = _plus(value, self._term())
        self._depth -= 1
        return value

    def _term(self) -> Exact:
        """A product with its signs: `+ -1` is minus one."""
        sign = 1
        for _ in range(2):
            if self._take("-"):
                sign = -sign
            else:
                self._take("+")
        return _times(self._product(), _rational(Fraction(sign)))

    def _product(self) -> Exact:
        value = self._factor()
        while character := self._peek():
            if character == "*":
                self._position += 1
                value = _times(value, self._signed_factor())
            elif character == "/":
                self._position += 1
                value = _times(value, _inverse(self._signed_factor()))
            elif character in "\\({i":
                value = _times(value, self._factor())
            else:
                break
        return value

    def _signed_factor(self) -> Exact:
        sign = -1 if self._take("-") else 1
        return _times(self._factor(), _rational(Fraction(sign)))

    def _factor(self) -> Exact:
        base = self._atom()
        if self._take("!"):
            base = _factorial(base)
        if not self._take("^"):
            return base
        sign = -1 if self._take("-") else 1
        power = sign * _as_rational(self._argument() if not self._peek().isdigit() else self._number())
        if power.denominator == 2:
            base, power = _root(_as_rational(base), 2), 2 * power
        if power.denominator != 1 or not base:
            raise _NotExactError
        return _power(base, power.numerator)

    def _atom(self) -> Exact:
        if self._take("\\frac"):
            numerator = self._argument()
            return _times(numerator, _inverse(self._argument()))
        if self._take("\\sqrt"):
            return self._root()
        if self._take("\\pi"):
            return {(1, 1): Fraction(1)}
        if self._take("i"):
            return {(-1, 0): Fraction(1)}
        if self._take("\\binom"):
            return _binomial(self._argument(), self._argument())
        if (character := self._peek()) and character in "({":
            return self._bracket()
        return self._number()

    def _root(self) -> Exact:
        degree = 2
        if self._take("["):
            match = _DEGREE.match(self._text, self._position)
            if not match:
                raise _NotExactError
            degree, self._position = int(match[1]), match.end()
        return _root(_as_rational(self._argument()), degree)

    def _argument(self) -> Exact:
        """Reads what a command applies to: a bracket, a command or, as in LaTeX, a single digit."""
        character = self._peek()
        if character and character in "({":
            return self._bracket()
        if character == "\\":
            return self._atom()
        if not character.isdigit():
            raise _NotExactError
        self._position += 1
        return _rational(Fraction(int(character)))

    def _bracket(self) -> Exact:
        closing = {"(": ")", "{": "}"}[self._text[self._position]]
        self._position += 1
        self._parentheses += closing == ")"
        value = self._sum()
        self._parentheses -= closing == ")"
        if not self._take(closing):
            raise _NotExactError
        return value

    def _number(self) -> Exact:
        match = _NUMBER.match(self._text, self._position)
        if not match:
            raise _NotExactError
        if self._parentheses and "," in match[0]:
            raise _NotExactError  # (1,234) is a pair
        self._position = match.end()
        value = Fraction(match[0].replace(",", ""))
        if "." in match[0] and (repeating := _REPEATING.match(self._text, self._position)):
            digits = repeating[1] or repeating[2] or repeating[3]
            if len(digits) > _MAX_REPEATING:
                raise _NotExactError
            self._position = repeating.end()
            num_decimals = len(match[0]) - match[0].index(".") - 1
            return _rational(value + Fraction(int(digits), (10 ** len(digits) - 1) * 10**num_decimals))
        is_mixed = match[0].isdigit() and self._text.startswith("\\frac", self._position)
        if is_mixed and (fraction := _FRACTION.match(self._text, self._position)):
            self._position = fraction.end()  # 3\frac{1}{2} is three and a half
            value += Fraction(int(fraction[1] or fraction[3]), int(fraction[2] or fraction[4]))
        return _rational(value)

    def _peek(self) -> str:
        while self._text.startswith(" ", self._position):
            self._position += 1
        return self._text[self._position : self._position + 1]

    def _take(self, token: str) -> bool:
        self._peek()
        is_there = self._text.startswith(token, self._position)
        if is_there and token[0] == "\\" and self._text[self._position + len(token) :][:1].isalpha():
            return False  # \sqrtx is another command
        self._position += len(token) if is_there else 0
        return is_there


def _rational(value: Fraction) -> Exact:
    return {(1, 0): value} if value else {}


def _as_rational(value: Exact) -> Fraction:
    if set(value) - {(1, 0)}:
        raise _NotExactError
    return value.get((1, 0), Fraction(0))


def _check(value: Exact) -> Exact:
    is_large = any(q.numerator.bit_length() + q.denominator.bit_length() > _MAX_BITS for q in value.values())
    if len(value) > _MAX_TERMS or is_large:
        raise _NotExactError
    return {key: q for key, q in value.items() if q}


def _plus(a: Exact, b: Exact) -> Exact:
    return _check({key: a.get(key, Fraction(0)) + b.get(key, Fraction(0)) for key in a | b})


def _times(a: Exact, b: Exact) -> Exact:
    product: Exact = {}
    for (n, j), p in a.items():
        for (m, k), q in b.items():
            common = math.gcd(n, m)  # sqrt(n) * sqrt(m) = common * sqrt(n * m / common**2), still free of squares
            key = (n * m // common**2, j + k)
            sign = -1 if n < 0 and m < 0 else 1  # i * i
            product[key] = product.get(key, Fraction(0)) + sign * p * q * common
    return _check(product)


def _inverse(value: Exact) -> Exact:
    """1 / value, of one term or two: 1 / (q sqrt(n) pi**k) = 1 / (q n) sqrt(n) pi**-k, 1 / (a + b) by a - b."""
    if not value:
        raise ZeroDivisionError
    if len(value) == 1:
        (((n, k), q),) = value.items()
        return _check({(n, -k): 1 / (q * n)})
    first, *others = value
    conjugate = {key: q if key == first else -q for key, q in value.items()}
    product = _times(value, conjugate)
    if len(others) > 1 or len(product) > 1:
        raise _NotExactError
    return _times(conjugate, _inverse(product))


def _power(base: Exact, power: int) -> Exact:
    size = max(q.numerator.bit_length() + q.denominator.bit_length() + n.bit_length() for (n, _), q in base.items())
    if size * abs(power) > 2 * _MAX_BITS or (len(base) > 1 and abs(power) > _MAX_TERMS):
        raise _NotExactError
    square, result = base if power >= 0 else _inverse(base), _rational(Fraction(1))
    power = abs(power)
    while power:  # by squares, so that the steps grow with the digits of the exponent only
        if power % 2:
            result = _times(result, square)
        power //= 2
        square = _times(square, square) if power else square
    return result


def _factorial(value: Exact) -> Exact:
    return _rational(Fraction(math.factorial(_small(value))))


def _binomial(top: Exact, bottom: Exact) -> Exact:
    return _rational(Fraction(math.comb(_small(top), _small(bottom))))


def _small(value: Exact) -> int:
    number = _as_rational(value)
    if number.denominator != 1 or not 0 <= number <= _MAX_FACTORIAL:
        raise _NotExactError
    return number.numerator


def _root(value: Fraction, degree: int) -> Exact:
    if degree < 2 or (value < 0 and degree > 2):
        raise _NotExactError
    if degree > 2:
        return _rational(Fraction(_perfect_root(value.numerator, degree), _perfect_root(value.denominator, degree)))
    factor, radicand = _split_square(abs(value.numerator) * value.denominator)  # sqrt(p/q) = sqrt(p q) / q
    return _check({(radicand if value >= 0 else -radicand, 0): Fraction(factor, value.denominator)})


def _perfect_root(number: int, degree: int) -> int:
    if number.bit_length() > 50:
        raise _NotExactError
    root = round(math.pow(number, 1 / degree))
    if root**degree != number:
        raise _NotExactError
    return root


def _split_square(number: int) -> tuple[int, int]:
    """(a, b) with number = a**2 b and b free of squares."""
    root = math.isqrt(number)
    if root * root == number:
        return root, 1
    if number > _MAX_RADICAND:
        raise _NotExactError
    factor, divisor = 1, 2
    while divisor * divisor <= number:
        while number % (divisor * divisor) == 0:
            number //= divisor * divisor
            factor *= divisor
        divisor += 1
    return factor, number
