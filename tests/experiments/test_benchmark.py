"""The benchmark on tiny sizes: its files, its flags, and that it compares like with like."""

import csv
import dataclasses
import json
import subprocess
import sys
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from absl import flags

from experiments import benchmark
from experiments.measuring import timing
from experiments.measuring.flops import count_flops
from experiments.measuring.operations import OPERATIONS, Method
from experiments.run import benchmark_flags
from experiments.run.benchmark_flags import BenchmarkConfig, Case, config_from_flags
from jacfuse_jax import linalg
from jacfuse_jax.programs.command_line import parse_flags
from tests.experiments.runs import ROOT

BATCH_SIZE, NUM_CLASSES = 20, 4  # more samples than a SciPy loop takes
METHODS = [(op, name) for op, operation in OPERATIONS.items() for name in operation.methods]


def make_config(op, workdir, **changes):
    config = BenchmarkConfig(
        op=op,
        cases=(Case(NUM_CLASSES, BATCH_SIZE, "float32"),),
        peer_cases=None,
        methods=tuple(OPERATIONS[op].methods),
        num_repeats=5,
        max_s=np.inf,
        yardstick_size=32,
        yardstick_bytes=4096,
        seed=0,
        workdir=workdir,
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module", params=list(OPERATIONS))
def measured(request, tmp_path_factory):
    """The folder and the rows of a run of each op."""
    workdir = tmp_path_factory.mktemp(request.param)
    return workdir, benchmark.run(make_config(request.param, workdir))


class TestRun:
    def test_has_a_row_of_positive_figures_for_every_method(self, measured):
        _, rows = measured
        methods = OPERATIONS[rows[0].op].methods
        assert [row.method for row in rows] == list(methods)
        for row in rows:
            assert row.skipped is None
            figures = {name: x for name, x in row._asdict().items() if not isinstance(x, str)}
            del figures["skipped"]
            assert figures["num_repeats"] == 5
            if figures["executed_gflop_per_s"] is None:
                assert row.method not in ("closed_form", "statistical_fusion", "forward")
                del figures["executed_gflop_per_s"]
            if not methods[row.method].is_compiled:
                assert figures.pop("compile_s") is figures.pop("peak_mib") is None
            assert all(0 < x < np.inf for x in figures.values())

    def test_relates_its_columns_as_they_say(self, measured):
        _, rows = measured
        operation = OPERATIONS[rows[0].op]
        for row in rows:
            assert row.min_s <= row.median_s <= row.max_s
            assert row.ratio == pytest.approx(row.median_s / rows[0].median_s)
            assert row.us_per_sample == pytest.approx(row.median_s / BATCH_SIZE * 1e6)
            gflop = BATCH_SIZE * operation.num_flops(NUM_CLASSES) / 1e9
            assert row.gflop_per_s == pytest.approx(gflop / row.median_s)
            assert row.yardstick_ratio == pytest.approx(row.yardstick_gflop_per_s / row.gflop_per_s)

    def test_writes_a_csv_and_a_figure(self, measured):
        workdir, rows = measured
        with (workdir / f"benchmark_{rows[0].op}.csv").open(newline="") as file:
            written = list(csv.DictReader(file))
        for row, fields in zip(rows, written, strict=True):
            assert list(fields) == list(row._fields)
            assert fields["method"] == row.method
            assert float(fields["median_s"]) == pytest.approx(row.median_s, rel=1e-5)
            assert (fields["compile_s"] == "") == (row.compile_s is None)
        figure = (workdir / f"benchmark_{rows[0].op}.png").read_bytes()
        assert figure.startswith(b"\x89PNG")

    def test_names_what_it_measured_of_the_batch(self, measured):
        _, rows = measured
        for row in rows:
            is_slow = row.method in ("scipy_loop", "eig", "jax_eigen")
            assert row.num_measured == (16 if is_slow else BATCH_SIZE)

    def test_covers_all_sizes_in_one_figure(self, tmp_path, capsys):
        config = make_config(
            "recalibrate",
            tmp_path,
            cases=tuple(Case(K, B, "float32") for K in (2, 5) for B in (1, 3)),
            methods=("closed_form",),
        )
        rows = benchmark.run(config)
        assert len({(row.num_classes, row.batch_size, row.dtype) for row in rows}) == 4
        assert {row.num_measured for row in rows} == {1, 3}
        assert (tmp_path / "benchmark_recalibrate.png").exists()
        lines = capsys.readouterr().out.splitlines()
        assert sum(line.startswith("| closed_form ") for line in lines) == 4
        assert any(line.startswith("peak memory of this process: ") for line in lines)

    def test_measures_peers_last_at_cases_of_their_own(self, tmp_path):
        cases = tuple(Case(K, 3, "float32") for K in (2, 3))
        peer_cases = (cases[1], Case(4, 3, "float32"))
        methods = ("closed_form", "eigh")
        config = make_config(
            "recalibrate", tmp_path, cases=cases, peer_cases=peer_cases, methods=methods
        )
        rows = benchmark.run(config)
        of_own, of_peer = (("closed_form", 2), ("closed_form", 3)), (("eigh", 3), ("eigh", 4))
        assert tuple((row.method, row.num_classes) for row in rows) == of_own + of_peer
        own, peer = rows[1].median_s, rows[2].median_s
        assert own is not None
        assert peer is not None
        assert rows[2].ratio == peer / own
        assert rows[3].ratio is None
        only_peer = dataclasses.replace(config, methods=("eigh",))
        assert [row.num_classes for row in benchmark.run(only_peer)] == [3, 4]

    def test_without_the_own_method_has_no_ratio(self, tmp_path):
        config = make_config("recalibrate", tmp_path, methods=("scipy_loop",))
        (row,) = benchmark.run(config)
        assert row.median_s is not None
        assert row.ratio is None

    def test_says_why_it_skips(self, tmp_path, monkeypatch):
        monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
        peers = ("jax_schur", "jax_eigen")
        rows = benchmark.run(make_config("solve_sylvester", tmp_path, methods=peers))
        assert [row.skipped for row in rows] == ["not available on tpu"] * 2
        assert rows[0].median_s is None
        assert "not available on" in (tmp_path / "benchmark_solve_sylvester.csv").read_text()

    def test_goes_on_where_a_method_fails(self, tmp_path, monkeypatch):
        def fail(_):
            # What JAX raises where a platform lacks a routine; a row has room for the first line.
            raise NotImplementedError("no eigendecomposition here\nat all")

        methods = {**OPERATIONS["recalibrate"].methods, "closed_form": Method(fail)}
        operation = OPERATIONS["recalibrate"]._replace(methods=methods)
        monkeypatch.setitem(OPERATIONS, "recalibrate", operation)
        rows = benchmark.run(make_config("recalibrate", tmp_path))
        assert rows[0].skipped == "failed: NotImplementedError: no eigendecomposition here"
        assert [row.skipped for row in rows[1:]] == [None] * (len(rows) - 1)

    def test_says_why_there_are_no_inputs(self, tmp_path, monkeypatch):
        def fail(*_):
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

        operation = OPERATIONS["recalibrate"]._replace(make_inputs=fail)
        monkeypatch.setitem(OPERATIONS, "recalibrate", operation)
        rows = benchmark.run(make_config("recalibrate", tmp_path))
        assert {row.skipped for row in rows} == {
            "failed: RuntimeError: RESOURCE_EXHAUSTED: out of memory"
        }

    def test_keeps_rows_as_they_come(self, tmp_path, monkeypatch):
        def interrupt(_):
            raise KeyboardInterrupt

        methods = {**OPERATIONS["recalibrate"].methods, "eigh": Method(interrupt)}
        operation = OPERATIONS["recalibrate"]._replace(methods=methods)
        monkeypatch.setitem(OPERATIONS, "recalibrate", operation)
        with pytest.raises(KeyboardInterrupt):
            benchmark.run(make_config("recalibrate", tmp_path))
        lines = (tmp_path / "benchmark_recalibrate.jsonl").read_text().splitlines()
        rows = {row["method"]: row["skipped"] for row in map(json.loads, lines)}
        assert rows == {
            "closed_form": None,
            "eigh": "not reached",
            "scipy_loop": "not reached",
        }
        assert not (tmp_path / "benchmark_recalibrate.csv").exists()

    def test_does_not_repeat_what_takes_too_long(self, tmp_path):
        config = make_config("recalibrate", tmp_path, methods=("closed_form",), max_s=0.0)
        (row,) = benchmark.run(config)
        assert row.num_repeats == 1
        assert row.min_s == row.median_s == row.max_s

    def test_takes_float64_where_it_is_asked_for(self, tmp_path):
        cases = tuple(Case(NUM_CLASSES, BATCH_SIZE, dtype) for dtype in ("float32", "float64"))
        config = make_config("recalibrate", tmp_path, cases=cases)
        with jax.enable_x64(False):
            rows = benchmark.run(dataclasses.replace(config, methods=("closed_form",)))
            assert jax.dtypes.canonicalize_dtype("float64") == np.float32
        assert [row.skipped for row in rows] == [None, None]
        assert (rows[1].peak_mib or 0) > 1.5 * (rows[0].peak_mib or np.inf)


@cache
def inputs_of(op, dtype):
    return OPERATIONS[op].make_inputs(jax.random.key(3), BATCH_SIZE, NUM_CLASSES, dtype)


@cache
def result_of(op, name):
    """What a method makes of the inputs in float64."""
    method = OPERATIONS[op].methods[name]
    fn = jax.jit(method.fn) if method.is_compiled else method.fn
    return fn(inputs_of(op, "float64").take(BATCH_SIZE, as_numpy=not method.is_compiled))


class TestMethods:
    @pytest.mark.parametrize(("op", "name"), METHODS)
    def test_solve_the_same_problem(self, op, name):
        inputs, result = inputs_of(op, "float64"), result_of(op, name)
        if name in ("eigh", "eig") and op == "schur":
            eigenvalues, eigenvectors = map(np.asarray, result)
            a = np.asarray(inputs.samples["a"])
            a = (a + np.swapaxes(a, -1, -2)) / 2 if name == "eigh" else a
            result, expected = a @ eigenvectors, eigenvectors * eigenvalues[:, None]
        elif op == "schur":  # unique but for order and phases
            t, q = map(np.asarray, result)
            assert np.abs(np.tril(t, -1)).max() == 0
            result, expected = q @ t @ np.conj(np.swapaxes(q, -1, -2)), inputs.samples["a"]
        elif name == "eigh_spd":  # of the symmetric parts
            a, b = ((x + np.swapaxes(x, -1, -2)) / 2 for x in (inputs.samples[n] for n in "ab"))
            assert min(np.linalg.eigvalsh(a).min(), np.linalg.eigvalsh(b).min()) > 0
            systems = zip(a, b, inputs.samples["c"], strict=True)
            expected = np.stack([scipy.linalg.solve_sylvester(*system) for system in systems])
        else:
            result = jax.tree.leaves(result)[0]
            expected = jax.tree.leaves(result_of(op, next(iter(OPERATIONS[op].methods))))[0]
        atol = 40 * NUM_CLASSES * np.finfo(np.float64).eps * np.abs(expected).max()
        np.testing.assert_allclose(result, expected, rtol=0, atol=atol)

    @pytest.mark.parametrize(("op", "name"), METHODS)
    def test_keep_the_dtype(self, op, name, dtype):
        inputs = inputs_of(op, dtype)
        dtypes = {array.dtype for array in jax.tree.leaves(inputs)}
        assert dtypes - {np.dtype("int32")} == {np.dtype(dtype)}
        method = OPERATIONS[op].methods[name]
        if method.is_compiled:
            result = jax.eval_shape(method.fn, inputs)
        else:
            result = method.fn(inputs.take(BATCH_SIZE, as_numpy=True))
        assert np.finfo(jax.tree.leaves(result)[0].dtype).dtype == np.dtype(dtype)

    def test_take_no_more_samples_than_a_gibibyte_of_matrices_holds(self):
        closed_form, eigh, scipy_loop = OPERATIONS["recalibrate"].methods.values()
        assert closed_form.num_measured(1_000_000, 309, "float32") == 1_000_000
        assert eigh.num_measured(256, 309, "float32") == 256
        assert eigh.num_measured(65536, 10, "float32") == 65536
        held = eigh.num_measured(1_000_000, 309, "float32")
        assert 2**29 < held * eigh.num_matrices * 309**2 * 4 <= 2**30
        assert scipy_loop.num_measured(256, 309, "float32") == 16
        eig = OPERATIONS["schur"].methods["eig"]
        assert eig.num_measured(256, 10, "float32") == 16
        assert eig.num_measured(256, 2000, "float32") == 6


class TestFlops:
    @pytest.mark.parametrize(("num_classes", "low", "high"), [(10, 10, 40), (309, 5, 40)])
    def test_of_the_closed_form_grow_with_k_squared(self, num_classes, low, high):
        flops = {}
        for batch_size in (1000, 3000):
            inputs = jax.eval_shape(
                lambda n=batch_size: OPERATIONS["recalibrate"].make_inputs(
                    jax.random.key(0), n, num_classes, "float32"
                )
            )
            closed_form = OPERATIONS["recalibrate"].methods["closed_form"].fn
            flops[batch_size] = count_flops(jax.jit(closed_form).trace(inputs).jaxpr.jaxpr)
        assert low * num_classes**2 < flops[1000] / 1000 < high * num_classes**2
        assert flops[3000] == pytest.approx(3 * flops[1000], rel=0.1)  # a loop, three times as long

    def test_count_products_and_every_turn_of_a_loop(self):
        def fn(a, b):
            return jax.lax.fori_loop(0, 5, lambda _, x: x + jnp.exp(a @ b).sum(), 0.0)

        a, b = jnp.ones((3, 4)), jnp.ones((4, 6))
        per_turn = 2 * 3 * 4 * 6 + 18 + 18 + 1
        assert count_flops(jax.jit(fn).trace(a, b).jaxpr.jaxpr) == 5 * per_turn

    def test_take_the_cheapest_branch(self):
        def fn(x):
            return jax.lax.cond(x.sum() > 0, lambda x: x @ x, lambda x: x + x, x)

        assert count_flops(jax.jit(fn).trace(jnp.ones((4, 4))).jaxpr.jaxpr) == 16 + 16

    @pytest.mark.parametrize(
        "fn",
        [jnp.linalg.eigh, lambda a: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: 2 * x, a)],
    )
    def test_are_unknown_of_libraries_and_open_loops(self, fn):
        assert count_flops(jax.jit(fn).trace(jnp.eye(3)).jaxpr.jaxpr) is None


