"""The code blocks and the notebook of the documentation run, its links and numbers are right."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import boto3
import nbclient
import nbformat
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from markdown_it import MarkdownIt
from moto.server import ThreadedMotoServer
from timm.models import VisionTransformer
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from selfvit import DINOConfig, SelfViTConfig, SelfViTForDINO
from selfvit.data.decoding import decode_image
from selfvit.data.sources import open_images
from selfvit.embedding.preprocessing import build_processor
from selfvit.modeling.registry import TRAINABLE_CLASSES
from selfvit.training.preflight.dry_run import memory_without_activations
from selfvit.training.recipes import RECIPES

from .cases.inputs_channels import write_bands
from .data.videos import write_video
from .documentation import RUN, SHOWN, read_page
from .hub_requests import PAGES_TOKEN
from .local_hub import LocalHub

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "examples" / "fashion_mnist_sample"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES_WITH_CODE = [
    page
    for page in PAGES
    if any(block.language in RUN and not block.not_run for block in read_page(page).blocks)
]
MAX_NOT_RUN = 8
SECONDS = 900  # limit per page on a busy machine; a page usually takes 5 to 30


def label(page: Path) -> str:
    return str(page.relative_to(ROOT))


# ---------------------------------------------------------------------- images of the pages


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """Return a folder with images of the sample under the names that the pages use.

    FOLDER has 64 unlabeled images. LABELED_FOLDER and LABELED_TEST_FOLDER have a subfolder for
    each of ten classes, with 6 and 4 images. photo.jpg is one image, larger and not square.
    fashion_mnist_sample is the sample itself, cut to 512 and 128 images; pages see it in examples/.
    """
    folder = tmp_path_factory.mktemp("images")
    source = open_images(SAMPLE / "train.parquet")
    assert source.label_names is not None
    short_sample = folder / SAMPLE.name
    short_sample.mkdir()
    for name, num_images in {"train.parquet": 512, "test.parquet": 128}.items():
        pq.write_table(pq.read_table(SAMPLE / name).slice(0, num_images), short_sample / name)

    def save(position: int, name: str) -> None:
        path = folder / name / f"{position:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        decode_image(source[position].image).save(path)

    for position in range(64):
        save(position, "FOLDER")
    labels = source.labels()
    for label, name in enumerate(source.label_names):
        of_class = [int(position) for position in np.flatnonzero(labels == label)]
        class_folder = name.replace("/", " or ")
        for position in of_class[:6]:
            save(position, f"LABELED_FOLDER/{class_folder}")
        for position in of_class[6:10]:
            save(position, f"LABELED_TEST_FOLDER/{class_folder}")
    decode_image(source[200].image).resize((320, 240)).save(folder / "photo.jpg")
    return folder


@pytest.fixture
def page_folder(images, tmp_path) -> Path:
    """Return the folder in which a page is run."""
    (tmp_path / "examples").mkdir()  # not a link, because the notebook writes into it
    (tmp_path / "examples" / "launch").symlink_to(ROOT / "examples" / "launch")
    for entry in images.iterdir():
        place = tmp_path / "examples" if entry.name == SAMPLE.name else tmp_path
        (place / entry.name).symlink_to(entry)
    return tmp_path


@pytest.fixture(scope="session")
def run_page_in(start_python) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a page in a folder, with additional environment variables."""

    def run(
        page: Path, folder: Path, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        environment = environment or {}
        # Only huggingface_hub reads its variables when it is imported.
        read_on_import = {k: v for k, v in environment.items() if k.startswith("HF_")}
        commands = start_python(read_on_import)
        return subprocess.run(
            [commands / "python", "-m", "tests.documentation", page],
            cwd=folder,
            env={
                **os.environ,
                **environment,
                "OMP_NUM_THREADS": "1",
                "PYTHON_EXEC": str(commands / "python"),  # of processes that commands start
                "TQDM_MININTERVAL": "60",  # fewer lines of progress in the report of a failure
                # Commands of other packages, such as `accelerate`, are next to this Python.
                "PATH": os.pathsep.join(
                    [str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]
                ),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
        )

    return run


# ---------------------------------------------------------------------- fixtures of the pages


def save_checkpoint(recipe: str, folder: Path, **options: Any) -> None:
    """Write an untrained checkpoint of a recipe."""
    run = RECIPES[recipe](None, None).with_options(options)
    torch.manual_seed(0)
    TRAINABLE_CLASSES[run.architecture](run.model).save_pretrained(folder)
    pixels = run.preprocessing
    processor = build_processor(
        run.model, resize=pixels.resize, mean=pixels.image_mean, std=pixels.image_std
    )
    processor.save_pretrained(folder)


@pytest.fixture
def my_model(page_folder):
    """Write an untrained checkpoint my_model with the sizes of the quickstart's."""
    save_checkpoint("dino_demo", page_folder / "my_model")


@pytest.fixture
def my_mae(page_folder):
    """Write an untrained checkpoint my_mae with the sizes of the one in mae.md."""
    save_checkpoint("mae_demo", page_folder / "my_mae")


# Two blocks of width 64; image size and patch size are those of a ViT-S/16.
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1}


@pytest.fixture
def vits16(page_folder):
    """Write a small checkpoint vits16 for images of 224 pixels and patches of 16."""
    save_checkpoint("dino_vits16_in1k", page_folder / "vits16", **TINY, num_prototypes=64)


@pytest.fixture
def weights(page_folder):
    """Write weights.pth of a small vision transformer, with timm's tensor names."""
    model = VisionTransformer(embed_dim=64, depth=2, num_heads=1, num_classes=0)
    torch.save(model.state_dict(), page_folder / "weights.pth")


@pytest.fixture
def satellite(page_folder):
    """Write images of four bands with 12 bits into satellite."""
    write_bands(page_folder / "satellite", 4, count=24, high=4096)


@pytest.fixture
def videos(page_folder):
    """Write two short videos into VIDEOS."""
    for name in ("a.mp4", "b.mp4"):
        write_video(page_folder / "VIDEOS" / name)


@pytest.fixture
def bucket(images):
    """Start an S3 server with images in my-bucket/photos, and return the client's environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=address,
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )
    client.create_bucket(Bucket="my-bucket")
    for path in (images / "FOLDER").iterdir():
        client.upload_file(str(path), "my-bucket", f"photos/{path.name}")
    yield {
        "AWS_ENDPOINT_URL": address,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    server.stop()


@pytest.fixture
def local_hub(tmp_path_factory):
    """Start a local Hub, and return the environment variables of its user USER."""
    with LocalHub() as hub:
        yield hub.environment(tmp_path_factory.mktemp("hf_home"), PAGES_TOKEN)


@pytest.fixture
def dinov2_hub(tmp_path_factory):
    """Start a local Hub with a small facebook/dinov2-small, and return a client's environment."""
    folder = tmp_path_factory.mktemp("dinov2-small")
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=1, image_size=518, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)
    with LocalHub() as hub:
        hub.add("facebook/dinov2-small", folder)
        yield hub.environment(tmp_path_factory.mktemp("hf_home"), token=None)


