"""Files of pairs: JSON Lines and CSV, good lines and bad ones."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanopatch import Experiment, NanopatchError, read_pairs, tasks
from nanopatch.experiments.pairs import KEYS, PairFile

TEXT = Experiment("When Mary — 'so\u2028'", 'When John, "so"', " Mary", " John")  # U+2028 ends lines elsewhere
IDS = Experiment([1, 2, 3], [1, 4, 3], 5, 6, prepend_bos=True)
SHIFTED = Experiment([1, 2, 3], [1, 3], 5, 6, align="diff")


def write(path, lines):
    path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", errors="surrogateescape"))
    return path


def test_json_lines(tmp_path):
    lines = [json.dumps(vars(TEXT)), "", json.dumps({name: vars(TEXT)[name] for name in KEYS[:4]}, ensure_ascii=False)]
    lines += ["  ", json.dumps(vars(IDS)), json.dumps(vars(IDS) | {"answer": [5]}) + "\r"]
    file = read_pairs(write(tmp_path / "pairs.jsonl", lines))
    assert file == PairFile([TEXT, TEXT, IDS, IDS], [1, 3, 5, 6], [])


def test_align_in_json_lines(tmp_path):
    lines = [json.dumps(vars(IDS) | {"align": align}) for align in (None, "", "left", ["diff"], False)]
    file = read_pairs(write(tmp_path / "pairs.jsonl", [json.dumps(vars(SHIFTED)), *lines]))
    assert file.pairs == [SHIFTED, IDS, IDS]
    assert file.problems == [
        (line, f'align is {value}, and must be "diff", or null')
        for line, value in ((4, '"left"'), (5, '["diff"]'), (6, "false"))
    ]


def test_align_in_csv(tmp_path):
    rows = ['[5],6,"[1, 2, 3]","[1, 3]",diff', "a, b,c d,c,", "a, b,c d,c,left"]
    file = read_pairs(write(tmp_path / "pairs.csv", ["answer,wrong_answer,clean,corrupted,align", *rows]))
    assert file.pairs[0].align == "diff" and file.pairs[1] == Experiment("c d", "c", "a", " b")
    assert file.problems == [(4, 'align is "left", and must be "diff", or null')]


def test_lines_are_numbered_in_the_files_order():
    file = PairFile([TEXT, IDS], [1, 4], [(3, "not JSON"), (2, "answer is missing")])
    assert file.numbered == [
        ("line 1", TEXT, None),
        ("line 2", None, "answer is missing"),
        ("line 3", None, "not JSON"),
        ("line 4", IDS, None),
    ]


def test_csv(tmp_path):
    lines = [
        "answer,wrong_answer,clean,corrupted,prepend_bos",
        ' Mary, John,"When Mary — \'so\u2028\'","When John, ""so""",',
        "",
        ' Mary, John,"When Mary\nand","When John\r\nand",false',
        '[5],[6],"[1, 2, 3]","[1,4,3]",True',
        " a, b,[sic] it is,[1.5],no",
        " a, b,[sic] it is,[1.5],0",
    ]
    file = read_pairs(write(tmp_path / "pairs.CSV", ["\ufeff" + lines[0], *lines[1:]]))
    assert file.pairs == [
        TEXT,
        Experiment("When Mary\nand", "When John\r\nand", " Mary", " John"),
        IDS,
        Experiment("[sic] it is", "[1.5]", " a", " b"),
    ]
    assert file.lines == [2, 4, 7, 9]
    assert file.problems == [(8, 'prepend_bos is "no", and must be true or false')]