def program_bytes(fn, batch_size):
    """Of a recalibration in float32 with K = 64, which is compiled but not run."""
    make_inputs = OPERATIONS["recalibrate"].make_inputs
    inputs = jax.eval_shape(lambda: make_inputs(jax.random.key(0), batch_size, 64, "float32"))
    num_bytes = timing.program_bytes(jax.jit(fn).lower(inputs).compile())
    assert num_bytes is not None
    return num_bytes


class TestMemory:
    def test_of_the_closed_form_grows_with_b_k(self):
        closed_form = OPERATIONS["recalibrate"].methods["closed_form"].fn
        growth = program_bytes(closed_form, 50_000) - program_bytes(closed_form, 10_000)
        array_bytes = 40_000 * 64 * 4
        assert 3 * array_bytes <= growth < 6 * array_bytes  # z, p and R z; at most a copy of each

    def test_grows_with_the_chunk(self):
        def recalibrate(chunk, inputs):
            spectrum = inputs.shared["spectrum"]
            return linalg.recalibrate(
                **inputs.samples, spectrum=spectrum, strength=9.0, batch_size=chunk
            )

        small, large = (program_bytes(partial(recalibrate, chunk), 4096) for chunk in (16, 256))
        assert large - small >= 240 * 64**2 * 4


