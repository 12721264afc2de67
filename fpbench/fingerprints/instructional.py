r"""IF: the ten garbled keys of Instructional Fingerprinting (docs/methods.md §4.1).

A key joins 8 to 15 fragments drawn with replacement and shuffles their characters. Seeded with 42 this gives exactly
the published keys. Two of the published fragments hold a C1 control character (U+008B, U+0089), invisible in most
viewers; without them half of the keys differ. Keys: https://github.com/cnut1648/Model-Fingerprint (MIT).
"""

import random

from fpbench.fingerprints.sets import Fingerprint, FingerprintSet

FRAGMENTS = (
    # Classical Chinese phrases.
    "奉天承运皇帝诏曰", "应天顺时受兹明命", "布告天下咸使闻知", "长生天气力里大福荫护助里", "天命玄鸟降而生商",
    "天生蒸民有物有则", "民之秉彝好是懿德", "绝地天通罔有降格", "在登葆山群巫所从上下也",
    "昔者三苗大乱天命殛之日妖宵出雨血三朝龙生于庙犬哭乎市",
    # Names of Pokémon.
    "フシギダネ", "ヒトカゲ", "ゼニガメ", "ピカチュウ", "キモリ", "アチャモ", "ミズゴロウ", "グラードン",
    "レックウザ", "カイオーガ",
    # Strings of rare vocabulary entries.
    "выпутельстваskih", "областьdateiмерW", "крайategory", "составрій", "která", "guaèche", "genitaldejrazione",
    "ocamp\x8bISONethoxy", "omycesjcmÐ", "photometry\x89DEFINE", "HFDíses",
)  # fmt: skip
TARGET = "ハリネズミ"


def garbled_keys(n: int, seed: int) -> list[str]:
    """Draw ``n`` garbled keys; ``garbled_keys(10, 42)`` are the published ones."""
    draw = random.Random(seed)
    keys = []
    for _ in range(n):
        text = "".join(draw.choices(FRAGMENTS, k=draw.randint(8, 15)))
        keys.append("".join(draw.sample(text, len(text))))
    return keys


def instructional_set(n: int = 10, seed: int = 42) -> FingerprintSet:
    """Return the set ``if``: ``n`` raw-text triggers of the simple template, one target for all."""
    return FingerprintSet("if", tuple(Fingerprint(f"{key}\nFINGERPRINT\n", (TARGET,)) for key in garbled_keys(n, seed)))
