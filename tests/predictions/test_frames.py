"""Data frames that are fused, against `fusion.fuse` on arrays and against the files' program."""

import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from jacfuse_jax import fusion, linalg
from jacfuse_jax.predictions import fuse_frames
from tests import reference

RNG = np.random.default_rng(0)
NUM_ROWS = 12
CLASSES = ("sea", "dog", "cat", "owl")
NUM_CLASSES = len(CLASSES)
LABELS = pd.Index([f"clip {i}" for i in RNG.permutation(NUM_ROWS)], name="clip")
COLUMNS = pd.Index(CLASSES, name="class")
AUDIO, VIDEO = (2 * RNG.normal(size=(NUM_ROWS, NUM_CLASSES)) for _ in range(2))
KERNEL = RNG.normal(size=(6, NUM_CLASSES))
PRIOR = np.array([0.1, 0.2, 0.3, 0.4])
SPECTRUM = linalg.spectrum_from_kernel(KERNEL)
ROWS, ORDER = RNG.permutation(NUM_ROWS), RNG.permutation(NUM_CLASSES)
RULES = [
    fusion.Statistical(),
    fusion.Mean(),
    fusion.Cascade(confidence=0.6, tempering=0.5),
    fusion.Contaminated(contamination=0.3),
    fusion.ContaminatedRobust(contamination=0.2, gamma=0.1),
]


def frame_of(logits, index=LABELS, columns=COLUMNS, dtype: Any = np.float64):
    return pd.DataFrame(logits.astype(dtype), index, columns)


@pytest.fixture
def frames():
    return {"audio": frame_of(AUDIO), "video": frame_of(VIDEO)}


def fuse(rule, present=None, **changes):
    """What arrays give."""
    arguments: dict[str, Any] = {"logits": {"audio": AUDIO, "video": VIDEO}, "class_prior": PRIOR}
    arguments |= {"perturbed": "audio", "grams": {"audio": SPECTRUM}} | changes
    return np.asarray(fusion.fuse(rule, **arguments, present=present))


