"""Whatever happens to a job, every photo is in its output exactly once, with the right row."""

import contextlib
import itertools
import os
import re

import hypothesis
import numpy as np
import pytest
from histories import (
    KINDS,
    Crew,
    Histories,
    Killed,
    Steps,
    World,
    contents,
    empty_memory,
    invented,
    row_of,
)
from hypothesis.stateful import run_state_machine_as_test

from tf_alexnet.errors import OutputError, UsageError
from tf_alexnet.extraction import formats
from tf_alexnet.extraction import job as jobs
from tf_alexnet.extraction.storage import FIXED, Target

# Shrinking takes minutes; HISTORY_SHRINK=1 asks for the shortest history that fails.
PHASES = list(hypothesis.Phase) if "HISTORY_SHRINK" in os.environ else [hypothesis.Phase.generate]
LENGTH = 25


def play(steps, derandomize):
    settings = hypothesis.settings(
        max_examples=steps // LENGTH,
        stateful_step_count=LENGTH,
        deadline=None,
        derandomize=derandomize,
        database=None,
        phases=PHASES,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    run_state_machine_as_test(Histories, settings=settings)


def test_every_photo_once_whatever_happens():
    play(300, derandomize=True)


@pytest.mark.slow
def test_every_photo_once_in_long_histories():
    play(int(os.environ.get("HISTORY_STEPS", "20000")), derandomize=False)


def run(world, output, names, **arguments):
    world.now += 5
    return jobs.run_job(Target(output), names, Crew(world), add=True, **arguments)


@pytest.fixture
def world():
    world, steps = World(), Steps()
    with invented(world, steps):
        for day in (1, 2):
            for letter in "ab":
                world.put(f"day{day}/{letter}.jpg", b"%d-%a" % (day, letter))
        yield world


LINKED = ["now/a.jpg", "now/b.jpg"]


@pytest.mark.parametrize("output", ["f.h5", "f/"])
def test_a_link_that_leads_elsewhere_is_read_anew(world, output, tmp_path):
    output = f"{tmp_path}/{output}"
    world.links["now"] = "day1"
    run(world, output, LINKED)
    world.links["now"] = "day2"
    report = run(world, output, [*LINKED, "day1/a.jpg"])
    assert (report.changed, report.rows) == (2, 3)
    found, _ = contents(output)
    assert found == {name: world.truth(name) for name in [*LINKED, "day1/a.jpg"]}


def test_links_that_change_places(world, tmp_path):
    output, names = f"{tmp_path}/f/", ["one/a.jpg", "two/a.jpg"]
    for same in (False, True):  # with the contents of both equal, neither is done again
        if same:
            world.put("day2/a.jpg", world.files["/day1/a.jpg"][0])
        world.links |= {"one": "day1", "two": "day2"}
        run(world, output, names)
        world.links |= {"one": "day2", "two": "day1"}
        run(world, output, names)
        assert contents(output)[0] == {name: world.truth(name) for name in names}


def test_one_photo_by_two_names_is_one(world, tmp_path):
    world.links["now"] = "day1"
    run(world, f"{tmp_path}/f.h5", ["day1/a.jpg", "day1/b.jpg"])
    report = run(world, f"{tmp_path}/f.h5", LINKED)
    assert (report.rows, report.kept, report.absent) == (2, 2, 0)
    assert set(contents(f"{tmp_path}/f.h5")[0]) == {"day1/a.jpg", "day1/b.jpg"}


def test_a_folder_that_moved_is_not_done_again(world, tmp_path):
    world.links["photos"] = "day1"
    names = ["photos/a.jpg", "photos/b.jpg"]
    run(world, f"{tmp_path}/f/", names)
    for letter in "ab":
        world.files[f"/day3/{letter}.jpg"] = world.files.pop(f"/day1/{letter}.jpg")
    world.links["photos"] = "day3"
    report = run(world, f"{tmp_path}/f/", names)
    assert (report.kept, report.changed) == (2, 0)


@pytest.mark.parametrize("output", ["f.h5", "f/"])
def test_an_unmounted_disk_destroys_nothing(world, output, tmp_path):
    output, names = f"{tmp_path}/{output}", ["day1/a.jpg", "day1/b.jpg"]
    run(world, output, names)
    before = contents(output)
    world.mounted = False
    report = run(world, output, names)
    assert (report.unreadable, report.rows) == (2, 2)
    assert contents(output) == before


def test_inputs_none_of_which_is_known_are_refused(world, tmp_path):
    run(world, f"{tmp_path}/f/", ["day1/a.jpg"])
    with pytest.raises(UsageError, match=r"none for the 2 photos named.*--add"):
        jobs.run_job(Target(f"{tmp_path}/f/"), ["day2/a.jpg", "day2/b.jpg"], Crew(world))


FIRST, SECOND = ["day2/a.jpg", "day2/missing.jpg"], ["day1/b.jpg", "day1/missing.jpg"]


def faults_of_two_jobs(folder, kind, every):
    """A second job without a common lock begins at each step of a first, and is killed at its own.

    They add photos to an output; or go on with a job that replaces one that can't grow. Step of the
    first, step of the second -> what went wrong.
    """
    world, steps, number, faults = World(), Steps(), itertools.count(), {}
    for name in ("day1/a.jpg", "day1/b.jpg", "day2/a.jpg"):
        world.put(name, name.encode())
    truth = {name: world.truth(name) for name in ["day1/a.jpg", *FIRST, *SECOND]}
    grows = not kind.endswith(FIXED)

    def play(at=None, inner_at=None):
        """The number of steps of both."""
        output, ended = f"{folder}/{next(number)}/{kind}", set()
        Target(output).parent.make()

        def attempt(names, **arguments):
            with contextlib.suppress(OutputError, Killed, *([] if grows else [UsageError])):
                run(world, output, names, **arguments)
                ended.update(names)
                if lacking := set(names) - contents(output)[0].keys():
                    faults[at, inner_at] = f"{names} ended well without {lacking}"

        run(world, output, ["day1/a.jpg"])
        if not grows:
            steps.reset(7, "kill")
            attempt(["day1/a.jpg"], force=True)
            assert jobs.read_header(Target(output).job)["forced"]
        steps.reset(at, lambda: attempt(SECOND), inner_at)
        attempt(FIRST)
        counts = steps.count, steps.inner_count
        steps.reset()
        try:
            run(world, output, [*FIRST, *SECOND] if not grows else ["day1/a.jpg"])
        except UsageError:
            assert not grows
        except OutputError as error:
            faults[at, inner_at] = str(error)
            return counts
        if lost := ended - contents(output)[0].keys():
            faults[at, inner_at] = f"{lost} are gone"
        if grows:
            run(world, output, [*FIRST, *SECOND])
            if contents(output) != (truth, 2):
                faults[at, inner_at] = "the output is not whole in the end"
        return counts

    with invented(world, steps):
        last, _ = play()
        for at in range(1, last + 1):
            _, inner_last = play(at)
            if every or at > last - 6:
                for inner_at in range(1, inner_last + 1, 1 if every else 7):
                    play(at, inner_at)
    return faults


@pytest.mark.parametrize("kind", ["f/", "f.h5", "f.npy"])
def test_two_jobs_without_a_common_lock(kind):
    empty_memory()
    assert not faults_of_two_jobs("memory://two-jobs", kind, every=False)


@pytest.mark.parametrize("kind", ["f/", "f.h5"])
def test_data_files_that_vanish(kind):
    world, steps = World(), Steps()
    for name in ("day1/b.jpg", "day2/a.jpg"):
        world.put(name, name.encode())
    errors = []

    def vanish():
        folder = Target(output).data
        for name in folder.sizes():
            if name.endswith(".h5"):
                folder.remove(name)

    with invented(world, steps):
        for at in itertools.count(1):
            empty_memory()
            output = f"memory://vanish/{kind}"
            steps.reset(at, vanish)
            try:
                run(world, output, [*FIRST, *SECOND])
            except OutputError as error:
                errors.append(str(error))
            count = steps.count
            steps.reset()
            run(world, output, [*FIRST, *SECOND])
            truth = {name: world.truth(name) for name in [*FIRST, *SECOND]}
            assert contents(output) == (truth, 2)
            if count < at:
                break
    message = (
        r"memory://vanish/.*\.h5: it is missing\. Run the same command again to repeat its ph.*"
    )
    assert any(re.fullmatch(message, error) for error in errors), errors


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted({*KINDS}))
@pytest.mark.parametrize("where", ["disk", "memory"])
def test_two_jobs_at_every_step(kind, where, tmp_path):
    empty_memory()
    folder = tmp_path if where == "disk" else "memory://two-jobs"
    assert not faults_of_two_jobs(folder, kind, every=True)


