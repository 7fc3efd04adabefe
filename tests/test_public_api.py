"""`import selfvit`: light, with every public name, and with the Auto classes registered."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import selfvit

PACKAGE = Path(__file__).parents[1] / "selfvit"
REGISTERED = """
from transformers import AutoBackbone, AutoConfig, AutoModel
from transformers import AutoModelForImageClassification, AutoModelForPreTraining
from selfvit import DINOConfig, SelfViTBackbone, SelfViTConfig, SelfViTForDINO
from selfvit import SelfViTForImageClassification, SelfViTModel
assert AutoConfig.for_model("selfvit").__class__ is SelfViTConfig
config = SelfViTConfig(
    hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=8,
    dino_config=DINOConfig(num_prototypes=4), architectures=["SelfViTForDINO"],
)
expected = {
    AutoModel: SelfViTModel, AutoModelForImageClassification: SelfViTForImageClassification,
    AutoBackbone: SelfViTBackbone, AutoModelForPreTraining: SelfViTForDINO,
}
for auto, model_class in expected.items():
    assert type(auto.from_config(config)) is model_class, auto
import sys
assert not [f for f in sys.meta_path if type(f).__name__ == "TransformersFinder"]
"""


def run(code: str, python: Path = Path(sys.executable)) -> subprocess.CompletedProcess[str]:
    """Run code in a new process."""
    return subprocess.run(
        [python, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONWARNINGS": "error::UserWarning:selfvit"},
        capture_output=True,
        text=True,
        timeout=300,
    )


class TestNames:
    @pytest.mark.parametrize("name", sorted(selfvit.__all__))
    def test_every_public_name_resolves(self, name):
        value = getattr(selfvit, name)
        assert value is getattr(selfvit, name)
        if name in selfvit.MODULES:
            module = sys.modules[f"selfvit.{selfvit.MODULES[name].partition(':')[0]}"]
            assert value in vars(module).values()

    def test_the_names_of_the_issue_are_there(self):
        wanted = "Embedder open_images train convert export evaluate_checkpoint publish audit"
        assert set(wanted.split()) <= set(selfvit.__all__)

    def test_type_checkers_read_the_same_names_and_modules(self):
        (block,) = [
            node
            for node in ast.parse((PACKAGE / "__init__.py").read_text()).body
            if isinstance(node, ast.If)
        ]
        imported = {
            alias.asname or alias.name: (node.module, alias.name)
            for node in block.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        for node in block.body:
            if isinstance(node, ast.Assign):  # a name that differs in its module
                (target,) = node.targets
                imported[target.id] = imported.pop(node.value.id)
        assert imported == {
            name: tuple(f"{place}:{name}".split(":")[:2]) for name, place in selfvit.MODULES.items()
        }

    def test_dir_lists_the_names_before_they_are_imported(self):
        result = run("import selfvit; print(*dir(selfvit))")
        assert set(selfvit.__all__) <= set(result.stdout.split()), result.stderr

    def test_an_unknown_name_is_an_attribute_error(self):
        with pytest.raises(AttributeError, match="module 'selfvit' has no attribute 'nothing'"):
            _ = selfvit.nothing
        with pytest.raises(ImportError, match="cannot import name 'nothing'"):
            from selfvit import nothing  # noqa: F401

    def test_star_import_gives_every_name(self, python_with_torch):
        code = "from selfvit import *; print(SelfViTModel.__name__, open_images.__name__)"
        result = run(code, python_with_torch)
        assert result.stdout.split() == ["SelfViTModel", "open_images"], result.stderr


class TestRegistration:
    @pytest.mark.parametrize(
        "first",
        [
            "import selfvit",
            "from transformers import AutoModel; import selfvit",
            "import selfvit, transformers, importlib; importlib.reload(selfvit)",
            "import selfvit, importlib; importlib.reload(selfvit)",
            "from selfvit.modeling.modeling_selfvit import SelfViTModel",
            "from selfvit.modeling.modeling_dino import SelfViTForDINO",
            "from selfvit.modeling import registry",
            "from selfvit.configuration.configuration_selfvit import SelfViTConfig",
            "from selfvit.configuration import format_version",
            "import selfvit.embedding.embedder",
            "from selfvit import Embedder",
            "import selfvit.training.train",
            "import selfvit; from transformers.models.auto.modeling_auto import AutoModel",
        ],
    )
    def test_the_classes_are_registered_whatever_is_imported_first(self, first, python_with_torch):
        result = run(first + REGISTERED, python_with_torch)
        assert result.returncode == 0, result.stderr

    def test_others_that_look_for_transformers_find_it_unchanged(self, python_with_torch):
        result = run(
            """
            import importlib.util, sys
            expected = importlib.util.find_spec("transformers")
            import selfvit
            spec = importlib.util.find_spec("transformers")
            assert spec.origin == expected.origin and type(spec.loader) is type(expected.loader)
            assert spec.loader.get_source("transformers") and "transformers" not in sys.modules
            assert importlib.util.find_spec("nothing_of_this_name") is None
            import transformers
            assert "exec_module" not in vars(transformers.__spec__.loader) or (
                transformers.__spec__.loader.exec_module.__func__
                is type(transformers.__spec__.loader).exec_module
            )
            import importlib
            importlib.reload(transformers)
            """
            + textwrap.indent(REGISTERED, " " * 12),
            python_with_torch,
        )
        assert result.returncode == 0, result.stderr

    def test_an_import_of_transformers_that_fails_can_be_repeated(self, python_with_torch):
        result = run(
            """
            import importlib.machinery, selfvit, sys
            finder = sys.meta_path[0]
            loader = importlib.machinery.SourceFileLoader
            execute = loader.exec_module
            def fail(self, module):
                loader.exec_module = execute
                raise ImportError("interrupted")
            loader.exec_module = fail
            try:
                import transformers
            except ImportError as error:
                assert str(error) == "interrupted"
            assert finder in sys.meta_path and "transformers" not in sys.modules
            """
            + textwrap.indent(REGISTERED, " " * 12),
            python_with_torch,
        )
        assert result.returncode == 0, result.stderr

    def test_an_error_of_selfvit_does_not_fail_the_import_of_transformers(self, python_with_torch):
        result = run(
            """
            import sys, warnings
            import selfvit
            sys.modules["selfvit.modeling.registry"] = None  # an import error
            import transformers, threading
            for thread in threading.enumerate():
                if thread is not threading.main_thread():
                    thread.join()
            assert transformers.AutoConfig
            """,
            python_with_torch,
        )
        assert result.returncode == 0, result.stderr
        assert "selfvit could not register its classes" in result.stderr

    def test_a_thread_that_waits_for_the_import_of_transformers_gets_its_names(
        self, python_with_torch
    ):
        # Without selfvit, this thread gets the module that transformers replaces by a lazy one.
        result = run(
            """
            import sys, threading, time
            import selfvit
            errors = []
            def load():
                while "transformers" not in sys.modules: time.sleep(1e-3)
                try:
                    from transformers import AutoModelForPreTraining
                except BaseException as error:
                    errors.append(error)
            thread = threading.Thread(target=load)
            thread.start()
            import transformers
            thread.join()
            assert not errors, errors
            """,
            python_with_torch,
        )
        assert result.returncode == 0, result.stderr

    def test_threads_that_import_both_at_once_do_not_fail(self, python_with_torch):
        # one imports transformers, which imports selfvit's modules; the others import these first
        result = run(
            """
            import importlib, threading
            import selfvit
            names = [
                "transformers", "selfvit.modeling.modeling_selfvit", "selfvit.modeling.registry",
                "selfvit.configuration.configuration_selfvit", "selfvit.embedding.embedder",
            ]
            barrier, errors = threading.Barrier(len(names)), []
            def load(name):
                barrier.wait()
                try:
                    importlib.import_module(name)
                except BaseException as error:
                    errors.append((name, error))
            threads = [threading.Thread(target=load, args=(name,)) for name in names]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            for thread in threading.enumerate():
                if thread.name == "selfvit registration": thread.join()
            assert not errors, errors
            """
            + textwrap.indent(REGISTERED, " " * 12),
            python_with_torch,
        )
        assert result.returncode == 0, result.stderr

    def test_objects_travel_to_new_processes(self, python_with_torch, tmp_path):
        script = tmp_path / "script.py"
        script.write_text(
            textwrap.dedent(
                """
                import multiprocessing
                import selfvit

                def hidden_size(config):
                    from transformers import AutoModel
                    return type(AutoModel.from_config(config)).__name__, config.hidden_size

                if __name__ == "__main__":
                    config = selfvit.SelfViTConfig(
                        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8,
                        patch_size=8,
                    )
                    for method in ("spawn", "forkserver"):
                        with multiprocessing.get_context(method).Pool(1) as pool:
                            print(*pool.apply(hidden_size, (config,)))
                """
            )
        )
        result = subprocess.run([python_with_torch, script], capture_output=True, text=True)
        assert result.stdout.split() == ["SelfViTModel", "8"] * 2, result.stderr

    def test_the_launchers_entry_point_registers_once(self, python_with_torch):
        # as `python -W error -m selfvit.training.train --help`
        result = run(
            """
            import runpy, sys, warnings
            warnings.simplefilter("error")
            sys.argv = ["selfvit.training.train", "--help"]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
            """,
            python_with_torch,
        )
        assert result.returncode == 0 or "selfvit" not in result.stderr, result.stderr