class TestAgreesWithArrays:
    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
    def test_in_any_order(self, rule, frames):
        arguments: dict[str, Any] = {
            "perturbed": "audio",
            "class_prior": PRIOR,
            "grams": {"audio": SPECTRUM},
        }
        fused = fuse_frames(rule, frames, **arguments)
        expected = pd.DataFrame(fuse(rule), LABELS, COLUMNS)
        pd.testing.assert_frame_equal(fused, expected, rtol=1e-12, atol=0)
        # A frame, its columns, its Gram matrix and the prior are permuted, each its own way.
        prior = pd.Series(PRIOR, CLASSES)[::-1]
        shuffled = frames | {"video": frames["video"].iloc[ROWS, ORDER]}
        arguments["class_prior"] = prior
        fused = fuse_frames(rule, shuffled, **arguments)
        pd.testing.assert_frame_equal(fused, expected, rtol=1e-12, atol=0)
        shuffled = frames | {"audio": frames["audio"].iloc[ROWS, ORDER]}
        arguments["grams"] = {"audio": linalg.spectrum_from_kernel(KERNEL[:, ORDER])}
        fused = fuse_frames(rule, shuffled, **arguments)
        pd.testing.assert_frame_equal(fused, expected.iloc[ROWS, ORDER], rtol=1e-10, atol=0)

    def test_however_often_they_are_shuffled(self, frames):
        def shuffle(frame):
            return frame.iloc[RNG.permutation(NUM_ROWS), RNG.permutation(NUM_CLASSES)]

        holed = {name: frame.copy() for name, frame in frames.items()}
        holed["audio"].iloc[3] = np.nan
        rule = fusion.Contaminated(contamination=0.3)
        arguments: dict[str, Any] = {"perturbed": "audio", "class_prior": pd.Series(PRIOR, CLASSES)}
        expected = fuse_frames(rule, holed, **arguments)
        for _ in range(10):
            shuffled = {name: shuffle(frame) for name, frame in holed.items()}
            fused = fuse_frames(rule, shuffled, **arguments)
            assert list(fused.columns) == list(shuffled["audio"].columns)
            assert list(fused.index) == list(shuffled["audio"].index)
            fused = fused.loc[expected.index, expected.columns]
            pd.testing.assert_frame_equal(fused, expected, rtol=1e-12, atol=0)

    @pytest.mark.parametrize("is_matrix", [False, True])
    def test_in_grams_of_both_forms(self, is_matrix, frames):
        rule = fusion.Robust(gamma=0.1, solver="eigh")
        gram = jnp.asarray(KERNEL.T @ KERNEL)[ORDER][:, ORDER]
        frames["video"] = frames["video"].iloc[:, ORDER]
        fused = fuse_frames(
            rule,
            frames,
            perturbed="video",
            grams={"video": gram if is_matrix else linalg.gram_spectrum(gram)},
        )
        prior = np.full(NUM_CLASSES, 1 / NUM_CLASSES)
        expected = fuse(rule, perturbed="video", grams={"video": SPECTRUM}, class_prior=prior)
        assert_allclose(fused, expected, rtol=1e-9)

    def test_in_both_dtypes(self, dtype):
        frames = {"audio": frame_of(AUDIO, dtype=np.float32), "video": frame_of(VIDEO, dtype=dtype)}
        fused = fuse_frames(fusion.Statistical(), frames, perturbed="audio", class_prior=PRIOR)
        assert (fused.dtypes == dtype).all()
        logits = {"audio": AUDIO.astype(np.float32), "video": VIDEO.astype(dtype)}
        probs = reference.statistical_fusion(logits, PRIOR)
        assert_allclose(np.exp(fused), probs, atol=8 * NUM_CLASSES * float(np.finfo(dtype).eps))

    def test_without_x64(self, frames):
        with jax.enable_x64(False):
            fused = fuse_frames(fusion.Statistical(), frames, perturbed="audio")
        assert (fused.dtypes == np.float32).all()

    @pytest.mark.parametrize("floating", ["Float64", "double[pyarrow]", "Float32"])
    def test_in_nullable_columns(self, floating, frames):
        frames["audio"].iloc[2] = np.nan
        expected = fuse_frames(fusion.Statistical(), frames, perturbed="audio")
        nullable = {name: frame.astype(floating) for name, frame in frames.items()}
        assert nullable["audio"].iloc[2].isna().all()
        fused = fuse_frames(fusion.Statistical(), nullable, perturbed="audio")
        rtol = 1e-5 if floating == "Float32" else 1e-14
        assert_allclose(fused, expected, rtol=rtol)

    @pytest.mark.parametrize("num_classes", [2, 309])
    def test_of_few_and_many_classes(self, num_classes):
        logits = {name: RNG.normal(size=(5, num_classes)) for name in ("audio", "video")}
        order = RNG.permutation(num_classes)
        frames = {name: pd.DataFrame(z) for name, z in logits.items()}
        frames["video"] = frames["video"].iloc[:, order]
        fused = fuse_frames(fusion.Statistical(), frames, perturbed="audio")
        probs = reference.statistical_fusion(logits, np.full(num_classes, 1 / num_classes))
        assert_allclose(np.exp(fused), probs, rtol=1e-11)


