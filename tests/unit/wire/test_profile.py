"""The file in which a rank writes its profile."""

from __future__ import annotations

from pathlib import Path

from ddp_magic.wire.profile import Call, Group, Place, ProfileWriter, Sample, Spent, read

BEGAN = 1000.0


def _written(path: Path) -> ProfileWriter:
    writer = ProfileWriter(path, 2, "cuda", BEGAN, threads=3)
    place = writer.place(Place("/run/cell.py", 4, "all_reduce"))
    group = writer.group("gloo:0", "default_pg", (0, 2))
    writer.sample(Sample(BEGAN + 0.02, 0.02, Spent.COMPUTE, place))
    writer.flush()
    writer.sample(Sample(BEGAN + 0.04, 0.02, Spent.COLLECTIVE, place, group, 7))
    writer.call(Call(group, 7, "all_reduce", BEGAN + 0.03, 16))
    writer.step(BEGAN + 0.05)
    return writer


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    writer = _written(tmp_path / "p")
    writer.end(BEGAN + 0.5, 3, {0: 9}, 0.25, {0: 0.125})
    found = read((tmp_path / "p").open())
    assert found is not None
    assert (found.rank, found.device, found.began, found.threads) == (2, "cuda", BEGAN, 3)
    assert found.places == [Place("/run/cell.py", 4, "all_reduce")]
    assert found.groups == [Group("gloo:0", "default_pg", (0, 2))]
    assert found.samples == [
        Sample(BEGAN + 0.02, 0.02, Spent.COMPUTE, 0),
        Sample(BEGAN + 0.04, 0.02, Spent.COLLECTIVE, 0, 0, 7),
    ]
    assert found.calls == [Call(0, 7, "all_reduce", BEGAN + 0.03, 16)]
    assert found.steps == [BEGAN + 0.05]
    assert (found.ended, found.complete) == (BEGAN + 0.5, True)
    assert (found.last, found.lost, found.queued_s) == ({0: 9}, 3, 0.25)
    assert found.beside == {0: 0.125}


def test_a_rank_that_was_killed_leaves_what_it_had_written(tmp_path: Path) -> None:
    """Also in the middle of a line."""
    path = tmp_path / "p"
    _written(path).flush()
    path.write_text(path.read_text() + '{"samples": [[600')
    found = read(path.open())
    assert found is not None
    assert (len(found.samples), found.complete, found.ended) == (2, False, BEGAN + 0.04)


def test_a_collective_that_is_written_again_is_replaced(tmp_path: Path) -> None:
    """Its duration on the GPU is known later."""
    writer = _written(tmp_path / "p")
    writer.call(Call(0, 7, "all_reduce", BEGAN + 0.03, 16, 0.002))
    writer.flush()
    found = read((tmp_path / "p").open())
    assert found is not None
    assert [call.duration_s for call in found.calls] == [0.002]


def test_an_empty_file_is_no_profile() -> None:
    assert read([]) is None


def test_a_place_has_one_index(tmp_path: Path) -> None:
    writer = ProfileWriter(tmp_path / "p", 0, "cpu", BEGAN)
    places = [Place("a", 1), Place("a", 2), Place("a", 1)]
    assert [writer.place(place) for place in places] == [0, 1, 0]
    assert [writer.group(key) for key in ("a", "b", "a")] == [0, 1, 0]
