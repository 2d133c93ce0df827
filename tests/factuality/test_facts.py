from pathlib import Path

import pytest
from scripted_models import FACTS, RELATIONS

from llamarl.core.errors import ConfigError, DataError
from llamarl.factuality import FactTable


@pytest.fixture
def table(tmp_path: Path) -> FactTable:
    (tmp_path / "facts.csv").write_text(FACTS)
    (tmp_path / "relations.toml").write_text(RELATIONS)
    return FactTable.read([str(tmp_path / "facts.csv")], tmp_path / "relations.toml")


@pytest.mark.parametrize(
    ("text", "subject", "found"),
    [
        ("The city of Lyon is located in France.", None, [("Lyon", "country", "France", True)]),
        ("Lyon, located in Spain, is old.", None, [("Lyon", "country", "Spain", False)]),
        # the longest name wins, and no name inside the subject's is a value
        ("Guatemala City is located in Mexico.", None, [("Guatemala City", "country", "Mexico", False)]),
        ("Mexico City is located in Mexico.", None, [("Mexico City", "country", "Mexico", True)]),
        # the value is the one behind the cue
        ("From Spain one flies to Lyon, a city in France.", None, [("Lyon", "country", "France", True)]),
        ("Munich is a city in Deutschland.", None, [("Munich", "country", "Germany", True)]),  # an alias
        # numbers: within 10 %, with separators and scales; Nice has none in the table
        ("Lyon has a population of 500,000.", None, [("Lyon", "population", "500000", True)]),
        ("Lyon has a population of 0.4 million.", None, [("Lyon", "population", "400000", False)]),
        ("Some 1.5 million inhabitants live in Munich.", None, [("Munich", "population", "1500000", True)]),
        ("Nice has a population of 340,000.", None, []),
        (
            "Lyon is a city in Spain with a population of 520,000.",
            None,
            [("Lyon", "country", "Spain", False), ("Lyon", "population", "520000", True)],
        ),
        # who is meant where nobody is named
        ("It is located in Spain.", "Munich", [("Munich", "country", "Spain", False)]),
        ("It is located in Spain.", None, []),
        ("The city is located in Spain.", "Munich", [("Munich", "country", "Spain", False)]),
        ("It is a city in Mexico City.", "Munich", []),
        ("It is a city in the Spain Sea.", "Munich", []),
        ("It is a city in Spain, Europe.", "Munich", [("Munich", "country", "Spain", False)]),
        ("Lyon is located in Spain.", "Munich", [("Lyon", "country", "Spain", False)]),
        ("Oslo is located in Spain.", "Munich", []),
        # where rules would guess, they are silent
        ("Lyon is not located in Spain.", None, []),
        ("Lyon isn't located in Spain.", None, []),
        ("Lyon lies between France and Spain.", None, []),
        ("It is nice to be located in France.", None, []),
        ("Lyon is located in Europe.", None, []),
        ("里昂位于法国。", None, []),
        ("", None, []),
    ],
)
def test_what_sentences_say(table: FactTable, text: str, subject: str | None, found: list) -> None:
    readings = table.read_claim(text, subject)
    assert [(each.subject, each.relation, each.value, each.is_right) for each in readings] == found


def test_why_nothing_is_read(table: FactTable) -> None:
    assert table.explain_silence("Lyon is not located in Spain.") == "negated"
    assert table.explain_silence("Oslo is located in Spain.") == "no_known_subject"
    assert table.explain_silence("Lyon is old.") == "no_known_relation"


def test_accents_and_case_do_not_matter_in_names() -> None:
    table = FactTable([("Zürich", "country", "Switzerland"), ("Malmö", "country", "Sweden")])
    (reading,) = table.read_claim("The country of Zurich is Switzerland.")
    assert reading.is_right and table.name_subject("MALMO") == "Malmö"
    assert table.name_subject("Malmo and Zurich") is None


def test_facts_are_searched_by_subject_and_the_asked_relation_comes_first(table: FactTable) -> None:
    assert [each.id for each in table.search("population of Lyon", 5)] == ["Lyon/population", "Lyon/country"]
    assert table.search("population of Oslo", 5) == []


def test_tables_come_from_files_and_queries(tmp_path: Path, table: FactTable) -> None:
    import duckdb

    csv, parquet, query = (tmp_path / name for name in ("facts.csv", "facts.parquet", "facts.sql"))
    duckdb.sql(f"COPY (SELECT * FROM read_csv('{csv}', all_varchar = true)) TO '{parquet}'")
    query.write_text(
        f"SELECT city AS subject, 'country' AS relation, land AS object FROM "
        f"(SELECT subject AS city, object AS land FROM read_csv('{csv}') WHERE relation = 'country')"
    )
    again = FactTable.read([str(parquet)], tmp_path / "relations.toml")
    assert again.record() == table.record()
    (reading,) = FactTable.read([str(query)]).read_claim("The country of Lyon is Spain.")
    assert reading.expected == ("France",)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("f.csv", "subject,object\na,b\n", "f.csv: no column 'relation' (columns: subject, object)"),
        ("f.csv", "subject,relation,object\na,b,c\na,,c\n", "f.csv, row 2, field 'relation': empty"),
        ("f.csv", "subject,relation,object\n", "the table of facts is empty"),
        ("f.sql", "SELECT nothing FROM nowhere", "f.sql: no readable table of facts"),
        ("f.xlsx", "", "f.xlsx: tables end in"),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises((DataError, ConfigError)) as error:
        FactTable.read([str(tmp_path / name)])
    assert words in str(error.value)


def test_bad_relations_are_named(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[county]\ncues = ['in']\n")
    (tmp_path / "f.csv").write_text(FACTS)
    with pytest.raises(ConfigError, match="the table has no relation 'county'"):
        FactTable.read([str(tmp_path / "f.csv")], tmp_path / "r.toml")
    (tmp_path / "r.toml").write_text("[country]\nqes = ['in']\n")
    with pytest.raises(ConfigError, match=r"r\.toml: country.*qes: unknown key"):
        FactTable.read([str(tmp_path / "f.csv")], tmp_path / "r.toml")
