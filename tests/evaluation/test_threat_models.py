import pytest

from jacfuse_jax.evaluation.threat_models import DETECT, THREAT_MODELS, Scenario, make_scenarios

TWO = ("image", "audio")
THREE = ("image", "audio", "text")


def alone(*names):
    return tuple((name,) for name in names)


@pytest.mark.parametrize(
    ("name", "modalities", "expected"),
    [
        ("known", TWO, [(alone("image"), ("image",)), (alone("audio"), ("audio",))]),
        ("wrong", TWO, [(alone("image"), ("audio",)), (alone("audio"), ("image",))]),
        ("unknown", TWO, [(alone("image"), TWO), (alone("audio"), TWO)]),
        ("detect", TWO, [(alone("image"), DETECT), (alone("audio"), DETECT)]),
        ("both", TWO, [((TWO,), TWO)]),
        ("either", TWO, [(alone("image", "audio"), TWO)]),
        ("known", THREE, [(alone(name), (name,)) for name in THREE]),
        (
            "wrong",
            THREE,
            [
                (alone("image"), ("audio", "text")),
                (alone("audio"), ("image", "text")),
                (alone("text"), ("image", "audio")),
            ],
        ),
        ("unknown", THREE, [(alone(name), THREE) for name in THREE]),
        ("both", THREE, [((THREE,), THREE)]),
        ("either", THREE, [(alone(*THREE), THREE)]),
    ],
)
def test_who_is_perturbed_and_what_is_believed(name, modalities, expected):
    scenarios = make_scenarios([name], modalities, modalities)
    assert scenarios == [Scenario(name, *rest) for rest in expected]


def test_only_chosen_modalities_are_perturbed_alone():
    scenarios = make_scenarios(["known", "wrong", "unknown", "either"], ["audio"], THREE)
    assert [scenario.alternatives for scenario in scenarios] == 4 * [(("audio",),)]
    assert [scenario.believed for scenario in scenarios] == [
        ("audio",),
        ("image", "text"),
        THREE,
        THREE,
    ]


def test_no_two_scenarios_read_alike():
    scenarios = make_scenarios(THREAT_MODELS, TWO, TWO)
    read = [(scenario.threat_model, scenario.perturbed) for scenario in scenarios]
    assert len(set(read)) == len(read) == 10
    assert ("both", "image+audio") in read
    assert ("either", "image or audio") in read
