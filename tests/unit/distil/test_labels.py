from datetime import UTC, datetime

from histories import demo, said, stored

from rag_tuned_memory.distil.labels import head, label_episodes, month, noun
from rag_tuned_memory.distil.views import view
from rag_tuned_memory.trajectory import Trajectory


def labels(*trajectories: Trajectory) -> list[str]:
    return [episode.label for episode in label_episodes([view(one) for one in stored(trajectories)])]


def at(day: int, hour: int = 9) -> datetime:
    return datetime(2026, 3, day, hour, tzinfo=UTC)


def test_an_identifier_of_the_goal_names_an_episode() -> None:
    history = demo()
    episodes = label_episodes([view(one) for one in history])
    assert [e.label for e in episodes] == [f"incident {one.trajectory.source_id}" for one in history]
    assert noun(episodes) == "incident"


def test_episodes_that_share_their_name_are_numbered_in_order_of_time() -> None:
    goal = "Help user ana_12 with a flight"
    assert labels(
        said("later", goal=goal, started_at=at(2)),
        said("first", goal=goal, started_at=at(1)),
        said("undated", goal=goal),
        said("else", goal="Help user bob_34", started_at=at(3)),
    ) == ["episode ana_12, run 1", "episode ana_12, run 2", "episode bob_34", "episode ana_12, run 3"]


def test_without_identifiers_the_date_names_it_and_the_hour_where_the_date_is_shared() -> None:
    assert labels(
        said("x", started_at=at(1)), said("y", started_at=at(2, 9)), said("z", started_at=at(2, 17)), said("w")
    ) == [
        "the episode of 1 March 2026",
        "the episode of 2 March 2026 at 09:00",
        "the episode of 2 March 2026 at 17:00",
        "episode 4",
    ]


def test_an_id_of_the_source_names_it_unless_it_is_a_text() -> None:
    assert labels(said("x", source_id="task 3"), said("y", source_id="any text, as long as one likes")) == [
        "episode task 3",
        "episode 2",
    ]


def test_the_rarer_identifier_names_better() -> None:
    history = [said("x", goal=f"Move AB{n}CD of region eu-1 to eu-1b") for n in range(3)]
    assert labels(*history) == ["episode AB0CD", "episode AB1CD", "episode AB2CD"]


def test_several_runs_for_one_user_are_episodes_not_users() -> None:
    goal = "Help user ana_12 with a flight"
    episodes = label_episodes([view(one) for one in stored([said(str(n), goal=goal) for n in range(3)])])
    assert noun(episodes) == "episode"
    assert noun([]) == "episode"


def test_parts_of_labels() -> None:
    assert month(datetime(2026, 3, 4, tzinfo=UTC)) == "March 2026"
    assert head("user ana_12, run 3") == head("user ana_12") == "user ana_12"