def test_a_folder_behind_a_url_may_have_brackets(world):
    empty_memory()
    run(world, "memory://run[1]/f.h5", ["day1/a.jpg"])
    assert Target("memory://run[1]/f.h5").parent.sizes().keys() == {"f.h5"}


@pytest.mark.parametrize("discard", [False, True])
def test_no_older_row_takes_the_place_of_one_that_is_lost(world, tmp_path, monkeypatch, discard):
    folder, names = tmp_path / "f", ["day1/a.jpg", "day1/b.jpg"]
    run(world, f"{folder}/", names, shard_size=1)
    old = set(folder.glob("*.h5"))
    world.put("day1/a.jpg", b"new")
    with monkeypatch.context() as patch:
        patch.setattr(jobs._Job, "finish", lambda *_: 1 / 0)  # before the old row is deleted
        with pytest.raises(ZeroDivisionError):
            run(world, f"{folder}/", names)
        (newest,) = set(folder.glob("*.h5")) - old
        newest.unlink()
        with pytest.raises(ZeroDivisionError):
            run(world, f"{folder}/", names[discard:], discard_damaged=discard)
    run(world, f"{folder}/", names[1:])
    found = {name: world.truth(name) for name in names[discard:]}
    assert contents(f"{folder}/")[0] == found


@pytest.mark.parametrize("suffix", ["h5", "npz"])
def test_rows_follow_a_list_also_where_they_are_read_in_pieces(
    world, suffix, tmp_path, monkeypatch
):
    monkeypatch.setattr(formats, "BLOCK_BYTES", 2 * 2048)  # two rows of a shard at a time
    monkeypatch.setattr(jobs, "_LISTED_BYTES", 16 * 19)  # 19 rows of the list
    photos = {f"p/{i}.jpg": b"x%d" % i if i % 5 == 0 else b"a%d" % i for i in range(20)}
    for name, content in photos.items():
        world.put(name, content)
    lines = [f"p/{i * i % 20}.jpg" for i in range(60)] + list(photos)
    listing = jobs._Listing(lines, True)
    run(world, f"{tmp_path}/f.{suffix}", list(photos), shard_size=7, listing=listing)
    with formats.open_output(f"{tmp_path}/f.{suffix}") as file:
        found = np.concatenate([block["fc7"] for block in file.blocks(["fc7"])])
    bad, rows = np.full(4, np.nan), {name: row_of(x) for name, x in photos.items()}
    expected = [bad if photos[x].startswith(b"x") else rows[x] for x in lines]
    np.testing.assert_array_equal(found, expected)
