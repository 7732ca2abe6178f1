"""The user's presets: what is saved comes back, and what is damaged is told about and never thrown away."""

import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdit_ext import ResDiTError
from resdit_ext.method.config import PRESETS
from resdit_ext.webui import presets
from resdit_ext.webui.options import BY_NAME, DEFAULTS, PARAMETERS, preset_values
from resdit_ext.webui.presets import PresetStore
from tests.test_options import values_of

MINE = preset_values("Paper") | {"cutoff": 0.3, "speed": "fast"}

names = (
    st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=60)
    .filter(lambda name: name.isprintable() and name.casefold() not in map(str.casefold, PRESETS))
)  # fmt: skip
values = st.fixed_dictionaries({name: values_of(BY_NAME[name]) for name in PARAMETERS}).map(
    lambda values: values | {"fused_until": max(values["global_until"], values["fused_until"])}
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(PARAMETERS) | st.text(), inner),
)


@pytest.fixture
def store(tmp_path):
    return PresetStore(tmp_path / "user_presets.json")


@pytest.fixture(scope="module")
def lasting(tmp_path_factory):
    return PresetStore(tmp_path_factory.mktemp("presets") / "user_presets.json")


def files(store):
    return sorted(path.name for path in store.path.parent.iterdir())


def test_it_holds_what_a_built_in_preset_holds(store):
    store.save("Mine", MINE)
    loaded, problem = store.load()
    assert list(loaded["Mine"]) == list(preset_values("Balanced")) and problem is None


@given(st.dictionaries(names, values, max_size=4))
def test_round_trip(lasting, wanted):
    lasting.path.unlink(missing_ok=True)
    for name, chosen in wanted.items():
        lasting.save(name, chosen)
    assert PresetStore(lasting.path).load() == (wanted, None)
    assert files(lasting) in ([], ["user_presets.json"])  # no temporary file is left


def test_without_a_file_there_are_none_and_none_is_made(store):
    assert store.load() == ({}, None) and files(store) == []


def test_save_replaces_rename_keeps_the_place_delete_removes(store):
    for name in ("a", "b", "c"):
        store.save(name, MINE)
    store.save("b", MINE | {"cutoff": 0.4})
    store.rename("b", "  B2 ")
    store.delete("a")
    loaded, _ = store.load()
    assert list(loaded) == ["B2", "c"] and loaded["B2"]["cutoff"] == 0.4
    store.rename("c", "C")
    store.rename("C", "C")
    assert list(store.load()[0]) == ["B2", "C"]


@pytest.mark.parametrize("name", ["", "  ", "x" * 61, "a\nb", "tab\t.", "\ud800", "\x00", None, 7])
def test_names_that_cannot_be_shown_are_refused(store, name):
    store.save("x", MINE)
    for act in (lambda: store.save(name, MINE), lambda: store.rename("x", name)):
        with pytest.raises(ResDiTError) as error:
            act()
        assert str(error.value).startswith(f"preset name is {name!r}; it must be 1 to 60 printable characters")
    assert list(store.load()[0]) == ["x"]


@pytest.mark.parametrize("name", ["Paper", "paper", " BALANCED ", "scaled Positions"])
def test_a_built_in_name_is_refused(store, name):
    store.save("x", MINE)
    for act in (lambda: store.save(name, MINE), lambda: store.rename("x", name)):
        with pytest.raises(ResDiTError, match="it must not be a built-in preset's"):
            act()


def test_names_are_never_paths(store):
    name = "../../etc/passwd"
    store.save(name, MINE)
    assert files(store) == ["user_presets.json"] and list(store.load()[0]) == [name]


def test_unknown_presets_and_taken_names_are_refused(store):
    store.save("a", MINE)
    store.save("b", MINE)
    for act, message in (
        (lambda: store.delete("c"), "preset is 'c'; choose one of your own ('a', 'b')"),
        (lambda: store.rename("Paper", "c"), "preset is 'Paper'; choose one of your own ('a', 'b')"),
        (lambda: store.rename("a", "b"), "preset name is 'b'; it must not be another preset's"),
    ):
        with pytest.raises(ResDiTError) as error:
            act()
        assert str(error.value) == message
    assert store.load()[0] == {"a": MINE, "b": MINE}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cutoff": 7}, "cutoff is 7; it must be a number from 0 to 1"),
        ({"speed": None}, "speed is None; choose one of 'exact'"),
        ({"size": "3K"}, "unknown field 'size'; a preset's fields are global_until"),
        ({"layout": "scaled", "global_until": 0.6, "fused_until": 0.3}, "fused_until is 0.3, below global_until 0.6"),
    ],
)
def test_bad_values_are_not_saved(store, change, message):
    with pytest.raises(ResDiTError) as error:
        store.save("x", MINE | change)
    assert str(error.value).startswith(message) and files(store) == []


