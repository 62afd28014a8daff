import logging

import pytest

from dynamo.engines.vllm.environment import apply_log_level, bind_threads, log_level, prepare


@pytest.mark.parametrize(
    ("dyn_log", "expected"),
    [
        ("", "ERROR"),
        ("warn", "WARNING"),
        ("info", "INFO"),
        ("DEBUG", "DEBUG"),
        ("trace", "DEBUG"),
        ("off", "CRITICAL"),
        ("info,vllm=warn", "WARNING"),
        ("vllm=debug,info", "DEBUG"),
        ("dynamo=debug", "ERROR"),
        ("nonsense", "ERROR"),
    ],
)
def test_log_level_follows_dyn_log(dyn_log: str, expected: str) -> None:
    assert log_level(dyn_log) == expected


def test_prepare_keeps_what_the_user_has_set() -> None:
    theirs = {
        "DYN_LOG": "debug",
        "NIXL_LOG_LEVEL": "TRACE",
        "PYTHONWARNINGS": "error",
        "TORCH_CPP_LOG_LEVEL": "INFO",
        "TRANSFORMERS_VERBOSITY": "info",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_LOGGING_STREAM": "ext://sys.stdout",
        "VLLM_WORKER_MULTIPROC_METHOD": "fork",
    }
    environ = dict(theirs)

    prepare(environ)

    assert environ == theirs


def test_prepare_fills_an_empty_environment() -> None:
    environ: dict[str, str] = {}

    prepare(environ)

    assert environ == {
        "NIXL_LOG_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning,ignore::FutureWarning",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TRANSFORMERS_VERBOSITY": "error",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }


def test_who_asks_for_warnings_gets_all_of_them() -> None:
    environ = {"DYN_LOG": "warn"}

    prepare(environ)

    assert environ["VLLM_LOGGING_LEVEL"] == "WARNING"
    assert environ["NIXL_LOG_LEVEL"] == "WARN"
    assert "TORCH_CPP_LOG_LEVEL" not in environ
    assert "TRANSFORMERS_VERBOSITY" not in environ
    assert "FutureWarning" not in environ["PYTHONWARNINGS"]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [({"VLLM_LOGGING_LEVEL": "error"}, logging.ERROR), ({"VLLM_LOGGING_LEVEL": "?"}, 0), ({}, 0)],
)
def test_vllm_is_quiet_before_it_sets_up_its_logs(
    environ: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = [logging.getLogger("vllm"), logging.getLogger("torch.utils.cpp_extension")]
    for each in noisy:
        monkeypatch.setattr(each, "level", logging.NOTSET)

    apply_log_level(environ)

    assert [each.level for each in noisy] == [expected, expected]


def test_our_plugin_joins_a_list_of_allowed_ones_once() -> None:
    environ = {"VLLM_PLUGINS": "theirs"}

    prepare(environ)
    prepare(environ)

    assert environ["VLLM_PLUGINS"] == "theirs,dynamo_ownership"


def test_a_small_machine_gives_all_its_cpus() -> None:
    environ: dict[str, str] = {}

    bind_threads(environ, {3, 1})

    assert environ == {"VLLM_CPU_OMP_THREADS_BIND": "1,3"}


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        (2, {"VLLM_CPU_OMP_THREADS_BIND": "1,4|3"}),
        (3, {"VLLM_CPU_OMP_THREADS_BIND": "1|3|4"}),
        (4, {}),  # more than CPUs
    ],
)
def test_ranks_share_a_small_machine(ranks: int, expected: dict[str, str]) -> None:
    environ: dict[str, str] = {}

    bind_threads(environ, {3, 4, 1}, ranks)

    assert environ == expected


def test_on_a_large_machine_vllm_chooses() -> None:
    environ: dict[str, str] = {}

    bind_threads(environ, range(16))

    assert environ == {}


def test_a_binding_by_the_user_stays() -> None:
    environ = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}

    bind_threads(environ, {0, 1})

    assert environ == {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
