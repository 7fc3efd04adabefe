"""Register the markers of transformers' own tests with pytest."""

MARKS = ("accelerate_tests", "order", "slow", "torch_compile_test") + tuple(
    f"flash_attn{version}_test" for version in ("", "_3", "_4")
)


def pytest_configure(config):
    for mark in MARKS:
        config.addinivalue_line("markers", f"{mark}: marker of transformers' tests")