@pytest.mark.parametrize(("field", "meant"), [("cutoff", 0.2), ("speed", "exact"), ("layout", "scaled")])
def test_a_missing_field_is_not_saved_and_is_loaded_as_it_was_meant(store, field, meant):
    """A preset of an earlier release, which had no such option, or another default."""
    some = {name: value for name, value in MINE.items() if name != field}
    with pytest.raises(ResDiTError, match=f"{field} is None"):
        store.save("x", some)
    store.path.write_text(json.dumps({"x": some}))
    assert store.load() == ({"x": MINE | {field: meant}}, None)


@pytest.mark.parametrize(
    ("entry", "kept", "message"),
    [
        (MINE | {"cutoff": 7}, MINE | {"cutoff": DEFAULTS["cutoff"]}, "a field of preset 'x' is ignored: cutoff is 7"),
        (MINE | {"cutoff": 10**400}, MINE | {"cutoff": DEFAULTS["cutoff"]}, "a field of preset 'x' is ignored: "),
        (
            MINE | {"cutoff": float("nan")},
            MINE | {"cutoff": DEFAULTS["cutoff"]},
            "a field of preset 'x' is ignored: cutoff is nan",
        ),
        (MINE | {"later": [1]}, MINE, "a field of preset 'x' is ignored: unknown field 'later'"),
        ([1, 2], None, "preset 'x' is ignored: it is a list, not an object of options"),
        (MINE | {"global_until": 0.9}, None, "preset 'x' is ignored: fused_until is 0.57, below global_until 0.9"),
    ],
)
def test_bad_fields_in_the_file_are_dropped_and_told_about(store, entry, kept, message):
    store.path.write_text(json.dumps({"good": MINE, "x": entry}))
    loaded, problem = store.load()
    assert loaded == {"good": MINE} | ({"x": kept} if kept else {})
    assert f"user_presets.json: {message}" in problem


def test_bad_names_in_the_file_are_told_about_and_can_be_deleted(store):
    store.path.write_text(json.dumps({"paper": MINE, "a\nb": MINE}))
    loaded, problem = store.load()
    assert loaded == {} and "'paper' is ignored" in problem and "'a\\nb' is ignored" in problem
    store.delete("paper")
    store.rename("a\nb", "ab")
    assert store.load() == ({"ab": MINE}, None)


def test_what_a_later_release_saved_survives_this_ones_saving(store):
    later = {"x": MINE | {"later": 1}, "y": "a kind of preset yet unknown"}
    store.path.write_text(json.dumps(later))
    store.save("z", MINE)
    assert json.loads(store.path.read_text()) == later | {"z": MINE}


@given(st.binary(max_size=60) | anything.map(lambda x: json.dumps(x).encode()))
def test_any_content_is_loaded_without_an_exception(lasting, content):
    for path in lasting.path.parent.iterdir():
        path.unlink()
    lasting.path.write_bytes(content)
    loaded, problem = lasting.load()
    assert all(presets.check_values(chosen) == chosen for chosen in loaded.values())
    assert problem or loaded or json.loads(content) == {}
    kept = lasting.path if lasting.path.exists() else lasting.path.with_name("user_presets.json.bad")
    assert kept.read_bytes() == content  # whatever it was, it is still there


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_moved_aside(store, share):
    store.save("a", MINE)
    whole = store.path.read_bytes()
    damaged = whole[: int(share * len(whole))]
    store.path.write_bytes(damaged)
    loaded, problem = store.load()
    assert loaded == {} and problem == (
        "user_presets.json was damaged and is now user_presets.json.bad; your list of presets is empty"
    )
    assert files(store) == ["user_presets.json.bad"] and store.load() == ({}, None)
    assert (store.path.parent / "user_presets.json.bad").read_bytes() == damaged


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "null", '"text"', "7"])
def test_saving_moves_a_damaged_file_aside_too_and_numbers_it(store, content):
    for number in ("", "1", "2"):
        store.path.write_text(content)
        store.save("a", MINE)
        assert (store.path.parent / f"user_presets.json.bad{number}").read_text() == content
    assert store.load() == ({"a": MINE}, None)


