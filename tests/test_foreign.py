"""Files that other projects have written: read as data, and taken for what they are or refused."""

import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from test_retrieval import ROWS, prepare_pairs, write_directory

from lra.tasks import listops_preparation, listops_release, mega, pickles
from lra.tasks.listops_generator import VOCAB, ListOpsRule, generate
from lra.tasks.listops_release import encode, values_of

TEXTS = [b"a review", b"", bytes(range(256)), b'"quoted" \xff', b"seen " * 20]
RULE = ListOpsRule(min_length=4, max_length=60, max_depth=5, max_args=4)
NUM_EXAMPLES = {"train": 30, "val": 5, "test": 6}


def texts_of(sequences):
    bounds = zip(sequences.offsets, sequences.offsets[1:], strict=False)
    return [sequences.tokens[a:b].tobytes() for a, b in bounds]


# Pickles


def padded_ids(text, length=300):
    ids = np.zeros(length, dtype=np.int32)
    ids[: len(text)] = np.frombuffer(text, np.uint8).astype(np.int32) + 1
    return ids


def write_pickle(path, rows, protocol=4):
    path.write_bytes(pickle.dumps(rows, protocol))
    return path


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("label", [int, np.int32, np.int64])
def test_offset_and_padding_of_a_pickles_texts_are_undone(tmp_path, protocol, label):
    rows = [{"input_ids_0": padded_ids(t), "label": label(i % 2)} for i, t in enumerate(TEXTS)]
    path = write_pickle(tmp_path / "lra-text.train.pickle", rows, protocol)
    split = pickles.read_pickle_split(path, "text")
    assert texts_of(split) == TEXTS
    assert split.labels.tolist() == [0, 1, 0, 1, 0]


def test_a_pickles_pixels_are_taken_as_they_are(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 16)).astype(np.int32)
    images[0] = 0  # black is no padding
    rows = [{"input_ids_0": image, "label": 9} for image in images]
    split = pickles.read_pickle_split(write_pickle(tmp_path / "x", rows), "pixels")
    assert_array_equal(split.tokens.reshape(4, 16), images)


def test_a_pickle_of_an_older_numpy_is_read(tmp_path):
    path = write_pickle(tmp_path / "x", [{"input_ids_0": padded_ids(b"old"), "label": 1}], 3)
    content = path.read_bytes()
    assert b"numpy._core" in content
    path.write_bytes(content.replace(b"numpy._core", b"numpy.core"))
    assert texts_of(pickles.read_pickle_split(path, "text")) == [b"old"]


class Attack:
    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    ("function", "name"),
    [(os.mkdir, "posix.mkdir"), (eval, "builtins.eval"), (np.fromfile, "numpy"), (type, "type")],
)
def test_no_code_of_a_pickle_runs(tmp_path, function, name):
    victim = str(tmp_path / "victim")
    argument = f"__import__('os').mkdir({victim!r})" if function is eval else victim
    rows = [{"input_ids_0": padded_ids(b"x"), "label": Attack(function, argument)}]
    path = write_pickle(tmp_path / "x", rows)
    with pytest.raises(ValueError, match=f"x is damaged.* it asks for .*{name}.*is not data"):
        pickles.read_pickle_split(path, "text")
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "holds dict, not a list of examples"),
        ([[1, 2]], "input_ids_0=None"),
        ([{"input_ids_0": padded_ids(b"x")}], "label=None"),
        ([{"input_ids_0": padded_ids(b"x"), "label": 256}], "label=256"),
        ([{"input_ids_0": padded_ids(b"x"), "label": -1}], "label=-1"),
        ([{"input_ids_0": np.array([0.5]), "label": 1}], "input_ids_0=array"),
        ([{"input_ids_0": np.array([[1]]), "label": 1}], "input_ids_0=array"),
        ([{"input_ids_0": np.array([5, 257, 0]), "label": 1}], r"ids 4\.\.256 are beyond"),
        ([{"input_ids_0": np.array([5, 0, 3, 0]), "label": 1}], r"ids -1\.\.4 are beyond"),
    ],
)
def test_a_pickle_of_something_else_is_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        pickles.read_pickle_split(write_pickle(tmp_path / "x", rows), "text")


def test_a_pickle_that_is_cut_short_is_damaged(tmp_path):
    path = write_pickle(tmp_path / "x", [{"input_ids_0": padded_ids(b"x"), "label": 1}])
    for size in (0, 10, path.stat().st_size - 1):
        cut = tmp_path / "cut"
        cut.write_bytes(path.read_bytes()[:size])
        with pytest.raises(ValueError, match="cut is damaged"):
            pickles.read_pickle_split(cut, "text")


