"""Sets of our own for `retrieval.py`, drawn by a seed: what users ask that public sets do not.

newer        200 pairs of statements of one shape about one thing, days to years old; the evidence is the newer one
verbatim     a statement and its negation; the query is the statement
identifiers  ten kinds of identifiers in another spelling, among 10,000 others
scripts      Chinese, Japanese, Korean, Thai, Arabic and German words, among others of their language
"""

import random
from collections.abc import Iterator

DAY = 86_400.0
Memories = dict[str, tuple[str, float]]
Asked = list[tuple[str, str]]  # question, id of its evidence
Set = tuple[Memories, Asked]

WEEK = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
GROUPS = "choir|chess club|book circle|rowing team|pottery class|parish council|film society|allotment group".split(
    "|"
)
TOWNS = "Lisbon Graz Turin Oslo Ghent Porto Malmo Brno Cork Bergen Arles Split".split()
NAMES = "Ivo Ada Bo Mira Tarek Lena Nils Oda Pavel Rosa Siv Tomas Uma Viktor Wanda Yara".split()
COLOURS = "red green yellow silver orange purple white brown".split()
SHAPES = (
    ("The {x} meets on {v}s.", "When does the {x} meet?", GROUPS, WEEK),
    ("{x} lives in {v} now.", "Where does {x} live?", NAMES, TOWNS),
    ("{x} drives a {v} car.", "What colour is {x}'s car?", NAMES, COLOURS),
    ("The meeting of the {x} is held in {v}.", "Where is the meeting of the {x} held?", GROUPS, TOWNS),
)
AGES = (1.0, 3.0, 10.0, 40.0, 200.0, 800.0, 2000.0)  # days


def newer(seed: int, now: float, count: int = 200) -> Set:
    rng = random.Random(seed)
    memories: Memories = {}
    asked: Asked = []
    for number in range(count):
        text, question, things, values = SHAPES[number % len(SHAPES)]
        thing = f"{rng.choice(things)} of {rng.choice(TOWNS)}{number}"
        old, new = rng.sample(values, 2)
        age = rng.choice(AGES)
        pair = [(f"old{number}", text.format(x=thing, v=old), now - age * rng.uniform(1.2, 3.0) * DAY)]
        pair.append((f"new{number}", text.format(x=thing, v=new), now - age * DAY))
        rng.shuffle(pair)
        memories |= {id: (words, time) for id, words, time in pair}
        asked.append((question.format(x=thing), f"new{number}"))
    return memories, asked


def verbatim(seed: int, now: float, count: int = 100) -> Set:
    rng = random.Random(seed)
    memories: Memories = {}
    asked: Asked = []
    for number in range(count):
        place = f"shop number {number} in {rng.choice(TOWNS)}"
        day = rng.choice(WEEK)
        texts = [f"The {place} is open on {day}s.", f"The {place} is not open on {day}s."]
        rng.shuffle(texts)
        memories |= {f"v{number}-{i}": (text, now - (i + 1) * DAY) for i, text in enumerate(texts)}
        wanted = rng.randrange(2)
        asked.append((texts[wanted], f"v{number}-{wanted}"))
    return memories, asked


def identifiers(seed: int, now: float, others: int = 10_000, each: int = 10) -> Set:
    rng = random.Random(seed)
    memories: Memories = {}
    asked: Asked = []
    for number in range(others):
        stored, _ = _identifier(rng, number % 10)
        memories[f"o{number}"] = (f"Note {number}: the reference is {stored}.", now - DAY)
    for number in range(10 * each):
        stored, spelt = _identifier(rng, number % 10)
        memories[f"i{number}"] = (f"The parcel of {rng.choice(NAMES)} has the reference {stored}.", now - DAY)
        asked.append((f"Whose is {spelt}?", f"i{number}"))
    return memories, asked


