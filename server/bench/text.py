"""Text that no dataset had to be downloaded for: sentences of common English words, by a generator."""

from __future__ import annotations

from random import Random

_TEXT = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had an "
    "they which one you were all her she there would their we him been has when who will no more if out so "
    "up said what its about than into them can only other time new some could these two may first then do "
    "any like my now over such our man me even most made after also did many off before must well back "
    "through years much where your way down should because long each just state those people too mister "
    "how little good world make very year still see own work men day get here old between both life being "
    "under three never know same last another while us might great go come since against right came take "
    "used himself few house use place during high without again home around small however found thought "
    "went say part once general upon school every does got united number hand course water until away "
    "always something fact less though public put think almost enough far took head yet government system "
    "better set told nothing night end why called eyes find going look asked later point knew program city "
    "business give group toward young days let room word side social given present several order second "
    "possible rather face per among form important often things looked early white case become large need "
    "big four within felt along children saw best church ever least power light thing seemed family interest "
    "want members mind country area others done turned although open door service certain kind different "
    "problem began help sense means whole matter history garden letter river music question answer morning "
    "winter summer market paper engine table window animal simple strange quiet travel explain reason story"
)
_WORDS = _TEXT.split()


def make_text(rng: Random, num_words: int) -> str:
    """`num_words` words in sentences of 6 to 18."""
    words = rng.choices(_WORDS, k=num_words)
    start = 0
    while start < num_words:
        end = min(start + rng.randint(6, 18), num_words)
        words[start] = words[start].capitalize()
        words[end - 1] += "."
        start = end
    return " ".join(words)