# ---------------------------------------------------------------------- the pages


@pytest.mark.parametrize("page", PAGES_WITH_CODE, ids=label)
def test_every_block_of_a_page_runs(page, page_folder, run_page_in, request):
    environment: dict[str, str] = {}
    for name in read_page(page).fixtures:
        environment |= request.getfixturevalue(name) or {}
    result = run_page_in(page, page_folder, environment)
    if result.returncode:
        pytest.fail(f"{label(page)} does not run:\n{result.stdout[-6000:]}", pytrace=False)


def test_few_blocks_are_not_run_and_each_gives_a_reason():
    reasons = {
        f"{label(page)}:{block.line}": block.not_run
        for page in PAGES
        for block in read_page(page).blocks
        if block.not_run is not None
    }
    assert len(reasons) <= MAX_NOT_RUN, reasons
    assert all(len(reason.split()) >= 3 for reason in reasons.values()), reasons


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_every_block_names_its_language(page):
    for block in read_page(page).blocks:
        assert block.language in (*RUN, *SHOWN), f"{label(page)}:{block.line}: {block.language!r}"


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_links_have_targets(page):
    for target in links_of(page):
        file, _, anchor = target.partition("#")
        linked = (page.parent / unquote(file)).resolve() if file else page
        assert linked.exists(), f"{label(page)}: {target}"
        if anchor:
            assert anchor in anchors_of(linked), f"{label(page)}: {target}"


def test_the_index_links_to_every_page():
    index = ROOT / "docs" / "README.md"
    linked = {target.partition("#")[0] for target in links_of(index)}
    assert {page.name for page in index.parent.glob("*.md")} - {"README.md"} <= linked


def links_of(page: Path) -> list[str]:
    """Return the targets of links and pictures, without those on the web."""
    tokens = [
        child
        for token in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))
        for child in token.children or []
    ]
    targets = [str(token.attrGet("href") or token.attrGet("src") or "") for token in tokens]
    return [target for target in targets if target and not re.match(r"https?:", target)]


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that GitHub generates for headings."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    headings = [
        tokens[position + 1].content
        for position, token in enumerate(tokens)
        if token.type == "heading_open"
    ]
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_configuration_reference_is_up_to_date():
    writer = runpy.run_path(str(ROOT / "docs" / "write_configuration_reference.py"))
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == writer["reference"](), (
        "docs/configuration.md does not match the dataclasses; run `make docs` "
        "(python docs/write_configuration_reference.py)."
    )