def _identifier(rng: random.Random, kind: int) -> tuple[str, str]:
    """As stored, and as it is asked for."""

    def digits(count: int) -> str:
        return "".join(rng.choices("0123456789", k=count))

    def hexed(count: int) -> str:
        return "".join(rng.choices("0123456789abcdef", k=count))

    a, b, c = digits(3), digits(3), digits(3)
    four = [digits(4) for _ in range(4)]
    parts = [hexed(2) for _ in range(6)]
    number, name = digits(5), rng.choice(NAMES).lower() + digits(3)
    made = (
        (f"+351 {a} {b} {c}", f"+351{a}{b}{c}"),
        (f"DE{digits(2)} {' '.join(four)} {digits(2)}", None),
        (hexed(64), None),
        (f"{hexed(8)}-{hexed(4)}-{hexed(4)}-{hexed(4)}-{hexed(12)}", None),
        (f"INV-2024-{number}", f"inv 2024 {number}"),
        (f"{name}@example.org", None),
        (":".join(parts), "-".join(parts).upper()),
        (f"10.{int(a) % 256}.{int(b) % 256}.{int(c) % 256}", None),
        (f"978-3-16-{digits(6)}-{digits(1)}", None),
        (" ".join(four), "-".join(four)),
    )
    stored, spelt = made[kind]
    if spelt is None:
        spelt = stored.replace(" ", "").replace("-", "") if kind in (1, 8) else stored
    return stored, spelt


SENTENCES = {
    "zh": ("{n}号房间的钥匙在{w}旁边。", "{w}在哪里?",
           "琥珀 葫芦 蜥蜴 玛瑙 鹦鹉 灯笼 砚台 风筝 算盘 屏风".split()),
    "ja": ("{n}番の部屋の鍵は{w}のそばにあります。", "{w}はどこですか?",
           "提灯 硯箱 風鈴 屏風 算盤 草履 羅針盤 望遠鏡 蓄音機 水晶".split()),
    "ko": ("{n}번 방의 열쇠는 {w}옆에 있습니다.", "{w}가 어디에 있어요?",
           "등불 벼루 병풍 주판 나침반 망원경 축음기 수정 도자기 거문고".split()),
    "th": ("กุญแจห้อง{n}อยู่ข้าง{w}เสมอ", "{w}อยู่ที่ไหน",
           "โคมไฟ นาฬิกา หมากรุก กระดิ่ง เข็มทิศ กล้องส่องทางไกล แจกัน ร่ม พัดลม ตะเกียง".split()),
    "ar": ("مفتاح الغرفة {n} بجانب ال{w}", "أين {w}؟",
           "فانوس بوصلة مزهرية مظلة ساعة قنديل مرآة صندوق كتاب تمثال".split()),
    "de": ("Der Schlüssel von Zimmer {n} liegt beim {w}.", "Wo liegt der Schlüssel der {w}?",
           "Feuerwehrhaus Krankenversicherungsbüro Wetterstation Bibliotheksgebäude Gartenlaube".split()),
}  # fmt: skip
GERMAN_PARTS = "Feuerwehr Krankenversicherung Wetter Bibliothek Garten".split()


def scripts(seed: int, now: float, others: int = 300) -> Set:
    rng = random.Random(seed)
    memories: Memories = {}
    asked: Asked = []
    for language, (text, question, words) in SENTENCES.items():
        letters = sorted({letter for word in words for letter in word}) or ["x"]
        for number in range(others // len(SENTENCES)):
            other = "".join(rng.sample(letters, min(3, len(letters))))
            memories[f"{language}-o{number}"] = (text.format(n=number, w=other), now - DAY)
        for number, word in enumerate(words):
            memories[f"{language}-{number}"] = (text.format(n=100 + number, w=word), now - DAY)
            spelt = GERMAN_PARTS[number] if language == "de" else word
            asked.append((question.format(w=spelt), f"{language}-{number}"))
    return memories, asked


def all_sets(seed: int, now: float) -> Iterator[tuple[str, Set]]:
    for name, made in (
        ("newer", newer),
        ("verbatim", verbatim),
        ("identifiers", identifiers),
        ("scripts", scripts),
    ):
        yield name, made(seed, now)