def test_pickles_of_retrieval_give_the_stores_of_the_release(tmp_path):
    expected = prepare_pairs(tmp_path, write_directory(tmp_path / "raw"))
    (tmp_path / "pickled").mkdir()
    for split, name in {"train": "train", "val": "dev", "test": "test"}.items():
        rows = [
            {"input_ids_0": padded_ids(a), "input_ids_1": padded_ids(b), "label": label}
            for label, a, b in ROWS[split]
        ]
        write_pickle(tmp_path / f"pickled/lra-retrieval.{name}.pickle", rows)
    store = prepare_pairs(tmp_path / "data", tmp_path / "pickled")
    assert store.fingerprint == expected.fingerprint


# Mega


def write_indexed(directory, split, samples, words=(), dtype="<u2", code=8):
    """Samples of words in fairseq's format; `words` come first in its dictionary."""
    directory.mkdir(parents=True, exist_ok=True)
    every = list(dict.fromkeys([*words, *(word for sample in samples for word in sample)]))
    lines = [f"{word} {len(every) - i}\n" for i, word in enumerate([*every, "madeupword0000"])]
    (directory / "dict.txt").write_text("".join(lines))
    ids = [np.array([*(4 + every.index(w) for w in sample), 2], dtype) for sample in samples]
    sizes = np.array([len(sample) for sample in ids], "<i4")
    pointers = (sizes.cumsum(dtype="<i8") - sizes) * np.dtype(dtype).itemsize
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQ", 1, code, len(ids))
    (directory / f"{split}.idx").write_bytes(head + sizes.tobytes() + pointers.tobytes())
    (directory / f"{split}.bin").write_bytes(b"".join(map(np.ndarray.tobytes, ids)))


def numbers(text, offset):
    return [str(byte + offset) for byte in text]


def write_mega_texts(directory, split, texts, labels, offset=0, part="src-bin", **options):
    samples = [numbers(text, offset) for text in texts]
    write_indexed(directory / part, split, samples, numbers(b" " + bytes(range(256)), offset))
    write_indexed(directory / "label-bin", split, [[str(label)] for label in labels], ["1", "0"])


@pytest.mark.parametrize("offset", [0, 1])
def test_texts_in_megas_layout_come_out_as_bytes(tmp_path, offset):
    write_mega_texts(tmp_path, "valid", TEXTS, [0, 1, 1, 0, 1], offset)
    split = mega.read_texts(tmp_path, "valid")
    assert texts_of(split) == TEXTS
    assert split.labels.tolist() == [0, 1, 1, 0, 1]  # not the lines of dict.txt, 1 before 0


def test_padding_in_megas_layout_is_removed(tmp_path):
    padded = [[*numbers(b"a b", 1), "0", "0"]]
    write_indexed(tmp_path / "src-bin", "test", padded, ["33"])
    write_indexed(tmp_path / "label-bin", "test", [["1"]])
    assert texts_of(mega.read_texts(tmp_path, "test")) == [b"a b"]


@pytest.mark.parametrize(("dtype", "code"), [("<i2", 3), ("<i4", 4), ("<i8", 5), ("<u2", 8)])
def test_every_width_of_ids_is_read(tmp_path, dtype, code):
    write_indexed(tmp_path, "train", [["32", "65"], ["66"]], dtype=dtype, code=code)
    assert [ids.tolist() for ids in mega._read_samples(tmp_path, "train")] == [[4, 5], [6]]


@pytest.mark.parametrize(
    ("words", "sample", "message"),
    [
        (["e", "32"], ["e"], "first word of .*dict.txt is 'e', not 32 or 33"),
        (["32"], ["32", "256"], "sample 0 of .*'256' is not a byte"),
        (["32"], ["32", "<unknown>"], "sample 0 of .*'<unknown>' is not a byte"),
        (["33"], ["33", "0", "34"], "sample 0 of .*'0' is not a byte"),
    ],
)
def test_symbols_that_are_not_bytes_are_refused(tmp_path, words, sample, message):
    write_indexed(tmp_path / "src-bin", "train", [sample], words)
    write_indexed(tmp_path / "label-bin", "train", [["1"]])
    with pytest.raises(ValueError, match=message):
        mega.read_texts(tmp_path, "train")


def test_damage_in_megas_layout_is_named(tmp_path):
    def read():
        return mega.read_texts(tmp_path, "train")

    write_mega_texts(tmp_path, "train", TEXTS, [0, 1, 1, 0])
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is shorter"):
        read()
    write_mega_texts(tmp_path, "train", TEXTS, [0, 1, 1, 0, 1])
    for name, message in (("bin", "is cut short"), ("idx", "buffer is smaller")):
        path = tmp_path / f"src-bin/train.{name}"
        content = path.read_bytes()
        path.write_bytes(content[:-50])
        with pytest.raises(ValueError, match=message):
            read()
        path.write_bytes(content)
    path.write_bytes(b"TNTIDX\x00\x00" + content)
    with pytest.raises(ValueError, match="not an index of fairseq's mmap format"):
        read()


