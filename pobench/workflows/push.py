"""Send a trained run to the Hugging Face hub: its weights or adapter, its tokenizer and a card with its scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pobench.errors import PobenchError
from pobench.reporting.model_card import model_card
from pobench.reporting.run_facts import HUB_NAME
from pobench.results.run_folder import RunFolder

CARD = "README.md"


def push(
    runs: Path, run: str, repo: str, *, private: bool = False, revision: str | None = None, licence: str | None = None
) -> str:
    """Upload in one commit, and return its address.

    run: `<setting>/<folder>`. repo: USER/NAME, made where it does not exist. The token is that of `hf auth login` or of the
    variable HF_TOKEN; it is read by huggingface_hub and by nothing else. Raises PobenchError if training has not finished, if
    the stored weights are not those that it wrote, or if the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    card, files = checked(runs, run, repo, licence)
    if constants.HF_HUB_OFFLINE:
        raise PobenchError("push: HF_HUB_OFFLINE is set, so the hub is not asked; unset it")
    model = runs / run / "model"
    operations = [CommitOperationAdd(CARD, card.encode("utf-8"))]
    operations += [CommitOperationAdd(name, str(model / name)) for name in files]
    unreachable: Any = HfHubHTTPError.__bases__  # of the HTTP library that this version of huggingface_hub uses
    hub = HfApi()
    try:
        hub.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            hub.create_branch(repo, branch=revision, exist_ok=True)
        return str(hub.create_commit(repo, operations, commit_message=f"pobench: {run}", revision=revision).commit_url)
    except LocalTokenNotFoundError:
        raise PobenchError("push: no token; type `hf auth login`, or set HF_TOKEN") from None
    except (*unreachable, OfflineModeIsEnabled) as error:
        raise PobenchError(f"push: {repo}: {_plainly(error)}") from None


def checked(runs: Path, run: str, repo: str, licence: str | None = None) -> tuple[str, list[str]]:
    """(card, names of the files of the model). Raises PobenchError that lists all that is in the way."""
    folder = RunFolder(runs, run)
    faults = [] if HUB_NAME.fullmatch(repo) else [f"--repo {repo!r}: USER/NAME is needed"]
    trained = folder.trained
    if trained is None:
        state = "is a start model" if folder.config["kind"] == "start" else "has not finished training"
        raise PobenchError("\n".join([*faults, f"push: {run} {state}; name a trained run (`pobench list runs`)"]))
    faults += [str(error) for error in folder.corrupt_weights()]
    if faults:
        raise PobenchError("\n".join(faults))
    prefix = "model/"
    names = [name.removeprefix(prefix) for name in trained["files"] if name.startswith(prefix)]
    return model_card(runs, run, repo, licence), [name for name in names if name != CARD]


def _plainly(error: Exception) -> str:
    """The hub's own sentence, without addresses of requests and without the token, which a server may repeat."""
    from huggingface_hub import get_token

    said: str = getattr(error, "server_message", None) or str(error).splitlines()[0]
    status = getattr(getattr(error, "response", None), "status_code", None)
    hint = {401: "; is the token right? (`hf auth login`)", 403: "; may this token write there?"}.get(status or 0, "")
    token = get_token()
    return f"{said.replace(token, '(token)') if token else said}{hint}"