BAD_JSON = {
    "hello": "not JSON (Expecting value",
    "[" * 100_000: "not JSON (",
    "[1, 2]": "a pair is an object with clean, corrupted, answer, wrong_answer, not [1, 2]",
    '{"clean": "a"}': "corrupted, answer, wrong_answer are missing",
    '{"clean": "a", "corrupted": "b", "answer": " c"}': "wrong_answer is missing",
    '{"clean": "a", "corrupted": "b", "answer": " c", "wrong": " d"}': "'wrong' is not known; a pair has clean, ",
    '{"clean": 3, "corrupted": "b", "answer": " c", "wrong_answer": " d"}': "clean is 3, and must be text (UTF-8) or",
    '{"clean": [true], "corrupted": "b", "answer": " c", "wrong_answer": " d"}': "clean is [true], and must be",
    '{"clean": "a", "corrupted": null, "answer": " c", "wrong_answer": " d"}': "corrupted is null, and must be",
    '{"clean": "a", "corrupted": "b", "answer": [1, 2], "wrong_answer": " d"}': "answer is [1, 2], and must be text (",
    '{"clean": "a", "corrupted": "b", "answer": 1.0, "wrong_answer": " d"}': "answer is 1.0, and must be text (UTF-8",
    '{"clean": "a", "corrupted": "b", "answer": "c", "wrong_answer": "d", "prepend_bos": 1}': "prepend_bos is 1, and",
    '{"clean": "\udcff", "corrupted": "b", "answer": " c", "wrong_answer": " d"}': 'clean is "\\udcff", and must be',
    '{"clean": "a", "corrupted": "b", "answer": " c", "wrong_answer": "\\ud800"}': 'wrong_answer is "\\ud800", ',
}


def test_every_bad_line_is_told_and_the_others_are_read(tmp_path):
    good = json.dumps(vars(IDS))
    lines = [good, *BAD_JSON, good]
    file = read_pairs(write(tmp_path / "pairs.jsonl", lines))
    assert file.pairs == [IDS, IDS] and file.lines == [1, len(lines)]
    assert [line for line, _ in file.problems] == list(range(2, len(lines)))
    for (_, reason), expected in zip(file.problems, BAD_JSON.values(), strict=True):
        assert reason.startswith(expected) and "\n" not in reason and len(reason) < 200


