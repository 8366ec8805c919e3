"""Words that are never replaced, nor put in the place of another."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_ENGLISH = """
a about above across after afterwards again against ain all almost alone along already also
although always am amid among amongst an and another any anybody anyhow anyone anything anyway
anywhere are aren aren't around as at away be became because become becomes becoming been
before beforehand behind being below beneath beside besides between beyond both but by can
can't cannot could couldn couldn't despite did didn didn't do does doesn doesn't doing don
don't done down due during each either else elsewhere enough etc even ever every everybody
everyone everything everywhere except few for former formerly from further furthermore had
hadn hadn't has hasn hasn't have haven haven't having he hence her here hereby herein hers
herself him himself his how however i if in indeed inside instead into is isn isn't it its
itself just least less lest let ll ma many may maybe me meanwhile might mightn mightn't mine
more moreover most mostly much must mustn mustn't my myself namely near needn needn't neither
never nevertheless no nobody none nonetheless nor not nothing now nowhere of off often on once
one only onto or other others otherwise ought our ours ourselves out outside over own per
perhaps quite rather re same shall shan shan't she should shouldn shouldn't since so some
somebody somehow someone something sometime sometimes somewhere still such than that the their
theirs them themselves then thence there thereafter thereby therefore therein thereof these
they this those though through throughout thru thus till to together too toward towards under
unless unlike until unto up upon us ve versus very via was wasn wasn't we were weren weren't
what whatever when whence whenever where whereas whereby wherein wherever whether which
whichever while whilst who whoever whole whom whomever whose why will with within without won
won't would wouldn wouldn't yes yet you your yours yourself yourselves
"""
ENGLISH = frozenset(_ENGLISH.split())


def load_stop_words(path: str | Path) -> frozenset[str]:
    """Read a list of stop words.

    Args:
        path: a text file in UTF-8, one word a line; empty lines and lines that begin with ``#``
            do not count.

    Returns:
        The words, in folded case.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a text in UTF-8.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the stop words in {path} are not a text in UTF-8: {error}") from error
    lines = (line.strip() for line in text.splitlines())
    return folded(line for line in lines if line and not line.startswith("#"))


def folded(words: Iterable[str]) -> frozenset[str]:
    """Words as they are compared: in folded case, with straight apostrophes."""
    return frozenset(word.casefold().replace("’", "'") for word in words)
