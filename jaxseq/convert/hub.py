"""Models on the Hugging Face hub, or on a mirror set by HF_ENDPOINT: `hf://owner/name[@revision][/FILE]`.

Only this module of the package opens network connections, and only for such an address. Files go to the hub library's cache
(HF_HOME), so that a second import downloads nothing; HF_TOKEN gives access to private and gated models.
"""

import os
import re
from pathlib import Path

from jaxseq.errors import UserError

PREFIX = "hf://"
ADDRESS = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/\s]+))?(?:/(?P<file>\S+))?")
BESIDE = (".json", ".model", ".txt", ".jinja")  # configs, tokenizers, chat templates
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pth")  # the first kind found is taken


def fetch(address: str) -> Path:
    """Downloads `address` from the hub and returns the local folder (or, with FILE, the local file).

    Raises UserError, saying what to do, if the address is malformed or the hub does not serve it.
    """
    match = ADDRESS.fullmatch(address)
    if not match:
        raise UserError(f"{address} is not hf://owner/name[@revision][/FILE], like hf://HuggingFaceTB/SmolLM2-135M@main")
    from huggingface_hub import HfApi, errors, snapshot_download  # imported late: takes a second

    repo, revision, file = match["repo"], match["revision"], match["file"]
    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        found = HfApi(endpoint=endpoint).list_repo_files(repo, revision=revision)
        wanted = _chosen(address, found, file)
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted, endpoint=endpoint))
    except UserError:
        raise
    except errors.GatedRepoError:
        raise UserError(f"{address} is gated; accept its terms on the hub, then set HF_TOKEN to your token") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"{address}: there is no model {repo}, or it is private; check the name, or set HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{address}: {repo} has no revision {revision}; give a branch, a tag or a commit") from None
    except Exception as error:  # the hub library passes on errors of its HTTP library, which differ between versions
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{address} cannot be fetched: {first}; try again, or download it and give its folder") from error
    return folder / file if file else folder


def _chosen(address: str, found: list[str], file: str | None) -> list[str]:
    """The files to download: FILE with the configs beside it, else one kind of weights at the top of the repository."""
    top = [name for name in found if "/" not in name]
    beside = [name for name in top if name.endswith(BESIDE)]
    if file:
        if file not in found:
            raise UserError(f"{address}: there is no file {file}; there are: {', '.join(sorted(found)[:12])}")
        return [file, *beside]
    for ending in WEIGHTS:
        if weights := [name for name in top if name.endswith(ending)]:
            break
    else:
        raise UserError(f"{address} has no weights at its top ({', '.join(WEIGHTS)}); it has: {', '.join(sorted(found)[:12])}")
    if ending in (".gguf", ".pth") and len(weights) > 1:
        raise UserError(f"{address} holds {len(weights)} models; add one of their names: {', '.join(weights[:12])}")
    return [*weights, *beside]