def test_two_stores_do_not_lose_each_others_presets(store):
    other = PresetStore(store.path)
    store.load(), other.load()
    store.save("a", MINE)
    other.save("b", MINE)
    store.save("c", MINE)
    other.delete("a")
    assert list(store.load()[0]) == list(other.load()[0]) == ["b", "c"]


def test_threads_do_not_lose_each_others_presets(store):
    threads = [threading.Thread(target=PresetStore(store.path).save, args=(str(i), MINE)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(store.load()[0]) == {str(i) for i in range(16)}


def test_a_write_that_fails_leaves_the_old_file_and_no_other(store, monkeypatch):
    store.save("a", MINE)

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(presets.os, "fsync", full)
    with pytest.raises(ResDiTError, match=r"user_presets\.json cannot be written: no space left"):
        store.save("b", MINE)
    assert files(store) == ["user_presets.json"] and list(store.load()[0]) == ["a"]


def test_a_file_that_cannot_be_read_is_not_replaced(store):
    store.path.mkdir()
    loaded, problem = store.load()
    assert loaded == {} and problem.startswith("user_presets.json cannot be read")
    with pytest.raises(ResDiTError, match="cannot be read"):
        store.save("a", MINE)
    assert store.path.is_dir()


def test_what_is_nested_too_deeply_to_be_written_again_stays_and_is_told_about(store, monkeypatch):
    """Some releases of Python read what is deeper than what they write."""
    store.save("a", MINE)
    content = store.path.read_bytes()

    def too_deep(*_, **__):
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr(presets.json, "dumps", too_deep)
    with pytest.raises(ResDiTError, match=r"user_presets\.json cannot be written: maximum recursion"):
        store.save("b", MINE)
    assert store.path.read_bytes() == content and files(store) == ["user_presets.json"]


def test_a_damaged_file_that_cannot_be_moved_aside_stays_and_is_told_about(store, monkeypatch):
    store.path.write_text("damaged")

    def refused(*_):
        raise OSError("permission denied")

    monkeypatch.setattr(presets.Path, "replace", refused)
    told = "user_presets.json is damaged and cannot be renamed: permission denied"
    assert store.load() == ({}, told)
    with pytest.raises(ResDiTError, match=told):
        store.save("a", MINE)
    assert store.path.read_text() == "damaged"


def test_a_damaged_file_is_moved_aside_before_another_thread_writes_a_new_one(store, monkeypatch):
    """Else the new one would be moved in its place."""
    store.path.write_text("damaged")
    saving = threading.Thread(target=PresetStore(store.path).save, args=("a", MINE))
    loads, reader = json.loads, threading.current_thread()

    def slow(text):
        if threading.current_thread() is reader:
            saving.start()
            saving.join(0.2)
        return loads(text)

    monkeypatch.setattr(presets.json, "loads", slow)
    store.load()
    monkeypatch.undo()
    saving.join()
    assert store.load() == ({"a": MINE}, None)
    assert (store.path.parent / "user_presets.json.bad").read_text() == "damaged"


def test_what_was_last_read_or_written_is_known_without_the_file(store):
    assert store.known == {}
    store.save("a", MINE)
    store.rename("a", "b")
    assert store.known == {"b": MINE}
    PresetStore(store.path).save("c", MINE)
    assert store.known == {"b": MINE}
    store.load()
    assert store.known == {"b": MINE, "c": MINE}
    store.delete("b")
    assert store.known == {"c": MINE}
    store.path.write_text("damaged")
    store.load()
    assert store.known == {}


LONG = "x" * 5_000_000


@pytest.mark.parametrize(
    "act",
    [
        lambda store: store.save(LONG, MINE),
        lambda store: store.save("a", MINE | {LONG: 1}),
        lambda store: store.save("a", MINE | {"speed": LONG}),
        lambda store: store.rename(LONG, "b"),
        lambda store: store.delete(LONG),
    ],
)
def test_a_message_quotes_a_short_piece_only(store, act):
    store.path.write_text(json.dumps({f"{number}" * 60: MINE for number in range(1000)}))
    with pytest.raises(ResDiTError) as error:
        act(store)
    assert "..." in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize("entries", [{LONG: MINE}, {LONG: 7}, {LONG: {"cutoff": 7}}, {"x": {LONG: 1}}])
def test_what_is_wrong_in_the_file_is_told_shortly_too(store, entries):
    store.path.write_text(json.dumps(entries))
    problem = store.load()[1]
    assert "..." in problem and len(problem) < 1000