class TestIndex:
    @pytest.mark.parametrize(
        "index",
        [
            pd.RangeIndex(NUM_ROWS),
            pd.Index(ROWS / 4, name="time"),
            pd.date_range("2000-01-01", periods=NUM_ROWS, name="day"),
            pd.MultiIndex.from_product([["a", "b"], range(6)], names=["speaker", "clip"]),
            pd.CategoricalIndex(LABELS),
        ],
        ids=lambda index: type(index).__name__,
    )
    def test_is_kept(self, index):
        frames = {"audio": frame_of(AUDIO, index), "video": frame_of(VIDEO, index).iloc[ROWS]}
        fused = fuse_frames(fusion.Statistical(), frames, perturbed="audio")
        pd.testing.assert_index_equal(fused.index, index, exact=True)
        expected = reference.statistical_fusion({"a": AUDIO, "v": VIDEO}, np.full(4, 0.25))
        assert_allclose(np.exp(fused), expected, rtol=1e-12)

    def test_of_columns_may_have_levels(self):
        columns = pd.MultiIndex.from_tuples([("land", "dog"), ("land", "cat"), ("sea", "eel")])
        frames = {"a": frame_of(AUDIO[:, :3], columns=columns)}
        frames["v"] = frame_of(VIDEO[:, :3], columns=columns).iloc[:, [2, 0, 1]]
        fused = fuse_frames(fusion.Statistical(), frames, perturbed="a")
        pd.testing.assert_index_equal(fused.columns, columns)
        expected = reference.statistical_fusion(
            {"a": AUDIO[:, :3], "v": VIDEO[:, :3]}, np.full(3, 1 / 3)
        )
        assert_allclose(np.exp(fused), expected, rtol=1e-12)


class TestMissing:
    """Audio has rows 0 to 8, one of them NaN; video rows 4 to 11, in another order."""

    @pytest.fixture(params=["flat", "levels"])
    def index(self, request):
        if request.param == "flat":
            return LABELS
        return pd.MultiIndex.from_product([["a", "b", "c"], range(4)], names=["speaker", "clip"])

    @pytest.fixture
    def holed(self, index):
        audio = AUDIO.copy()
        audio[6] = np.nan
        return {
            "audio": frame_of(audio, index).iloc[:9],
            "video": frame_of(VIDEO, index).iloc[4:][::-1],
        }

    def test_is_fused_as_what_is_left(self, holed, index):
        rule = fusion.Contaminated(contamination=0.3)
        fused = fuse_frames(rule, holed, perturbed="audio", class_prior=PRIOR)
        expected_index = index[:9].append(index[9:][::-1])
        pd.testing.assert_index_equal(fused.index, expected_index)
        rows = np.arange(NUM_ROWS)
        expected = fuse(rule, present={"audio": (rows < 9) & (rows != 6), "video": rows >= 4})
        assert_allclose(fused.loc[index], expected, rtol=1e-12)

    def test_is_dropped(self, holed, index):
        rule = fusion.Statistical()
        fused = fuse_frames(rule, holed, perturbed="audio", class_prior=PRIOR, missing="drop")
        kept = [4, 5, 7, 8]
        pd.testing.assert_index_equal(fused.index, index[kept])
        assert_allclose(fused, fuse(rule)[kept], rtol=1e-12)

    def test_is_refused(self, holed, index):
        labels = str(index[9:][::-1].tolist()).strip("[]")
        message = (
            f"missing=error: audio is missing in 3 of 12 rows, whose ids are not in "
            f"frames['audio']: {labels}; give missing=fuse, or drop"
        )
        with pytest.raises(ValueError, match="missing=error") as caught:
            fuse_frames(fusion.Statistical(), holed, perturbed="audio", missing="error")
        assert str(caught.value) == message
        whole = {name: frame.iloc[:2] for name, frame in holed.items()}
        with pytest.raises(ValueError, match=r"^no id is in all of frames\['audio'\], frames\['v"):
            fuse_frames(fusion.Statistical(), whole, perturbed="audio")

    def test_needs_a_rule_that_takes_it(self, holed):
        class Own(fusion.Statistical):
            takes_missing = False

        with pytest.raises(ValueError, match="does not take rows that lack modalities"):
            fuse_frames(Own(), holed, perturbed="audio")
        fuse_frames(fusion.Statistical(), holed, perturbed="audio", missing="drop")

    def test_of_some_entries_is_refused(self, frames):
        frames["video"].iloc[5, 1] = np.nan
        label = LABELS[5]
        message = rf"^frames\['video'\]: row '{label}' has NaN in 1 of 4 entries; all of them would"
        with pytest.raises(ValueError, match=message):
            fuse_frames(fusion.Statistical(), frames, perturbed="audio")