def test_pixels_in_megas_layout_are_read(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 9))
    (tmp_path / "input").mkdir()
    (tmp_path / "label").mkdir()
    lines = [" ".join(map(str, image)) for image in images]
    (tmp_path / "input/train.src").write_text("\n".join(lines) + "\n")
    (tmp_path / "label/train.label").write_text("3\n1\n4\n1\n5\n")
    split = mega.read_pixels(tmp_path, "train")
    assert_array_equal(split.tokens.reshape(5, 9), images)
    assert split.labels.tolist() == [3, 1, 4, 1, 5]
    for line in ("0 256", "0 -1", "0 0.5"):
        (tmp_path / "input/train.src").write_text("\n".join([*lines[:2], line]))
        with pytest.raises(ValueError, match="line 3: "):
            mega.read_pixels(tmp_path, "train")


def write_zip(path, directory):
    with zipfile.ZipFile(path, "w") as archive:
        for file in directory.rglob("*.*"):
            archive.write(file, f"lra/{file.relative_to(directory)}")
    return path


def test_megas_zip_gives_the_stores_of_the_release(tmp_path):
    expected = prepare_pairs(tmp_path, write_directory(tmp_path / "raw"))
    names = dict(zip(ROWS, mega.SPLITS, strict=True))
    for split, rows in ROWS.items():
        labels, first, second = zip(*rows, strict=True)
        for part, texts in (("src-bin", first), ("src1-bin", second)):
            write_mega_texts(tmp_path / "mega/aan", names[split], texts, labels, part=part)
    (tmp_path / "mega/listops/src-bin").mkdir(parents=True)
    (tmp_path / "mega/listops/src-bin/train.idx").touch()  # of another task
    source = write_zip(tmp_path / "lra.zip", tmp_path / "mega")
    store = prepare_pairs(tmp_path / "data", source)
    assert store.fingerprint == expected.fingerprint


# ListOps of the release


def generated(split):
    key = listops_preparation.SPLIT_KEYS[split]
    return generate(RULE, seed=0, split=key, num_examples=NUM_EXAMPLES[split], num_workers=1)


def parenthesized(words):
    """As the release writes a tree: ( ( ( [MAX 4 ) 3 ) ] )."""
    stack = [[]]
    for word in words:
        if word.startswith("["):
            stack.append([word])
        elif word == "]":
            operator, *arguments = stack.pop()
            inner = " ".join([operator, *(f"{argument} )" for argument in arguments), "] )"])
            stack[-1].append("( " * (len(arguments) + 1) + inner)
        else:
            stack[-1].append(word)
    [[expression]] = stack
    return expression


def words_of(sequences):
    return [[VOCAB[token] for token in text] for text in texts_of(sequences)]


def write_tsvs(directory, edit=lambda split, line: line):
    directory.mkdir()
    for split in NUM_EXAMPLES:
        sequences = generated(split)
        lines = [
            f"{parenthesized(words)}\t{label}\r\n"
            for words, label in zip(words_of(sequences), sequences.labels, strict=True)
        ]
        lines[2] = edit(split, lines[2])
        content = "Source\tTarget\r\n" + "".join(lines)
        (directory / f"basic_{split}.tsv").write_text(content, newline="")
    return directory


def prepare_listops(data_dir, source, stand_in="noise"):
    return listops_preparation.prepare(
        name="listops",
        data_dir=str(data_dir),
        source=source if source is None else str(source),
        stand_in=stand_in,
        rule=RULE,
        num_examples=NUM_EXAMPLES,
        seed=0,
        num_workers=1,
        progress=lambda count: None,
    )


