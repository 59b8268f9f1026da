"""Which backend serves a call, what is said where one cannot, and what `python -m fastattn` tells."""

import importlib
import importlib.util
import os
import subprocess
import sys
import threading

import pytest
import torch

import fastattn
from fastattn import __main__ as command
from fastattn.core import backends, native
from fastattn.core.backends import Call, choose, unsupported_reasons
from tests.helpers import draw, make

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="about a process that does not interpret"),
]
NAMES = ("native", "triton", "cuda", "reference")
UNSERVED = {
    "float64": (Call("scsa", dtype=torch.float64, param_dtype=torch.float64), "x is float64"),
    "dropout while training": (Call("scsa", facts=(False, True)), "dropout on the attention while training"),
    "recombination": (Call("pcsa", facts=(True, False)), "recombination"),
    "parameters of another dtype": (
        Call("smsa", dtype=torch.bfloat16),
        "x is bfloat16 and the parameters are float32",
    ),
    "function transform": (Call("scsa", transformed=True), "torch.func transforms"),
}


@pytest.mark.parametrize("case", UNSERVED)
@pytest.mark.usefixtures("native")
def test_what_native_does_not_serve(case):
    call, reason = UNSERVED[case]
    (told,) = unsupported_reasons("native", call)
    assert reason in told
    assert choose("auto", *call) == "reference"
    with pytest.raises(RuntimeError, match="backend 'native' cannot serve this") as error:
        choose("native", *call)
    assert told in str(error.value)


def test_gpus_are_served_by_triton():
    call = Call("scsa", "cuda")
    assert unsupported_reasons("native", call)[-1] == "x is on cuda; native serves the CPU"
    assert unsupported_reasons("triton", call) == []
    assert choose("auto", *call) == "triton"
    for unserved, reason in UNSERVED.values():
        assert reason in unsupported_reasons("triton", unserved._replace(device="cuda"))[0]


def test_cpu_tensors_are_served_by_triton_where_it_is_interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert unsupported_reasons("triton", Call("scsa")) == []
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "TRITON_INTERPRET=1" in unsupported_reasons("triton", Call("scsa"))[0]


@pytest.mark.parametrize("reason", ["is not installed", "failed to load: ImportError: broken"])
def test_without_triton(reason, monkeypatch):
    def broken(name):
        raise ImportError("broken")

    if reason == "is not installed":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    else:
        monkeypatch.setattr(importlib, "import_module", broken)
    for function in (backends._triton_status, backends._choose):
        function.cache_clear()
    told, chosen = unsupported_reasons("triton", Call("scsa", "cuda")), choose("auto", *Call("scsa", "cuda"))
    for function in (backends._triton_status, backends._choose):
        function.cache_clear()
    assert told == [f"Triton {reason}"]
    assert chosen == "reference"


@pytest.mark.usefixtures("native")
def test_auto_prefers_native_and_native_is_available():
    assert choose("auto", *Call("scsa")) == "native"
    assert choose("auto", *Call("scsa", dtype=torch.bfloat16, autocast=True)) == "native"
    assert fastattn.available_backends()[0] == "native"


def test_reference_serves_everything():
    assert fastattn.available_backends()[-1] == "reference"
    for call, _ in UNSERVED.values():
        assert unsupported_reasons("reference", call) == []


def test_backends_that_cannot_serve_say_so():
    with pytest.raises(RuntimeError, match="x is on cpu; triton serves GPUs"), fastattn.use_backend("triton"):
        make("smsa", 8)(draw(1, 8, 7, 7))
    assert "triton" not in fastattn.available_backends()


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("options", "reason"),
    [({"down_sample_mode": "recombination"}, "recombination"), ({"attn_drop_ratio": 0.1}, "dropout")],
    ids=str,
)
def test_modules_fall_back_or_raise(options, reason):
    module, x = make("scsa", 8, **options).train(), draw(1, 8, 7, 7)
    assert module(x).shape == x.shape
    with fastattn.use_backend("native"), pytest.raises(RuntimeError, match=reason):
        module(x)


@pytest.mark.parametrize(
    "use",
    [
        fastattn.set_backend,
        lambda name: fastattn.use_backend(name).__enter__(),
        lambda name: choose(name, *Call("scsa")),
    ],
    ids=["set_backend", "use_backend", "a call"],
)
def test_unknown_backend(use):
    with pytest.raises(ValueError, match="unknown backend 'fast': expected one of auto, native, triton, cuda, ref"):
        use("fast")


def served(module, x, **options):
    """Return the backend that explain says serves a call."""
    return fastattn.explain(module, x, **options).split("served by ")[1].split()[0]