def test_bad_rows_of_csv_are_told(tmp_path):
    rows = ["a,b, c", "a,b, c, d,e", "a,\udcff, c, d", "a,b, c, d", 'a,"b, c, d']
    file = read_pairs(write(tmp_path / "pairs.csv", ["clean,corrupted,answer,wrong_answer", *rows]))
    assert file.pairs == [Experiment("a", "b", " c", " d")] and file.lines == [5]
    assert file.problems == [
        (2, "3 cells, and the header has 4"),
        (3, "5 cells, and the header has 4"),
        (4, 'corrupted is "\\udcff", and must be text (UTF-8) or a list of token ids'),
        (6, "2 cells, and the header has 4"),
    ]


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("clean,corrupted,answer", "header: wrong_answer is missing"),
        ("clean,corrupted,answer,wrong_answer,note", "header: 'note' is not known"),
        ("clean,corrupted,answer,wrong_answer,clean", "header: a name occurs twice"),
        ("clean,\udcff,answer,wrong_answer", r"header: '\udcff' is not known"),
    ],
)
def test_a_header_that_cannot_be_understood(tmp_path, header, reason):
    file = read_pairs(write(tmp_path / "pairs.csv", [header, "a,b, c, d"]))
    assert file.pairs == [] and len(file.problems) == 1
    assert file.problems[0][0] == 1 and file.problems[0][1].startswith(reason)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.csv", ""), ("a.csv", "clean,corrupted,answer,wrong_answer\n")],
)
def test_a_file_without_pairs(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    file = read_pairs(tmp_path / name)
    assert file.pairs == [] and file.problems[0][1].startswith("the file has no pairs: give ")


def test_a_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "nowhere.jsonl", tmp_path, "a\0b"):
        with pytest.raises(NanopatchError, match="^cannot read "):
            read_pairs(path)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_file_that_is_no_utf_8_text_at_all_is_told_as_a_whole(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(NanopatchError, match="a pointer of Git LFS: run `git lfs pull`"):
        read_pairs(path)
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        mark = "" if encoding == "utf-16" else "\ufeff"
        path.write_bytes(f"{mark}clean,corrupted,answer,wrong_answer\n".encode(encoding))
        with pytest.raises(NanopatchError, match=f"^cannot read .*{name}: it is UTF-16: save it as UTF-8 text$"):
            read_pairs(path)


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", errors="surrogatepass")))
@settings(deadline=None, max_examples=100)
def test_any_bytes_are_read_or_told(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("pairs")
    for name in ("a.jsonl", "a.csv"):
        (folder / name).write_bytes(content)
        try:
            file = read_pairs(folder / name)
        except NanopatchError as error:  # not text in UTF-8 at all
            assert content.startswith((b"\xff\xfe", b"\xfe\xff", b"version https://git-lfs"))
            assert "\n" not in str(error)
            continue
        assert not file.pairs and file.problems
        assert all(isinstance(line, int) and line >= 1 and "\n" not in reason for line, reason in file.problems)


def test_a_cell_too_large_for_csv_ends_the_reading(tmp_path):
    rows = ["a,b, c, d", "", f'a,"{"b" * 200_000}, c, d', "a,b, c, d"]
    file = read_pairs(write(tmp_path / "pairs.csv", ["clean,corrupted,answer,wrong_answer", *rows]))
    assert file.lines == [2] and [line for line, _ in file.problems] == [4]
    assert file.problems[0][1].startswith("not CSV (field larger than field limit")


def test_a_header_may_stand_after_blank_lines(tmp_path):
    file = read_pairs(write(tmp_path / "pairs.csv", ["", "", "clean, corrupted,answer ,wrong_answer", "a,b, c, d"]))
    assert file == PairFile([Experiment("a", "b", " c", " d")], [4], [])


def test_a_name_that_a_line_gives_twice(tmp_path):
    line = '{"clean": "a", "corrupted": "b", "answer": " c", "wrong_answer": " d", "clean": "e"}'
    (tmp_path / "x.jsonl").write_text(line)
    file = read_pairs(tmp_path / "x.jsonl")
    assert not file.pairs and file.problems == [(1, "not JSON (the key 'clean' is there twice)")]


# ---- other names ------------------------------------------------------------------------------------


def test_the_circuit_benchmarks_files(tmp_path):
    """Rows as EAP-IG's files have them: an index without a name, token ids, and greater-than's year."""
    header = ",clean,corrupted,corrupted_hard,correct_idx,incorrect_idx"
    texts = ['"Then, Ann and Bob met. Bob said to"', '"Then, Ann and Bob met. Tom said to"', '"Then, x"']
    file = read_pairs(
        write(tmp_path / "ioi.csv", [header, f"470,{','.join(texts)},5231,3899", f"1,{texts[0]},b,c,x,1"])
    )
    (pair,) = file.pairs
    assert (pair.clean, pair.corrupted) == tuple(text.strip('"') for text in texts[:2])
    assert (pair.answer, pair.wrong_answer) == (5231, 3899)
    assert file.problems == [(3, "correct_idx is 'x', and must be a whole number")]
    rows = [f"The {what} lasted from the year 17{y:02} to the year 17" for what, y in (("war", 32), ("fall", 4))]
    lines = ["clean,corrupted,label", f"{rows[0]},{rows[0].replace('1732', '1701')},32", f"{rows[1]},{rows[1]},4"]
    pairs = read_pairs(write(tmp_path / "years.csv", lines)).pairs
    assert [(pair.answer, pair.wrong_answer) for pair in pairs] == [("66", "16"), ("52", "02")]
    same = {pair.answer: pair.wrong_answer for pair in tasks.greater_than(50, year=32)}
    assert same == {"66": "16"}


def test_other_names_of_columns(tmp_path):
    names = {"clean": "prompt", "corrupted": "counterfactual", "answer": "target", "wrong_answer": "foil"}
    lines = ["id,prompt,counterfactual,target,foil,source", "7,a b,a c, d, e,web"]
    (pair,) = read_pairs(write(tmp_path / "pairs.csv", lines), columns=names).pairs
    assert (pair.clean, pair.corrupted, pair.answer, pair.wrong_answer) == ("a b", "a c", " d", " e")
    line = json.dumps({"prompt": "a b", "counterfactual": "a c", "target": " d", "foil": 3, "note": None})
    file = read_pairs(write(tmp_path / "pairs.jsonl", [line, "{}"]), columns=names)
    assert file.pairs[0].wrong_answer == 3
    assert file.problems == [(2, "it has no 'prompt', 'counterfactual', 'target', 'foil'; it has ")]
    problem = read_pairs(write(tmp_path / "pairs.csv", lines), columns=names | {"clean": "text"}).problems[0][1]
    assert problem.startswith("header: it has no 'text'; it has 'id', 'prompt', ")
    for wrong, words in (
        ({"cleen": "a"}, "'cleen' is not known"),
        ("clean", "a dict such as"),
        ({"clean": 3}, "a dict"),
    ):
        with pytest.raises(NanopatchError, match=words):
            read_pairs(tmp_path / "pairs.csv", columns=wrong)
