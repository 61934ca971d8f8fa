"""Words of texts: scripts without spaces, compounds, identifiers, negations; each found among others."""

import hashlib
import random
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.index.bm25 import LexicalIndex, longest_first, matched
from stores.index.terms import stored_terms, terms

OTHERS = [
    "The harbor opens at nine.", "我昨天去了市场买水果。", "明日は友達と映画を見ます。", "오늘은 날씨가 아주 좋습니다.",
    "พรุ่งนี้ฉันจะไปทำงานแต่เช้า", "ذهبت إلى السوق أمس مع أخي", "Der Garten hinter dem Haus ist grün.",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("王小明把护照放在书房的抽屉里。", "护照在哪里?"),
        ("她每周三去医院做检查。", "医院"),
        ("彼女は水曜日に図書館で働いています。", "図書館はいつ?"),
        ("猫の名前はミケです。", "ミケ"),
        ("猫", "猫"),
        ("민수는 부산에서 고양이를 키웁니다.", "고양이가 어디에 있나요?"),
        ("คุณยายชอบกินข้าวเหนียวมะม่วงมาก", "ข้าวเหนียวมะม่วง"),
        ("كتب أحمد الرسالةَ في المكتبة", "من كتب رسالة؟"),
        ("يعمل خالد في المستشفى الكبير", "مستشفى"),
        ("Ihre Krankenversicherung zahlt die Brille.", "Versicherung"),
        ("Das Arbeitszimmer ist im zweiten Stock.", "In welchem Stock ist das Zimmer für die Arbeit?"),
        ("Sie wohnt in der Straße am Fluß.", "strasse"),
    ],
)
def test_words_of_many_scripts_are_found(text, query):
    index = LexicalIndex()
    index.put([*range(len(OTHERS) + 1)], [*OTHERS, text])
    assert index.search(query, 3)[1][:1] == [len(OTHERS)]


def test_an_unspaced_text_of_which_a_word_is_asked_is_first_of_many():
    rng = random.Random(3)
    letters = (
        "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后"
    )
    texts = ["".join(rng.choices(letters, k=20)) for _ in range(160)]
    words = ["琥珀", "葫芦", "蜥蜴", "玛瑙", "鹦鹉"]
    texts += [f"{texts[i][:9]}{word}{texts[i][9:]}" for i, word in enumerate(words)]
    index = LexicalIndex()
    index.put([*range(len(texts))], texts)
    for i, word in enumerate(words):
        assert index.search(f"{word}在哪里", 1)[1] == [160 + i]


IDENTIFIERS = {
    "phone, other spacing": ("+351 912 345 607", "+351912345607"),
    "phone, joined": ("+351912345608", "+351 912 345 608"),
    "iban": ("DE89 3704 0044 0532 0130 00", "DE89370400440532013000"),
    "digest": (hashlib.sha256(b"a").hexdigest(), hashlib.sha256(b"a").hexdigest()),
    "uuid": (str(uuid.UUID(int=77 << 90)), str(uuid.UUID(int=77 << 90))),
    "order": ("INV-2024-00123", "INV-2024-00123"),
    "order, joined": ("RMA-77-123456", "RMA77123456"),
    "e-mail": ("ada.lund@example.org", "ada.lund@example.org"),
    "mac": ("00:1B:44:11:3A:B7", "00-1b-44-11-3a-b7"),
    "address": ("10.12.0.77", "10.12.0.77"),
    "isbn": ("978-3-16-148410-0", "9783161484100"),
    "card": ("4111 1111 1111 1111", "4111-1111-1111-1111"),
    "path": ("/srv/www/app/conf.d/site.toml", "/srv/www/app/conf.d/site.toml"),
}


def other_identifier(rng):
    digits = lambda n: "".join(rng.choices("0123456789", k=n))  # noqa: E731
    return rng.choice(
        [
            f"+{digits(3)} {digits(3)} {digits(3)} {digits(3)}",
            f"DE{digits(2)} {digits(4)} {digits(4)} {digits(4)} {digits(2)}",
            f"INV-2024-{digits(5)}", f"user{digits(4)}@example.org", f"10.{digits(2)}.0.{digits(2)}", digits(13),
            hashlib.sha256(digits(9).encode()).hexdigest(), str(uuid.UUID(int=rng.getrandbits(128))),
        ]
    )  # fmt: skip


def test_exact_identifiers_are_found_among_ten_thousand_others():
    rng = random.Random(7)
    index = LexicalIndex()
    texts = [f"Note {i}: the reference is {other_identifier(rng)}." for i in range(10_000)]
    texts += [f"The reference of the parcel is {written}." for written, _ in IDENTIFIERS.values()]
    index.put([*range(len(texts))], texts)
    for i, (kind, (_, asked)) in enumerate(IDENTIFIERS.items()):
        found = index.search(f"What has the reference {asked}?", 3)[1]
        assert 10_000 + i in found, kind


def test_a_negation_is_a_word():
    assert "not" in terms("The shop is not open") and "not" in terms("It isn't open")
    assert "no" in terms("no sugar") and "nor" in terms("nor salt")
    assert terms("what is the of") == []


def test_lists_of_numbers_are_no_identifier():
    assert "1234567" not in terms("rooms 1 2 3 4 5 6 7") and "1000" in terms("It costs 1,000 euros")


@given(st.text(max_size=300))
def test_a_query_matches_its_own_text(text):
    """Every word that a query names is a word of the same text stored, and analysis always ends."""
    asked = set(terms(text))
    assert (
        asked <= set(stored_terms(text))
        and set(matched(frozenset(asked), longest_first(stored_terms(text))).counts) == asked
    )
