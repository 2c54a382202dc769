"""Models on the Hugging Face hub, or on a mirror set by HF_ENDPOINT: `hf://owner/name[@revision][/FILE]`.

Only this module of the package opens network connections, and only for such an address. Files go to the hub library's cache
(HF_HOME), so that a second import downloads nothing, and needs no network; HF_TOKEN gives access to private and gated models.
"""

import contextlib
import logging
import os
import re
from pathlib import Path

from jaxseq.errors import UserError

log = logging.getLogger(__name__)

PREFIX = "hf://"
ADDRESS = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/\s]+))?(?:/(?P<file>\S+))?")
BESIDE = (".json", ".model", ".txt", ".jinja")  # configs, tokenizers, chat templates
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pth")  # the first kind found is taken


def fetch(address: str) -> Path:
    """Downloads `address` from the hub and returns the local folder (or, with FILE, the local file). If the hub cannot be
    reached, an earlier download is returned, with a warning.

    Raises UserError, saying what to do, if the address is malformed or the hub does not serve it.
    """
    match = ADDRESS.fullmatch(address)
    if not match:
        raise UserError(f"{address} is not hf://owner/name[@revision][/FILE], like hf://HuggingFaceTB/SmolLM2-135M@main")
    from huggingface_hub import HfApi, errors, snapshot_download  # imported late: takes a second

    logging.getLogger("huggingface_hub").propagate = False  # it has a handler, and libraries put others on the root logger
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
        first = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        failed = f"{address} cannot be fetched from {endpoint or 'the hub'}: {first}"
        folder = _cached(repo, revision, file)
        if folder is None:
            raise UserError(f"{failed}; try again, or download it and give its folder") from error
        log.warning("%s; the earlier download of commit %s is taken", failed, folder.name)
    return folder / file if file else folder


def _cached(repo: str, revision: str | None, file: str | None) -> Path | None:
    """The folder of an earlier download with FILE, or with weights; None if there is none."""
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        known = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return None
    for found in (part for entry in known if (entry.repo_type, entry.repo_id) == ("model", repo) for part in entry.revisions):
        if (revision or "main") in (*found.refs, found.commit_hash):
            folder = found.snapshot_path
            with contextlib.suppress(UserError):
                _chosen(repo, [part.file_path.relative_to(folder).as_posix() for part in found.files], file)
                return folder
    return None


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
        raise UserError(f"{address} has no top-level weights ({', '.join(WEIGHTS)}); it has: {', '.join(sorted(found)[:12])}")
    if ending in (".gguf", ".pth") and len(weights) > 1:
        raise UserError(f"{address} holds {len(weights)} models; add one of their names: {', '.join(weights[:12])}")
    return [*weights, *beside]