def stack_machine(tokens):
    stack = [[]]
    for word in (VOCAB[token] for token in tokens):
        if word == "]":
            operator, *arguments = stack.pop()
            middle = sorted(arguments)[(len(arguments) - 1) // 2 : len(arguments) // 2 + 1]
            value = {
                "[MIN": min(arguments),
                "[MAX": max(arguments),
                "[MED": sum(middle) // len(middle),
                "[SM": sum(arguments) % 10,
            }[operator]
            stack[-1].append(value)
        elif word.startswith("["):
            stack.append([word])
        else:
            stack[-1].append(int(word))
    [[value]] = stack
    return value


def test_the_releases_files_give_what_was_written_to_them(tmp_path, monkeypatch):
    expected = prepare_listops(tmp_path, None, stand_in=None)
    source = write_tsvs(tmp_path / "listops-1000")
    store = prepare_listops(tmp_path / "data", source)
    assert store.fingerprint == expected.fingerprint
    assert store.manifest["source"]["kind"] == "stand-in"
    with pytest.raises(ValueError, match=r"'train': 96000.*prepare.stand_in=NAME"):
        prepare_listops(tmp_path / "unnamed", source, stand_in=None)
    for split, count in NUM_EXAMPLES.items():
        monkeypatch.setitem(listops_release.OFFICIAL_COUNTS, split, count)
    store = prepare_listops(tmp_path / "official", source, stand_in=None)
    assert store.manifest["source"]["kind"] == "official"
    with pytest.raises(ValueError, match="prepared with kind=regenerated, not official"):
        prepare_listops(tmp_path, source, stand_in=None)


def test_values_are_those_of_a_stack_machine():
    sequences = generated("train")
    values = values_of(sequences.tokens, sequences.offsets)
    assert values.tolist() == [stack_machine(text) for text in texts_of(sequences)]
    assert len(set(values.tolist())) > 5


def test_an_expression_has_three_words_a_token_less_two(tmp_path):
    for words in words_of(generated("train")):
        expression = parenthesized(words)
        assert len(expression.split()) == 3 * len(words) - 2
        assert [VOCAB[i] for i in encode(expression.encode())] == words
        assert encode(" ".join(words).replace("]", "X").encode()) == encode(expression.encode())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\t", "\t1", "line 4, is not an expression and its value"),
        ("\t", " ", "line 4, is not an expression and its value"),
        ("[", "[AVG [", "line 4, .* 4 unknown"),
        ("[", "[ ", "line 4, .* unknown"),
        ("( ", "", r"line 4, .* words give \d+ tokens, 0 unknown"),
        (" ] )", " )", "line 4, "),
    ],
)
def test_a_line_that_is_no_expression_is_named(tmp_path, old, new, message):
    source = write_tsvs(
        tmp_path / "raw", lambda split, line: line.replace(old, new, 1) if split == "val" else line
    )
    with pytest.raises(ValueError, match=f"basic_val.tsv, {message}"):
        prepare_listops(tmp_path / "data", source)


def test_a_label_that_is_not_the_value_is_named(tmp_path):
    def edit(split, line):
        value = int(line[-3])
        return line if split != "test" else f"{line[:-3]}{(value + 1) % 10}\r\n"

    value = int(generated("test").labels[2])
    message = f"basic_test.tsv: expression 2 has value {value}, but its label is {(value + 1) % 10}"
    with pytest.raises(ValueError, match=message):
        prepare_listops(tmp_path / "data", write_tsvs(tmp_path / "raw", edit))


def test_an_unknown_word_is_no_token():
    with pytest.raises(ValueError, match="4 words give 4 tokens, 1 unknown"):
        encode(b"[MAX Y 2 ]")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("[MAX 1 [MIN 2 3 9 ]", "brackets are not closed"),
        ("[MAX 1 ] ]", "brackets are not closed"),
        ("[MAX 1 ] 2", "brackets are not closed"),
        ("5", "brackets are not closed"),
        ("[MAX 1 [MIN ] ]", "an operator has 0 arguments"),
    ],
)
def test_brackets_that_do_not_match_have_no_value(words, message):
    ids = np.frombuffer(encode(b"[SM 1 2 ]") + encode(words.encode()), np.uint8)
    with pytest.raises(ValueError, match=message):
        values_of(ids, np.array([0, 4, len(ids)]))


def test_expressions_in_megas_layout_are_read(tmp_path):
    expected = prepare_listops(tmp_path, None, stand_in=None)
    for split, name in zip(NUM_EXAMPLES, mega.SPLITS, strict=True):
        sequences = generated(split)
        labels = [[str(label)] for label in sequences.labels]
        write_indexed(tmp_path / "mega/listops/src-bin", name, words_of(sequences), VOCAB)
        digits = [str(value) for value in (3, 1, 4, 5, 9, 2, 6, 8, 7, 0)]
        write_indexed(tmp_path / "mega/listops/label-bin", name, labels, digits)
    store = prepare_listops(tmp_path / "data", tmp_path / "mega/listops")
    assert store.fingerprint == expected.fingerprint


def test_pickles_of_listops_are_refused_with_the_reason(tmp_path):
    (tmp_path / "raw").mkdir()
    for split in ("train", "dev", "test"):
        (tmp_path / f"raw/lra-listops.{split}.pickle").touch()
    with pytest.raises(ValueError, match="lack the closing brackets"):
        prepare_listops(tmp_path / "data", tmp_path / "raw")