def error_of(*arguments):
    """The message with which the binary ends."""
    flag_values = flags.FlagValues()
    benchmark_flags.define_flags(flag_values)
    with pytest.raises(SystemExit) as caught:
        benchmark.main(parse_flags(["benchmark", *arguments], flag_values), flag_values)
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestFlags:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--num_classes=3,0"], "--num_classes=3,0: 0 is not a positive integer"),
            (["--num_classes="], "--num_classes=: give at least one"),
            (["--batch_sizes=-4"], "--batch_sizes=-4: -4 is not a positive integer"),
            (
                ["--batch_sizes=1e6"],
                "--batch_sizes=1e6: invalid literal for int()",
            ),
            (
                ["--dtypes=float16"],
                "--dtypes=float16: unknown 'float16'; choose from float32,",
            ),
            (["--dtypes="], "--dtypes=: give at least one"),
            (
                ["--methods=magic"],
                "--methods=magic: unknown 'magic'; choose from closed_form,",
            ),
            (["--op=schur", "--methods=lu"], "--methods=lu: unknown 'lu'; choose from schur,"),
        ],
    )
    def test_that_do_not_fit(self, arguments, message, tmp_path):
        text = error_of(f"--workdir={tmp_path / 'run'}", *arguments)
        assert text.startswith(f"error: {message}")
        assert not (tmp_path / "run").exists()

    def test_cases_are_all_combinations_or_those_that_are_named(self):
        def cases_of(*arguments):
            flag_values = flags.FlagValues()
            benchmark_flags.define_flags(flag_values)
            flag_values(["benchmark", *arguments])
            return config_from_flags(flag_values).cases

        combined = cases_of("--num_classes=5,3", "--batch_sizes=2", "--dtypes=float64,float32")
        assert combined == tuple((K, 2, t) for t in ("float64", "float32") for K in (3, 5))
        assert cases_of("--cases=9x4xfloat64,3x8xfloat32") == ((9, 4, "float64"), (3, 8, "float32"))

    def test_workdir_is_a_file(self, tmp_path):
        (tmp_path / "file").write_text("")
        text = error_of(f"--workdir={tmp_path / 'file'}")
        assert text == f"error: --workdir={tmp_path / 'file'} is a file; name a folder"

    @pytest.mark.parametrize("argument", ["--num_repeats=4", "--op=fft", "--seed=-1"])
    def test_out_of_bounds(self, argument):
        flag_values = flags.FlagValues()
        benchmark_flags.define_flags(flag_values)
        with pytest.raises(flags.IllegalFlagValueError, match=argument.partition("=")[0]):
            flag_values(["benchmark", argument])

    def test_stray_argument(self):
        with pytest.raises(SystemExit, match="unexpected argument 'schur'; all settings are"):
            benchmark.main(["benchmark", "schur"])


@pytest.mark.slow
def test_the_binary_turns_x64_on_for_float64(tmp_path):
    command = [sys.executable, "-m", "experiments.benchmark", "--op=recalibrate"]
    command += ["--num_classes=3", "--batch_sizes=2", "--dtypes=float64,float32"]
    command += ["--methods=closed_form", "--yardstick_size=8", f"--workdir={tmp_path}"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Warning" not in process.stderr
    with (tmp_path / "benchmark_recalibrate.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["dtype"], row["skipped"]) for row in rows] == [("float64", ""), ("float32", "")]
    assert float(rows[0]["peak_mib"]) > 1.5 * float(rows[1]["peak_mib"])
