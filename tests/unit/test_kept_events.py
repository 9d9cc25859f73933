"""What is kept for a page that is loaded again, and that it stays small."""

from __future__ import annotations

from magicportrait.host.page.kept_events import KeptEvents


def tell(kept: KeptEvents, page: str, run: str, *values: object) -> None:
    for value in values:
        kept.add(page, "event", {"run": run, "value": value})


def values(kept: KeptEvents, page: str) -> list[object]:
    return [data["value"] for _, data in kept.of(page)]


def test_a_page_gets_what_it_was_told_and_no_other_pages_runs() -> None:
    kept = KeptEvents()
    tell(kept, "a", "1", 1, 2)
    tell(kept, "b", "2", 3)
    assert (values(kept, "a"), values(kept, "b"), values(kept, "c")) == ([1, 2], [3], [])


def test_what_belongs_to_no_run_is_not_kept() -> None:
    kept = KeptEvents()
    kept.add("a", "event", {"value": 1})
    assert kept.of("a") == []


def test_the_oldest_runs_and_pages_go_first() -> None:
    kept = KeptEvents(pages=2, runs=2)
    for run in "123":
        tell(kept, "a", run, run)
    assert values(kept, "a") == ["2", "3"]
    tell(kept, "b", "4", "4")
    tell(kept, "c", "5", "5")
    assert [values(kept, page) for page in "abc"] == [[], ["4"], ["5"]]


def test_a_run_that_goes_on_is_not_the_oldest() -> None:
    kept = KeptEvents(runs=2)
    tell(kept, "a", "1", 1)
    tell(kept, "a", "2", 2)
    tell(kept, "a", "1", 3)
    tell(kept, "a", "3", 4)
    assert values(kept, "a") == [1, 3, 4]


def test_of_a_long_run_every_second_event_goes_but_not_the_ends() -> None:
    kept = KeptEvents(events=10)
    tell(kept, "a", "1", *range(11))
    assert values(kept, "a") == [0, 2, 4, 6, 8, 10]
    tell(kept, "a", "1", *range(11, 200))
    assert len(values(kept, "a")) <= 10
    assert (values(kept, "a")[0], values(kept, "a")[-1]) == (0, 199)


def test_a_nodes_output_takes_the_place_of_its_last_and_pushes_no_run_out() -> None:
    kept = KeptEvents(runs=2, outputs=2)
    tell(kept, "a", "1", "run")
    for value, node in enumerate("xyyzz"):
        kept.put("a", node, "executed", {"value": value})
    assert values(kept, "a") == ["run", 2, 4]
    tell(kept, "a", "2", "later")
    tell(kept, "a", "3", "last")
    assert values(kept, "a") == [2, 4, "later", "last"]
    kept.put("a", "y", "executed", {"value": 5})
    assert values(kept, "a")[-1] == 5, "in the order in which it was told"


def test_all_together_stay_under_their_size() -> None:
    kept = KeptEvents(characters=1000)
    for run in range(5):
        tell(kept, "a", str(run), "x" * 300)
    assert len(values(kept, "a")) == 3
    tell(kept, "a", "too large", "x" * 2000)
    assert values(kept, "a") == []