# Width, blocks and heads of the encoders in scaling.md, by the start of their rows.
ENCODERS = {
    "ViT-S/16": (384, 12, 6),
    "ViT-B/16": (768, 12, 12),
    "ViT-L/16": (1024, 24, 16),
    "ViT-H/16": (1280, 32, 16),
    "ViT-g/16": (1408, 40, 16),
    "ViT-G/16": (1664, 48, 16),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_the_memory_table_of_scaling_is_right(name):
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    (row,) = (line for line in text.splitlines() if line.startswith(f"| {name}"))
    width, num_blocks, num_heads = ENCODERS[name]
    config = SelfViTConfig(
        hidden_size=width,
        num_hidden_layers=num_blocks,
        num_attention_heads=num_heads,
        dino_config=DINOConfig(),
    )
    with torch.device("meta"):  # shapes without numbers
        model = SelfViTForDINO(config)
        optimizer = torch.optim.AdamW([weights for _, weights in model.trained_parameters()])
    ddp = memory_without_activations(model, optimizer, num_processes=8)
    fsdp2 = memory_without_activations(model, optimizer, num_processes=8, num_shards=8)
    num_parameters = sum(weights.numel() for weights in model.vit.parameters())
    memory = [f"{size / 2**30:.1f}" for size in (ddp.total, fsdp2.total, ddp.checkpoint)]
    assert [cell.strip() for cell in row.split("|")[2:-1]] == [
        f"{num_parameters / 1e6:.0f} M",
        *memory,
    ]


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 150


# ---------------------------------------------------------------------- the runner itself


@pytest.fixture
def run_text(page_folder, run_page_in):
    def run(text: str) -> subprocess.CompletedProcess[str]:
        (page_folder / "page.md").write_text(text)
        return run_page_in(page_folder / "page.md", page_folder)

    return run


class TestRunner:
    def test_blocks_run_in_order_and_python_blocks_share_their_names(self, run_text):
        result = run_text(
            "```python\nx = 6\n```\n\n```bash\necho 7 > seven\n```\n\n"
            "```python\nprint(x * int(open('seven').read()))\n```\n"
        )
        assert result.returncode == 0 and result.stdout.splitlines()[-1] == "42"

    def test_an_error_names_the_failing_python_line(self, run_text):
        result = run_text("# Title\n\n```python\nx = 1\nx.nothing\n```\n")
        assert result.returncode == 1
        assert 'page.md", line 5' in result.stdout and "AttributeError" in result.stdout

    @pytest.mark.parametrize(
        "code",
        ["false\ntrue", "false | cat", "echo $NO_SUCH_NAME", "selfvit embed", "python no_file.py"],
    )
    def test_a_failing_command_fails_the_page(self, run_text, code):
        assert run_text(f"```bash\n{code}\n```\n").returncode != 0

    def test_a_block_marked_not_run_is_skipped(self, run_text):
        text = "```bash\nfalse\n```\n"
        assert run_text(f"<!-- test: not run: needs a GPU -->\n{text}").returncode == 0
        assert run_text(text).returncode != 0

    def test_options_are_appended_to_selfvit_train_only(self, run_text):
        result = run_text(
            "<!-- test: append --max-steps 1 --batch-size 8 -->\n```bash\n"
            "selfvit train dino_demo --data FOLDER --output out --num-workers 0\n"
            "selfvit embed out --data FOLDER --output vectors --num-workers 0\n```\n"
        )
        assert result.returncode == 0, result.stdout
        assert "1 steps" in result.stdout or "1/1" in result.stdout
        assert "64 images embedded" in result.stdout

    @pytest.mark.parametrize(
        "text, message",
        [
            ("<!-- test: skip -->\n```bash\ntrue\n```\n", "not understood"),
            ("<!-- test: not run: no reason -->\n\nText.\n", "followed by a block"),
            ("<!-- test: append --x 1 -->\n", "followed by a block"),
            ("<!-- test: append --x 1 -->\n```bash\ntrue\n```\n", "has no `selfvit train`"),
        ],
    )
    def test_a_comment_without_effect_is_an_error(self, text, message, tmp_path):
        (tmp_path / "page.md").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_page(tmp_path / "page.md")


# ---------------------------------------------------------------------- the notebook


def test_the_notebook_runs(page_folder):
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    nbformat.validate(notebook)
    (parameters,) = (
        cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])
    )
    assert parameters.source.startswith("steps = ")
    parameters.source = "steps = 12"  # the log then has a line of the collapse monitors, too
    client = nbclient.NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(page_folder / "examples")}},
    )
    client.execute()  # raises with the cell and its traceback
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 5


def test_the_notebook_has_its_outputs_and_stays_small():
    file = ROOT / "examples" / "quickstart.ipynb"
    notebook = nbformat.read(file, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs and file.stat().st_size < 1_000_000
    assert not any(output.output_type == "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs), "clear progress bars"
