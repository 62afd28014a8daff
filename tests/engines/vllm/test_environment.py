import pytest

from dynamo.engines.vllm.environment import bind_threads, log_level, prepare


@pytest.mark.parametrize(
    ("dyn_log", "expected"),
    [
        ("", "ERROR"),
        ("info", "INFO"),
        ("DEBUG", "DEBUG"),
        ("trace", "DEBUG"),
        ("off", "CRITICAL"),
        ("info,vllm=error", "ERROR"),
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
        "PYTHONWARNINGS": "error",
        "VLLM_LOGGING_LEVEL": "INFO",
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
        "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }


def test_our_plugin_joins_a_list_of_allowed_ones_once() -> None:
    environ = {"VLLM_PLUGINS": "theirs"}

    prepare(environ)
    prepare(environ)

    assert environ["VLLM_PLUGINS"] == "theirs,dynamo_ownership"


def test_a_small_machine_gives_all_its_cpus() -> None:
    environ: dict[str, str] = {}

    bind_threads(environ, {3, 1})

    assert environ == {"VLLM_CPU_OMP_THREADS_BIND": "1,3"}


def test_on_a_large_machine_vllm_chooses() -> None:
    environ: dict[str, str] = {}

    bind_threads(environ, range(16))

    assert environ == {}


def test_a_binding_by_the_user_stays() -> None:
    environ = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}

    bind_threads(environ, {0, 1})

    assert environ == {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