@pytest.mark.usefixtures("native")
def test_precedence():
    module, x = make("scsa", 8), draw(1, 8, 7, 7)
    assert served(module, x) == "native"
    fastattn.set_backend("reference")
    assert served(module, x) == fastattn.get_backend() == "reference"
    with fastattn.use_backend("native"):
        assert served(module, x) == "native"
        with fastattn.use_backend("reference"):
            assert served(module, x) == "reference"
            assert served(module, x, backend="native") == "native"
        assert served(module, x) == "native"
        with pytest.raises(KeyError), fastattn.use_backend("reference"):
            raise KeyError
        assert served(module, x) == "native"
    assert served(module, x) == "reference"


def test_use_backend_stays_in_its_thread():
    seen = []
    with fastattn.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(fastattn.get_backend()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


def run_python(*arguments, **environment):
    """Run a fresh interpreter and return what it did."""
    environment = {**os.environ, **environment}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


def test_environment_variable():
    show = "print(fastattn.get_backend())"
    code = f"import fastattn; {show}; fastattn.set_backend('auto'); {show}"
    done = run_python("-c", code, FASTATTN_BACKEND="reference")
    assert done.stdout.split() == ["reference", "auto"]
    code = "import fastattn, torch; print('imported'); fastattn.SMSA(4)(torch.zeros(1, 4, 2, 2))"
    done = run_python("-c", code, FASTATTN_BACKEND="fast")
    assert done.stdout.split() == ["imported"]
    assert "unknown backend 'fast'" in done.stderr


def test_explain_tells_every_backend():
    x = draw(1, 8, 7, 7)
    for what in (make("scsa", 8), "smsa", "pcsa"):
        lines = fastattn.explain(what, x).splitlines()
        assert [line.split(":")[0].strip() for line in lines[1:]] == list(NAMES)
        assert "triton serves GPUs" in lines[2]
    assert "dropout" in fastattn.explain("scsa", x, attn_drop_ratio=0.1, training=True)
    assert "recombination" in fastattn.explain(make("pcsa", 8, down_sample_mode="recombination"), x)
    assert "cannot serve" in fastattn.explain("scsa", x, backend="triton")
    with pytest.raises(ValueError, match="unknown operation 'attention'"):
        fastattn.explain("attention", x)


def test_info(capsys):
    assert command.main(["info"]) == 0
    text = capsys.readouterr().out
    for part in (fastattn.__version__, torch.__version__, "extension", "available", "scsa on cpu, float32"):
        assert part in text


def test_unknown_command(capsys):
    assert command.main(["nonsense"]) == 2
    assert "usage: python -m fastattn info" in capsys.readouterr().err


@pytest.fixture
def package_folder(monkeypatch, tmp_path):
    """Make the extension be looked for in an empty folder."""
    monkeypatch.setattr(fastattn, "__path__", [str(tmp_path)])
    # an editable install's finder does not ask the package's path
    finders = [f for f in sys.meta_path if not str(getattr(f, "__module__", "")).startswith("__editable__")]
    monkeypatch.setattr(sys, "meta_path", finders)
    monkeypatch.delitem(sys.modules, "fastattn._native", raising=False)
    monkeypatch.delattr(fastattn, "_native", raising=False)

    def forget():
        native._load.cache_clear()
        backends._choose.cache_clear()
        importlib.invalidate_caches()

    forget()
    yield tmp_path
    monkeypatch.undo()
    forget()


def assert_served_by_the_reference():
    module, x = make("scsa", 8), draw(1, 8, 7, 7)
    assert "served by reference" in fastattn.explain(module, x)
    assert module(x).shape == x.shape
    with fastattn.use_backend("native"), pytest.raises(RuntimeError, match=r"fastattn\._native: "):
        module(x)
    tokens = torch.ones(1, 4, 8)  # what is made of torch's own operators does without the extension
    assert torch.equal(fastattn.functional.partition_attention(*[tokens] * 3, 2, 1, backend="native"), tokens)
    assert fastattn.available_backends() == ("native", "reference")


def test_not_built(package_folder, capsys):
    assert native.status()[0] == "not built"
    assert_served_by_the_reference()
    with pytest.raises(RuntimeError, match="not built"):
        native.extension()
    command.main(["info"])
    assert "extension  not built" in capsys.readouterr().out


def test_built_for_another_python(package_folder, capsys):
    (package_folder / "_native.cpython-37m-x86_64-linux-gnu.so").write_bytes(b"")
    state, detail = native.status()
    assert state == "failed to load"
    assert "_native.cpython-37m-x86_64-linux-gnu.so was built for another Python" in detail
    assert_served_by_the_reference()
    command.main(["info"])
    assert "built for another Python" in capsys.readouterr().out


def test_fails_to_load(package_folder):
    (package_folder / f"_native{importlib.machinery.EXTENSION_SUFFIXES[0]}").write_bytes(b"not a library")
    state, detail = native.status()
    assert state == "failed to load"
    assert "_native" in detail
    assert "ImportError" in detail
    assert_served_by_the_reference()