class TestClassesThatDiffer:
    @pytest.fixture
    def differing(self, frames):
        return {"audio": frames["audio"].iloc[:, :3], "video": frames["video"].iloc[:, ::-1]}

    def test_are_refused(self, differing):
        message = (
            r"^classes differ: frames\['audio'\] lacks 1 of 4: 'owl'; rename them, or give "
            "classes=intersect or unite$"
        )
        with pytest.raises(ValueError, match=message):
            fuse_frames(fusion.Statistical(), differing, perturbed="audio")

    @pytest.mark.parametrize("perturbed", ["audio", "video"])
    def test_are_intersected(self, perturbed, differing):
        rule = fusion.ContaminatedRobust(contamination=0.2, gamma=0.1)
        own = {"audio": KERNEL[:, :3], "video": KERNEL[:, ::-1]}
        fused = fuse_frames(
            rule,
            differing,
            perturbed=perturbed,
            class_prior=pd.Series(PRIOR, CLASSES),
            grams={name: linalg.spectrum_from_kernel(kernel) for name, kernel in own.items()},
            classes="intersect",
        )
        pd.testing.assert_index_equal(fused.columns, COLUMNS[:3])
        expected = fuse(
            rule,
            logits={"audio": AUDIO[:, :3], "video": VIDEO[:, :3]},
            class_prior=PRIOR[:3] / PRIOR[:3].sum(),
            perturbed=perturbed,
            grams={perturbed: linalg.spectrum_from_kernel(KERNEL[:, :3])},
        )
        assert_allclose(fused, expected, rtol=1e-9)

    def test_are_united(self, differing):
        rule = fusion.Contaminated(contamination=0.2)
        prior = pd.Series(PRIOR, CLASSES)[::-1]
        fused = fuse_frames(rule, differing, perturbed="audio", class_prior=prior, classes="unite")
        pd.testing.assert_index_equal(fused.columns, COLUMNS)
        known = np.exp(AUDIO[:, :3])
        known *= 0.6 / known.sum(axis=1, keepdims=True)
        probs = np.column_stack([known, np.full(NUM_ROWS, 0.4)])
        expected = fuse(rule, logits={"audio": np.log(probs), "video": VIDEO})
        assert_allclose(fused, expected, rtol=1e-10)

    def test_have_no_jacobian_where_a_frame_lacks_some(self, differing):
        with pytest.raises(ValueError, match=r"grams\['audio'\] does not tell the Jacobian in cla"):
            fuse_frames(
                fusion.Robust(gamma=0.1),
                differing,
                perturbed="audio",
                grams={"audio": linalg.spectrum_from_kernel(KERNEL[:, :3])},
                classes="unite",
            )


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (lambda f: f.to_numpy(), TypeError, r"\['v'\] must be a pandas.DataFrame, got ndarray"),
            (lambda f: f[["sea"]], ValueError, r"has shape \(12, 1\), not \(N, K\) of K >= 2 clas"),
            (lambda f: f[:0], ValueError, r"has shape \(0, 4\), not \(N, K\)"),
            (lambda f: f.astype(int), TypeError, r"\['v'\]: column 'sea' is int64, not floating"),
            (lambda f: f.astype(str), TypeError, r"\['v'\]: column 'sea' is str, not floating"),
            (
                lambda f: f.iloc[[0, 1, 0]],
                ValueError,
                rf"\['v'\].index has labels more than once, '{LABELS[0]}'; keep one$",
            ),
            (
                lambda f: f[["sea", "dog", "sea", "cat"]],
                ValueError,
                r"\['v'\].columns has labels more than once, 'sea'; keep one$",
            ),
            (
                lambda f: f.rename(index={LABELS[2]: None}),
                ValueError,
                r"\['v'\].index has labels that are null",
            ),
            (
                lambda f: f.set_axis(pd.MultiIndex.from_arrays([LABELS, LABELS])),
                ValueError,
                "frames have labels of 1 and of 2 levels; give all the same",
            ),
            (lambda f: f.rename(columns={"sea": 1}), ValueError, "lacks 1 of 5: 1; .* lacks 1 of"),
        ],
    )
    def test_frames(self, change, error, message):
        frames = {"a": frame_of(AUDIO), "v": change(frame_of(VIDEO))}
        with pytest.raises(error, match=message):
            fuse_frames(fusion.Statistical(), frames, perturbed="a")

    def test_none(self):
        with pytest.raises(ValueError, match="frames is empty; give one a modality"):
            fuse_frames(fusion.Statistical(), {}, perturbed="a")

    @pytest.mark.parametrize(
        ("prior", "message"),
        [
            (PRIOR, "class_prior does not name its classes, and inputs have other ones, or anothe"),
            (pd.Series(PRIOR[:3], CLASSES[:3]), "class_prior lacks 1 classes: 'owl'"),
            (
                pd.Series(np.ones(5), (*CLASSES, "cow")),
                "class_prior has 1 classes that no input has: 'cow'",
            ),
            (pd.Series([1.0, 0.0, 1.0, 1.0], CLASSES), "class_prior must be positive"),
            (
                pd.Series(np.ones(5), ("sea", *CLASSES)),
                "class_prior.index has labels more than once, 'sea'; keep one",
            ),
        ],
    )
    def test_a_prior(self, prior, message, frames):
        frames["video"] = frames["video"].iloc[:, ORDER]
        with pytest.raises(ValueError, match=message):
            fuse_frames(fusion.Statistical(), frames, perturbed="audio", class_prior=prior)

    @pytest.mark.parametrize(
        ("grams", "message"),
        [
            (None, "the rule robust needs grams"),
            ({"smell": SPECTRUM}, r"grams\['smell'\] is of no frame; name one of audio, video"),
            (
                {"audio": linalg.spectrum_from_kernel(KERNEL[:, 1:])},
                r"grams\['audio'\] must be of 4 classes, shared by all rows, got shape \(3, 3\)",
            ),
            ({"audio": np.zeros((NUM_ROWS, 4, 4))}, r"shared by all rows, got shape \(12, 4, 4\)"),
        ],
    )
    def test_grams(self, grams, message, frames):
        with pytest.raises(ValueError, match=message):
            fuse_frames(fusion.Robust(gamma=0.1), frames, perturbed="audio", grams=grams)

    @pytest.mark.parametrize("options", [{"missing": "keep"}, {"classes": "position"}])
    def test_an_option(self, options, frames):
        [(name, value)] = options.items()
        with pytest.raises(ValueError, match=f"^{name} must be one of .*, got '{value}'$"):
            fuse_frames(fusion.Statistical(), frames, perturbed="audio", **options)

    def test_a_modality_that_is_unknown(self, frames):
        with pytest.raises(ValueError, match="smell"):
            fuse_frames(fusion.Contaminated(contamination=0.1), frames, perturbed="smell")


def test_pandas_is_imported_with_it_alone():
    script = (
        "import sys\n"
        "import jacfuse_jax.predictions\n"
        "print({'pandas', 'pyarrow'} & set(sys.modules))\n"
        "from jacfuse_jax.predictions import fuse_frames\n"
        "print('pandas' in sys.modules, fuse_frames is jacfuse_jax.predictions.fuse_frames)\n"
        "try:\n"
        "    jacfuse_jax.predictions.fuse\n"
        "except AttributeError as error:\n"
        "    print(error)\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert printed == [
        "set()",
        "True True",
        "module 'jacfuse_jax.predictions' has no attribute 'fuse'",
    ]
