"""Marks of transformers' own tests, which its configuration of pytest names and ours must too."""

MARKS = ("accelerate_tests", "order", "slow", "torch_compile_test") + tuple(
    f"flash_attn{version}_test" for version in ("", "_3", "_4")
)


def pytest_configure(config):
    for mark in MARKS:
        config.addinivalue_line("markers", f"{mark}: of transformers' own tests")
